"""How fast what Gowalla's users took should count less: chosen on the last fifth of their training lists.

    python -m benchmarks.quality.recency
    python -m benchmarks.quality.recency --recency 0 1 2

`architecture.recency` says what a user's vector is made of when it is asked for, and nothing about training, so that
one training serves all of its values. Validation holds the next tenth, and would choose to look at the last few places
alone; the test part asks for a fifth, and so does the part that is chosen on here. Needs RECSYS_DATA_DIR, and ten
minutes of a core.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.data import dataset, gowalla_far
from benchmarks.quality.rows import Row, named
from benchmarks.quality.runs import figures_of, fitted
from benchmarks.table import emit
from recsys.data.dataset import Dataset
from recsys.data.split import split_of
from recsys.model.bag import Mean
from recsys.model.embed import TowerScorer, Trained

ROW: Row = replace(named("gowalla-in-order"), tables=gowalla_far)


def main() -> None:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.recency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--recency", type=float, nargs="+", default=[0, 0.5, 0.7, 0.85, 1, 1.2, 1.4, 1.7], help="values to try"
    )
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="for datasets and checkpoints")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    said = parser.parse_args()
    if "RECSYS_DATA_DIR" not in os.environ:
        parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds the public data")
    with redirect_stdout(sys.stderr):
        path = dataset(ROW.tables, Path(os.environ["RECSYS_DATA_DIR"]), said.work)
        best, _ = fitted(ROW, 0, path, said.work / "recency")
    data, made = Dataset.open(path, check=False), Trained.open(best)
    encoder = made.towers.user.encoder
    assert isinstance(encoder, Mean)
    table = []
    for encoder.recency in said.recency:
        _, figures = figures_of(TowerScorer(made, data), ROW, data, split_of(made.split), "validation")
        table.append({"recency": encoder.recency, **figures["mean"]})
    emit("Gowalla, the last fifth of training lists", table, as_json=said.json)


if __name__ == "__main__":
    main()
