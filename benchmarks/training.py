"""How fast a training epoch is: positions a second on MovieLens 1M, beside RecTools' SASRec and a plain padded loop.

Sizes are equal: d 64, 2 blocks, newest 200 interactions, full softmax over all rated films, bf16 where it pays, dropout
0.2, AdamW, leave-one-out with a stable sort, ids only. Needs RECSYS_DATA_DIR; the peer needs `make benchmarks-peers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.table import emit, parser
from recsys.data.module import HistoryData
from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare
from recsys.data.schema import Schema
from recsys.data.sources import Tables
from recsys.data.split import LeaveOneOut
from recsys.model.towers import Architecture
from recsys.model.two_tower import TwoTower
from recsys.train import bf16_pays

LENGTH = 200
BATCH = 128  # histories of a padded batch, the peer's and the plain loop's
PEER = Path(".venv-peers/bin/python")


class Timer(pl.Callback):
    """Wall time of every epoch, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def ours(path: Path, epochs: int) -> dict[str, Any]:
    """The project's own way, through Lightning."""
    data, timer = HistoryData(path, LeaveOneOut(), max_length=LENGTH), Timer()
    architecture = Architecture(dimension=64, max_length=LENGTH, blocks=2, heads=1, id_dropout=0, use_times=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="bf16-mixed" if bf16_pays() else "32-true",
        callbacks=[timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(TwoTower(data.num_items, architecture=architecture, decay=False), datamodule=data)
    return row("recsys", timer.seconds, positions(data))


class PlainModel(nn.Module):
    """A causal transformer as PyTorch's own layers make it."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.item = nn.Embedding(num_items + 1, 64, padding_idx=0)
        self.position = nn.Embedding(LENGTH, 64)
        layer = nn.TransformerEncoderLayer(64, 1, 256, 0.2, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)
        self.register_buffer("future", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, items_BL: torch.Tensor) -> torch.Tensor:
        """The logits of every item at every position [B, L, N + 1]."""
        x_BLD = self.item(items_BL) * 8 + self.position.weight
        return self.layers(x_BLD, mask=self.future, is_causal=True) @ self.item.weight.T


def plain(path: Path, epochs: int) -> dict[str, Any]:
    """The loop one writes first: every history padded to 200, the logits of every position at once."""
    data = HistoryData(path, LeaveOneOut(), max_length=LENGTH)
    ends, begins = data.cuts.validation_start, data.dataset.user_offsets[:-1]
    sequence_UL = torch.zeros(len(ends), LENGTH + 1, dtype=torch.int64)
    for user, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        newest = np.asarray(data.dataset.items[max(begin, end - LENGTH - 1) : end]) + 1
        sequence_UL[user, : len(newest)] = torch.from_numpy(newest.astype(np.int64))
    model = PlainModel(data.num_items)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for users in torch.randperm(len(sequence_UL)).split(BATCH):
            batch = sequence_UL[users]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays()):
                logits = model(batch[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return row("plain padded loop", seconds, positions(data))


def peer(epochs: int) -> dict[str, Any]:
    """RecTools, in its own environment."""
    precision = "bf16-mixed" if bf16_pays() else "32-true"
    command = [str(PEER), "benchmarks/peers/rectools_sasrec.py", "--epochs", str(epochs), "--precision", precision]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return row("RecTools SASRec", said["epoch_seconds"], said["positions"])


def positions(data: HistoryData) -> int:
    """Real targets of an epoch."""
    return sum(len(batch.target_T) for batch in data.train_dataloader())


def row(name: str, seconds: list[float], count: int) -> dict[str, Any]:
    """A row of the table; the first epoch only warms up, if there are more."""
    timed = seconds[1:] or seconds
    mean = sum(timed) / len(timed)
    return {"what": name, "s an epoch": round(mean, 2), "positions": count, "positions/s": round(count / mean)}


def main() -> None:
    """Measures and prints."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--epochs", type=int, default=3, help="of each; the first one only warms up")
    said = arguments.parse_args()
    if "RECSYS_DATA_DIR" not in os.environ:
        arguments.error("RECSYS_DATA_DIR is not set; let it name the folder that holds ml-1m/ratings.dat")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset"
        raw = MovieLens(str(Path(os.environ["RECSYS_DATA_DIR"]) / "ml-1m"))
        with contextlib.redirect_stdout(sys.stderr):
            prepare(Tables(Schema(raw.schema.interactions), raw.interactions), path)
            rows = [ours(path, said.epochs), plain(path, said.epochs)]
    if PEER.exists():
        rows.append(peer(said.epochs))
    else:
        print(f"{PEER} is not there: `make benchmarks-peers` makes it; without it there is no peer", file=sys.stderr)
    for each in rows:
        each["speed-up"] = round(each["positions/s"] / rows[-1]["positions/s"], 2)
    emit("Training, MovieLens 1M", rows, as_json=said.json)


if __name__ == "__main__":
    main()
