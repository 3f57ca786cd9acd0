"""A week of warm starts beside full retrains: MovieLens 1M replayed night by night, NDCG@10 and seconds of each.

Every night adds the next slice of the log to the dataset. Both trainings learn all but its two newest slices, stop by
the first of them and are measured on the second. The warm one starts from the night before, which started from its own.
Settings are those of configs/ml-1m.yaml, but for what the options say of the warm nights. Needs RECSYS_DATA_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.table import emit, parser
from recsys.data.dataset import Dataset
from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare
from recsys.data.sources import Parquet, Tables
from recsys.data.split import TimeSplit
from recsys.evaluate.ranking import evaluate
from recsys.model.embed import TowerScorer, Trained
from recsys.train import run

CONFIG = "configs/ml-1m.yaml"


def ratings(raw: MovieLens) -> pa.Table:
    """The whole log, oldest first."""
    log = pa.Table.from_batches(
        [each.columns for each in raw.interactions.batches(["user_id", "item_id", "rating", "time"])]
    )
    log = log.set_column(3, "time", pc.cast(log.column("time"), pa.int64()))
    return log.take(np.argsort(log.column("time").to_numpy(), kind="stable"))


def moments(log: pa.Table, said: argparse.Namespace) -> list[int]:
    """Seconds at which slices begin: the two that the first night holds out, one a night, and the end of the last."""
    places = len(log) * (said.until - said.share * np.arange(said.nights + 2, -1, -1))
    times = log.column("time").to_numpy()
    return [int(times[min(int(place), len(times) - 1)]) for place in places]


def slices(raw: MovieLens, cuts: list[int], log: pa.Table, folder: Path) -> list[Path]:
    """The dataset of every night, each grown from the one before; the first is what all nights start from."""
    datasets: list[Path] = []
    for night, end in enumerate(cuts[2:]):
        times = log.column("time").to_numpy()
        new = (times < end) & (times >= (cuts[night + 1] if night else 0))
        pq.write_table(log.filter(pa.array(new)), folder / f"log-{night}.parquet")
        tables = Tables(raw.schema, Parquet(str(folder / f"log-{night}.parquet")), raw.items, raw.users)
        prepare(tables, folder / f"dataset-{night}", base=datasets[-1] if datasets else None)
        datasets.append(folder / f"dataset-{night}")
    return datasets


def fitted(dataset: Path, split: TimeSplit, out: Path, options: list[str]) -> tuple[float, float]:
    """Trains, then measures on the test slice.

    Returns:
        NDCG@10 and the seconds of the training.
    """
    cut = ["--data.split.validation", str(split.validation), "--data.split.test", str(split.test)]
    given = ["--data.dataset", str(dataset), "--data.split", "recsys.data.split.TimeSplit", *cut, "--out", str(out)]
    began = time.perf_counter()
    run(["fit", "--config", CONFIG, *given, *options])
    seconds = time.perf_counter() - began
    data = Dataset.open(dataset, check=False)
    scorer = TowerScorer(Trained.open(out / "best.ckpt"), data)
    return evaluate(scorer, data, split.cut(data), "test", split=split).accuracy["ndcg@10"].value, seconds


def week(raw: MovieLens, said: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row a night, then their means."""
    log = ratings(raw)
    cuts = moments(log, said)
    datasets = slices(raw, cuts, log, folder)
    full = ["--trainer.max_epochs", str(said.epochs)]
    warm = ["--trainer.max_epochs", str(said.epochs_warm), "--trainer.check_val_every_n_epoch", "1"]
    warm += ["--data.replay", str(said.replay), "--model.optimizer", said.optimizer]
    warm += ["--model.learning_rate", str(said.learning_rate), "--model.warmup_steps", str(said.warmup_steps)]
    rows: list[dict[str, Any]] = []
    for night, dataset in enumerate(datasets):
        validation, test = (datetime.fromtimestamp(cut, UTC).isoformat() for cut in cuts[night : night + 2])
        split = TimeSplit(validation, test)
        ndcg, seconds = fitted(dataset, split, folder / f"full-{night}", full)
        last = folder / (f"warm-{night - 1}" if night > 1 else "full-0") / "best.ckpt"
        if night:
            options = [*warm, "--warm_start", str(last)]
            warm_ndcg, warm_seconds = fitted(dataset, split, folder / f"warm-{night}", options)
            rows.append(
                {
                    "night": str(night), "until": datetime.fromtimestamp(cuts[night + 2], UTC).date().isoformat(),
                    "NDCG@10 full": ndcg, "warm": warm_ndcg, "kept": warm_ndcg / ndcg,
                    "s full": seconds, "s warm": warm_seconds, "time": warm_seconds / seconds,
                }
            )  # fmt: skip
    mean = {name: float(np.mean([row[name] for row in rows])) for name in list(rows[0])[2:]}
    whole = {"kept": mean["warm"] / mean["NDCG@10 full"], "time": mean["s warm"] / mean["s full"]}
    return [*rows, {"night": "mean", "until": ""} | mean | whole]


def main() -> None:
    """Measures and prints."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--nights", type=int, default=7, help="warm nights, after the first full one")
    arguments.add_argument("--until", type=float, default=0.95, help="share of the log that the last night has")
    arguments.add_argument("--share", type=float, default=0.01, help="of the log that a night adds")
    arguments.add_argument("--epochs", type=int, default=10, help="of a full training")
    arguments.add_argument("--epochs-warm", type=int, default=2, help="of a warm one")
    arguments.add_argument("--replay", type=float, default=1.0, help="share of users without news in a warm epoch")
    arguments.add_argument("--optimizer", choices=("reset", "carry"), default="reset", help="AdamW's moments, if warm")
    arguments.add_argument("--learning-rate", type=float, default=3e-3, help="of a warm training")
    arguments.add_argument("--warmup-steps", type=int, default=100, help="of a warm training, at most a tenth of it")
    said = arguments.parse_args()
    if "RECSYS_DATA_DIR" not in os.environ:
        arguments.error("RECSYS_DATA_DIR is not set; let it name the folder that holds ml-1m/ratings.dat")
    if not 0 < said.until <= 1 or said.share * (said.nights + 2) >= said.until:
        arguments.error("--until is the share of the log at its end, and all nights must lie before it")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        rows = week(MovieLens(str(Path(os.environ["RECSYS_DATA_DIR"]) / "ml-1m")), said, Path(folder))
    what = f"{said.epochs_warm} warm epochs, replay {said.replay:g}, moments {said.optimizer}"
    emit(f"Warm starts, MovieLens 1M: {what}, learning rate {said.learning_rate:g}", rows, as_json=said.json)


if __name__ == "__main__":
    main()
