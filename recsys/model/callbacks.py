"""What watches every training, however it was started: that it can be repeated, and that it has not run away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from recsys.artifacts import ArtifactError


class DivergedError(ArtifactError):
    """Training ran away: its loss or a weight is no longer a number. The same settings would do so again."""


class Repeatable(pl.Callback):
    """Makes a training that was killed and gone on with end with the very weights of one that was not."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Killed after its last checkpoint, but before it had ended: what stopped it is remembered, that it did is not.
        if any(stop.wait_count >= stop.patience for stop in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx:  # once an epoch, and only here: Lightning draws before this, and not in each epoch as often
            return
        # Dropout and sampled negatives; by rank, since workers must not drop the same.
        seed = (trainer.datamodule.seed, trainer.current_epoch, trainer.global_rank)  # type: ignore[attr-defined]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))


class Finite(pl.Callback):
    """Stops a training whose loss or weights stop to be numbers, before a checkpoint is made of it."""

    _total: Tensor | None = None  # an epoch that a run only ends, since it was killed in its validation, has no steps

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._total = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        # Summed where it is, and looked at once an epoch: a GPU need not wait for it.
        self._total = loss.detach().double() if self._total is None else self._total + loss.detach()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._refuse(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._refuse(trainer, module)

    def _refuse(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._total is not None and not torch.isfinite(self._total):
            what = f"training loss is {float(self._total)}"
        else:
            spoilt = (name for name, weight in module.named_parameters() if not torch.isfinite(weight).all())
            if (name := next(spoilt, None)) is None:
                return
            what = f"weight {name} holds what is not a number"
        rate = module.learning_rate
        raise DivergedError(
            f"training diverged: in epoch {trainer.current_epoch + 1} the {what}, at learning rate {rate:g}; lower "
            "model.learning_rate, or raise model.warmup_steps"
        )
