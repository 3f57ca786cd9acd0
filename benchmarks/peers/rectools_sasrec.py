"""Times RecTools' SASRec on MovieLens 1M: the peer that our training speed is measured against.

RecTools wants numpy 1.26 and pytorch-lightning 2.5, so this runs with the interpreter of an environment of its own,
which `make benchmarks-peers` makes, and imports nothing of ours:

    RECSYS_DATA_DIR=… .venv-peers/bin/python benchmarks/peers/rectools_sasrec.py --epochs 2

The last line of standard output is one JSON object (progress and warnings go to standard error):

    seconds_per_epoch     mean wall time of the epochs after the first, which warms up; the first's if alone
    epoch_seconds         wall time of every epoch, first one included
    positions             real (unpadded) targets in one epoch
    positions_per_second  positions / seconds_per_epoch
    users, items          training sequences, and items in the softmax
    setup_seconds         reading, sorting and encoding the ratings, and building the model
    settings              what was trained: sizes, loss, precision, threads
    versions              rectools, torch, pytorch_lightning, numpy, python

Data are `ml-1m/ratings.dat` under RECSYS_DATA_DIR, sorted by time with a stable sort, each user's last two interactions
held out. Loss is the full softmax over all items, as RecTools computes it: over padded positions, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

HELD_OUT = 2  # the last interaction is the test's, the one before it validation's


class EpochTimer(pl.Callback):
    """Notes how long each epoch took, in seconds, and says so as it goes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        print(f"epoch {len(self.seconds)}: {self.seconds[-1]:.1f} s", file=sys.stderr)


def read_train(path: Path) -> pd.DataFrame:
    """Reads ratings and leaves out each user's last two.

    Args:
        path: MovieLens 1M's ratings.dat.

    Returns:
        One row an interaction, in RecTools' columns, sorted by time; equal times keep the file's order.
    """
    columns = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]
    ratings = pd.read_csv(path, sep="::", engine="python", header=None, names=columns)
    ratings[Columns.Weight] = 1.0
    ratings = ratings.sort_values(Columns.Datetime, kind="stable")
    from_the_end = ratings.groupby(Columns.User).cumcount(ascending=False)
    train = ratings[from_the_end >= HELD_OUT].copy()
    train[Columns.Datetime] = pd.to_datetime(train[Columns.Datetime], unit="s")
    return train.reset_index(drop=True)


def main() -> None:
    """Trains, times and prints; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="the first one only warms up, if there are more (2)")
    parser.add_argument("--factors", type=int, default=64, help="dimension of item vectors (64)")
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks (2)")
    parser.add_argument("--heads", type=int, default=1, help="attention heads (1)")
    parser.add_argument("--length", type=int, default=200, help="longest history, in items (200)")
    parser.add_argument("--batch-size", type=int, default=128, help="histories a batch (128)")
    parser.add_argument("--dropout", type=float, default=0.2, help="dropout rate (0.2)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (0.001)")
    parser.add_argument("--precision", default="bf16-mixed", help="Lightning's precision (bf16-mixed), or 32-true")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (one a core)")
    asked = parser.parse_args()
    if asked.epochs < 1:
        parser.error(f"--epochs {asked.epochs}: at least one epoch is needed to time it")
    folder = os.environ.get("RECSYS_DATA_DIR")
    if not folder:
        parser.error("RECSYS_DATA_DIR is not set; let it name the folder that holds ml-1m/ratings.dat")
    ratings = Path(folder) / "ml-1m" / "ratings.dat"
    if not ratings.is_file():
        parser.error(f"{ratings} does not exist; unpack MovieLens 1M there or set RECSYS_DATA_DIR")

    warnings.filterwarnings("ignore")
    torch.set_num_threads(asked.threads)
    pl.seed_everything(0)
    began = time.perf_counter()
    train = read_train(ratings)

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=asked.epochs,
            precision=asked.precision,
            callbacks=[EpochTimer()],
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_blocks=asked.blocks,
        n_heads=asked.heads,
        n_factors=asked.factors,
        session_max_len=asked.length,
        dropout_rate=asked.dropout,
        batch_size=asked.batch_size,
        lr=asked.learning_rate,
        loss="softmax",
        epochs=asked.epochs,
        get_trainer_func=trainer,
    )
    fit_began = time.perf_counter()
    model.fit(Dataset.construct(train))
    fit_seconds = time.perf_counter() - fit_began
    # RecTools fits with a copy of the trainer, and with copies of its callbacks.
    epochs = next(each.seconds for each in model.fit_trainer.callbacks if isinstance(each, EpochTimer))

    lengths = train[Columns.User].value_counts().to_numpy()
    positions = int(np.minimum(lengths - 1, asked.length).sum())
    timed = epochs[1:] or epochs
    seconds = sum(timed) / len(timed)
    answer = {
        "peer": "RecTools SASRec",
        "seconds_per_epoch": round(seconds, 3),
        "epoch_seconds": [round(epoch, 3) for epoch in epochs],
        "positions": positions,
        "positions_per_second": round(positions / seconds, 1),
        "users": len(lengths),
        "items": int(train[Columns.Item].nunique()),
        "setup_seconds": round(fit_began - began + fit_seconds - sum(epochs), 3),
        "settings": {**vars(asked), "loss": "softmax"},
        "versions": {
            **{name: version(name) for name in ("rectools", "torch", "pytorch_lightning", "numpy")},
            "python": platform.python_version(),
        },
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
