"""Training curves, read from what `recsys fit` logs."""

from __future__ import annotations

import csv
from pathlib import Path

from recsys.model.two_tower import K

CURVES = ("train_loss", f"val_ndcg@{K}")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What a run measured, epoch by epoch, over all the times it was gone on with.

    Args:
        run: the `out` of `recsys fit`.

    Returns:
        For each of `CURVES`, epochs (from 1, as `recsys fit` prints them) and values; empty where none was logged.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    versions = sorted(Path(run).glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for path in versions:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a killed process may leave half a line
        rows = list(csv.DictReader(whole.splitlines()))
        for name, curve in found.items():
            logged = {int(row["epoch"]) + 1: float(row[name]) for row in rows if row.get(name)}
            # What a version starts from, it does over, and all that came after.
            kept = {epoch: value for epoch, value in curve.items() if epoch < min(logged, default=epoch + 1)}
            found[name] = kept | logged
    return {name: sorted(curve.items()) for name, curve in found.items()}
