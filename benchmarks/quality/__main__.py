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

from benchmarks.quality import news
from benchmarks.quality.rows import ROWS, Row, named
from benchmarks.quality.runs import MODEL, mean, saved, trained
from benchmarks.table import emit


def figures(row: Row) -> list[dict[str, Any]]:
    """A figure a metric, or a cut: of our model, beside what is published and the best baseline."""
    results = saved(row)
    ours = [result for result in results if result["model"] == MODEL]
    others = [result for result in results if result["model"] != MODEL]
    asked: list[tuple[str, int | None]] = [(row.metrics[0], cut) for cut in row.cuts]
    asked = asked or [(metric, None) for metric in (*row.metrics, *row.beside)]
    nothing = (None,) * len(asked)
    rows = []
    for (metric, cut), anchor, target in zip(asked, row.anchors or nothing, row.targets or nothing, strict=True):
        values = [value(result, metric, cut) for result in ours]
        average, half = mean(values) if values else (None, None)
        if len(values) == 1 and cut is None:
            half = at(ours[0])["half_width"][metric]
        # Of what has no aim, that of the baseline which is best by the row's own metric.
        by = row.metrics[0] if metric in row.beside else metric
        best = max(others, key=lambda result: value(result, by), default=None)
        if row.above is not None and best is not None and metric in row.metrics:
            target = row.above * value(best, metric)
        rows.append(
            {
                "row": row.name,
                "metric": metric if cut is None else f"{metric}, D/{cut} ÷ D",
                "mean": average,
                "±": half,
                "seeds": len(values),
                "anchor": anchor,
                "target": target,
                "met": None if average is None or target is None else ("yes" if average >= target else "no"),
                "best baseline here": None if best is None else f"{best['model']} {value(best, metric):.4f}",
                "minutes": round(sum(result["seconds"] for result in ours) / len(ours) / 60, 1) if ours else None,
            }
        )
    return rows


def value(result: dict[str, Any], metric: str, cut: int | None = None) -> float:
    """A figure of the test part; with a cut, the share of it that vectors cut to D / cut keep."""
    whole: float = at(result)["mean"][metric]
    return whole if cut is None else at(result, cut)["mean"][metric] / whole


def at(result: dict[str, Any], cut: int = 1) -> dict[str, Any]:
    """The test part's figures of vectors cut to D / cut."""
    dimensions: dict[str, Any] = result["test"]["dimensions"]
    return dimensions[str(max(map(int, dimensions)) // cut)]


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
                shutil.rmtree(said.work / "runs" / row.name / str(seed), ignore_errors=True)
            elif seed in done:
                print(f"{row.name}, seed {seed}: saved; --again trains it anew", file=sys.stderr)
                continue
            with contextlib.redirect_stdout(sys.stderr):
                (news.solved if row.closed_form else trained)(row, seed, Path(os.environ["RECSYS_DATA_DIR"]), said.work)
    table = [figure for row in rows for figure in figures(row)]
    if said.json:
        print(json.dumps(table, indent=1))
    else:
        emit("Quality on the test part, full ranking", table, as_json=False)


if __name__ == "__main__":
    main()
