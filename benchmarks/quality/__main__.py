"""Quality beside the best published figures, from saved runs; `--row` trains one of them again.

    python -m benchmarks.quality                            the table
    python -m benchmarks.quality --json                     the same, one object a figure
    python -m benchmarks.quality --row beauty               that row's seeds, each trained if it is not saved yet
    python -m benchmarks.quality --row beauty --again       from scratch

Full ranking over all items, seen ones left out, on the test part; every choice was made on validation. Means over
seeds, ± half a 95 % interval: over seeds where there are several, else over users. Training needs RECSYS_DATA_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.quality.rows import ROWS, Row, named
from benchmarks.quality.runs import MODEL, mean, saved, trained
from benchmarks.table import emit


def figures(row: Row) -> list[dict[str, Any]]:
    """A figure a metric: of our model where it was trained, beside what is published and the best baseline."""
    results = saved(row)
    ours = [result for result in results if result["model"] == MODEL]
    rows = []
    nothing = (None,) * len(row.metrics)
    for metric, anchor, target in zip(row.metrics, row.anchors or nothing, row.targets or nothing, strict=True):
        values = [full(result, "test")["mean"][metric] for result in ours]
        value, half = mean(values) if values else (None, None)
        if len(values) == 1:
            half = full(ours[0], "test")["half_width"][metric]
        others = {result["model"]: full(result, "test")["mean"][metric] for result in results if result not in ours}
        best = max(others, key=lambda name: others[name], default=None)
        rows.append(
            {
                "row": row.name,
                "metric": metric,
                "mean": value,
                "±": half,
                "seeds": len(values),
                "anchor": anchor,
                "target": target,
                "met": None if value is None or target is None else ("yes" if value >= target else "no"),
                "best baseline here": None if best is None else f"{best} {others[best]:.4f}",
                "minutes": round(sum(result["seconds"] for result in ours) / len(ours) / 60, 1) if ours else None,
            }
        )
    return rows


def full(result: dict[str, Any], part: str) -> dict[str, Any]:
    """The figures of the uncut vectors."""
    dimensions = result[part]["dimensions"]
    return dimensions[max(dimensions, key=int)]


def main() -> None:
    """Prints the table, or trains a row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=[row.name for row in ROWS], help="train this row, then print it")
    parser.add_argument("--seeds", type=int, nargs="+", help="which seeds; as many as the row wants if left out")
    parser.add_argument("--again", action="store_true", help="train from scratch what is saved or half done")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="for datasets and checkpoints")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    said = parser.parse_args()
    rows = ROWS if said.row is None else (named(said.row),)
    if said.row:
        if "RECSYS_DATA_DIR" not in os.environ:
            parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds the public data")
        row = rows[0]
        done = {result["seed"] for result in saved(row) if result["model"] == MODEL}
        for seed in said.seeds or range(row.seeds):
            if said.again:
                shutil.rmtree(said.work / row.name / str(seed), ignore_errors=True)
            elif seed in done:
                print(f"{row.name}, seed {seed}: saved; --again trains it anew", file=sys.stderr)
                continue
            with contextlib.redirect_stdout(sys.stderr):
                trained(row, seed, Path(os.environ["RECSYS_DATA_DIR"]), said.work)
    table = [figure for row in rows for figure in figures(row)]
    if said.json:
        print(json.dumps(table, indent=1))
    else:
        emit("Quality on the test part, full ranking", table, as_json=False)


if __name__ == "__main__":
    main()
