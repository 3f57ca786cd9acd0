"""`recsys fit`, `validate`, `test` and `predict`: the Lightning CLI with what it must not be told twice."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from recsys.data.module import HistoryData
from recsys.model.checkpoints import DurableCheckpoints
from recsys.model.top_k import TopKWriter
from recsys.model.two_tower import K, TwoTower

METRIC = f"val_ndcg@{K}"
EXAMPLES = """
examples:
  recsys fit --config configs/ml-1m.yaml
  recsys fit --config configs/ml-1m.yaml --ckpt_path last --trainer.max_epochs 40
  recsys fit --config configs/ml-1m.yaml --warm_start demo/run/best.ckpt --data.replay 0.3 --out demo/tonight
  recsys fit --data.dataset demo/dataset --model.loss SampledSoftmax --model.loss.uniform 1024
  recsys test --config configs/ml-1m.yaml --ckpt_path demo/run/best.ckpt
  recsys predict --config configs/ml-1m.yaml --ckpt_path demo/run/best.ckpt --top_k.k 20
"""
_NOISE = (  # true of what we do on purpose, or of libraries between themselves; nothing a person here can act on
    "LightningCLI's args parameter",
    "Your `IterableDataset` has `__len__` defined",
    "`isinstance\\(treespec, LeafSpec\\)`",
    "The number of training batches",
    "Checkpoint directory .* exists and is not empty",
)


class PlainProgress(pl.Callback):
    """One line an epoch, where there is no terminal to draw a bar on."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.monotonic()  # of an epoch, too, that a run which goes on only has to end

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        said = "  ".join(f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items()))
        seconds = time.monotonic() - self._started
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {seconds:.0f} s  {said}", flush=True)


class TrainCLI(LightningCLI):
    """Fits a `TwoTower` on a `HistoryData`.

    Sizes come from the data; logs, checkpoints and top-k lists go below `out`.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", default="runs/two-tower", help="where logs and checkpoints go")
        parser.add_argument(
            "--warm_start", type=Path | None, default=None, help="the checkpoint whose weights training starts from"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(TopKWriter, "top_k")
        parser.set_defaults(
            {
                "checkpoint.monitor": METRIC,
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
                "early_stopping.monitor": METRIC,
                "early_stopping.mode": "max",
                "early_stopping.patience": 5,
                "trainer.enable_model_summary": False,
            }
        )
        for size in ("num_items", "item_inputs", "user_inputs", "num_events", "has_times"):
            parser.link_arguments(f"data.{size}", f"model.{size}", apply_on="instantiate")
        parser.link_arguments("model.architecture.max_length", "data.max_length")
        for part in ("data", "model"):
            parser.link_arguments("warm_start", f"{part}.warm_start")
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("out", "checkpoint.dirpath")
        parser.link_arguments("out", "top_k.path", compute_fn=_top_k_path)

    def before_instantiate_classes(self) -> None:
        said = self.config[self.subcommand]
        if said.trainer.precision is None:
            said.trainer.precision = "bf16-mixed" if bf16_pays() else "32-true"
        if self.subcommand == "predict":
            said.return_predictions = False  # they are written batch by batch

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        said = self.config[self.subcommand]
        if said.trainer.logger in (None, True):
            kwargs["logger"] = [CSVLogger(said.out, name="logs"), TensorBoardLogger(said.out, name="tensorboard")]
        given = kwargs.get("plugins", self._get(self.config_init, "trainer").plugins) or []
        kwargs["plugins"] = [*(given if isinstance(given, list) else [given]), DurableCheckpoints()]
        trainer = super().instantiate_trainer(**kwargs)
        # What a killed run goes on from. `save_last` would keep the last one that was best.
        last = ModelCheckpoint(said.out, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        trainer.callbacks.append(last)  # type: ignore[attr-defined]
        if not sys.stderr.isatty():
            bars = [c for c in trainer.callbacks if isinstance(c, pl.callbacks.ProgressBar)]  # type: ignore[attr-defined]
            for bar in bars:
                trainer.callbacks.remove(bar)  # type: ignore[attr-defined]
            trainer.callbacks.append(PlainProgress())  # type: ignore[attr-defined]
        return trainer


class FitCLI(TrainCLI):
    """`recsys fit` alone: without the parsers of the other subcommands it starts in a third of the time."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": TrainCLI.subcommands()["fit"]}


def run(arguments: list[str], cli: type[TrainCLI] = TrainCLI) -> None:
    """Runs one of the Lightning subcommands.

    Args:
        arguments: the subcommand and its options, as on the command line.
        cli: what runs it; a cluster's workers have their own.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's own calls
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    try:
        cli(
            TwoTower,
            HistoryData,
            args=arguments,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "recsys"},
        )
    except SystemExit:
        if {"-h", "--help"} & set(arguments):  # the help ends the process; its own epilog would be wrapped
            print(EXAMPLES, end="")
        raise


def bf16_pays() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32; on a CPU that takes AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _top_k_path(out: str) -> str:
    return str(Path(out) / "top_k.parquet")
