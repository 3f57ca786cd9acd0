"""The LightningModule: wiring between data, towers, loss and optimiser, and nothing else."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.artifacts import ArtifactError
from recsys.data.batches import QueryBatch, TrainBatch
from recsys.data.module import HistoryData
from recsys.data.split import Queries
from recsys.data.vocabulary import Input
from recsys.data.warm import read_checkpoint
from recsys.model.callbacks import Finite, Repeatable
from recsys.model.embed import Catalogue, Trained
from recsys.model.grow import carried, described_by, grown, refuse_another_architecture
from recsys.model.losses import FullSoftmax, Loss, Step
from recsys.model.towers import Architecture, Sizes, Towers

K = 10  # of the metrics that training watches


class TwoTower(pl.LightningModule):
    """Trains both towers to predict, after each interaction, the one that came next.

    Args:
        num_items: rows of the catalogue; linked from the data, as are the other sizes.
        item_inputs: encoded item features.
        user_inputs: encoded user features.
        num_events: kinds of event.
        has_times: whether interactions have times.
        architecture: what the towers are made of.
        loss: what a step minimises; full softmax if left out.
        learning_rate: of AdamW, at its highest.
        feature_learning_rate: of the embeddings of items' features, if it is another one. At the ids' rate words soon
            fit the items that training saw, and say less of new ones.
        weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises, at most a tenth of all.
        decay: whether the learning rate then falls to 0 by the last step, along a cosine.
        warm_start: the checkpoint whose weights training starts from; linked from the command line.
        optimizer: with a warm start, whether AdamW's moments start anew, or those of the checkpoint are carried on.
    """

    frequency_N: Tensor
    known_K: Tensor

    def __init__(
        self,
        num_items: int,
        item_inputs: tuple[Input, ...] = (),
        user_inputs: tuple[Input, ...] = (),
        num_events: int = 0,
        has_times: bool = False,
        architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
        loss: Loss | None = None,
        learning_rate: float = 3e-3,
        feature_learning_rate: float | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        decay: bool = True,
        warm_start: Path | None = None,
        optimizer: Literal["reset", "carry"] = "reset",
    ) -> None:
        super().__init__()
        self.towers = Towers(Sizes(num_items, item_inputs, user_inputs, num_events, has_times), architecture)
        self.loss = loss or FullSoftmax()
        sizes = self.loss.dimensions(architecture.dimension)  # refuses impossible prefixes before any work
        if architecture.item_bias and len(sizes) > 1:
            raise ValueError("item_bias with loss.matryoshka: a prefix of vectors is without it; leave one of them out")
        if feature_learning_rate is not None and not item_inputs:
            raise ValueError(
                f"feature_learning_rate {feature_learning_rate} without item features; embed one, or leave it out"
            )
        self.learning_rate = learning_rate
        self.feature_learning_rate = learning_rate if feature_learning_rate is None else feature_learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.warm_start = warm_start
        self.optimizer = optimizer

    def setup(self, stage: str) -> None:
        data: HistoryData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.catalogue = Catalogue(data.item_codes, data.trained)  # Lightning moves it with the towers
        self.register_buffer("frequency_N", torch.from_numpy(data.frequency), persistent=False)
        self.register_buffer("known_K", torch.from_numpy(np.flatnonzero(data.trained)), persistent=False)
        if stage == "fit" and (self.warm_start or data.warm_start):
            self._start_warm(data)
        if stage != "predict":
            self.asked = data.queries("test" if stage == "test" else "validation")

    def _start_warm(self, data: HistoryData) -> None:
        """Takes the checkpoint's weights; in a run that goes on from a later one, Lightning loads that over them."""
        if self.warm_start is None or self.warm_start != data.warm_start:
            raise ValueError(
                f"model.warm_start is {self.warm_start}, data.warm_start {data.warm_start}; give both the same"
            )
        before = Trained.open(self.warm_start)
        described = described_by(data.item_codes, data.num_items)
        self.towers.load_state_dict(grown(before.towers, self.towers, before.trained, described))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [Repeatable(), Finite()]

    def on_train_epoch_start(self) -> None:
        self.loss.start_epoch()

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        history_BL, target_T, row_U = batch.history.items_BL, batch.target_T, self.known_K
        negatives = self.loss.draw(target_T, self.known_K, self.frequency_N)
        if negatives is not None:
            row_U = torch.cat([history_BL.flatten(), target_T, negatives.new]).unique()
        # Each item of the step goes through its tower once, however often it occurs; rows become places among these.
        item_UD = self.towers.item(self.catalogue.take(row_U))
        query_BLD = self.towers.user(F.embedding(torch.searchsorted(row_U, history_BL), item_UD), batch.history)
        query_PD = query_BLD.flatten(0, 1)[batch.position_P]
        unit = self.towers.architecture.unit
        step = Step(query_PD, item_UD, row_U, target_T, batch.owner_T, unit, self.frequency_N[row_U])
        loss = self.loss(step, negatives)
        positions = len(target_T) if batch.weight else 0  # of weight 0: what another worker counts already
        self.log("train_loss", loss, prog_bar=True, on_epoch=True, on_step=False, batch_size=positions, sync_dist=True)
        return loss * batch.weight

    def on_validation_epoch_start(self) -> None:
        self.item_ND = self.catalogue.embed(self.towers)

    on_test_epoch_start = on_validation_epoch_start
    on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: QueryBatch, batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: QueryBatch, batch_idx: int) -> None:
        self._measure(batch, "test")

    def predict_step(self, batch: QueryBatch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Which queries a batch answers [Q], and their vectors [Q, D]."""
        return batch.query_Q, self._queries(batch)

    def _queries(self, batch: QueryBatch) -> Tensor:
        vectors = self.towers.user(F.embedding(batch.history.items_BL, self.item_ND), batch.history)
        return vectors.flatten(0, 1)[batch.position_Q]

    def _measure(self, batch: QueryBatch, prefix: str) -> None:
        """Full ranking over all items, what the user has seen left out; see recsys.evaluate for the whole report."""
        query_PD = self._queries(batch)
        asked = self.asked.take(batch.query_Q.cpu().numpy())
        score_QN = query_PD @ self.item_ND.T
        seen = self.trainer.datamodule.seen(asked)  # type: ignore[attr-defined]
        score_QN[tuple(torch.from_numpy(place).to(self.device) for place in seen)] = -torch.inf
        ndcg, hit = _ndcg_and_hit(score_QN.topk(min(K, score_QN.shape[1])).indices, asked)
        self.log(f"{prefix}_ndcg@{K}", ndcg, prog_bar=True, on_epoch=True, batch_size=len(asked), sync_dist=True)
        self.log(f"{prefix}_hit@{K}", hit, on_epoch=True, batch_size=len(asked), sync_dist=True)

    def configure_optimizers(self) -> Any:
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            self._groups(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused
        )
        if self.warm_start and self.optimizer == "carry":
            said, before = read_checkpoint(self.warm_start)["optimizer_states"][0], Trained.open(self.warm_start)
            state = carried(said["state"], before.towers, self.towers, before.trained)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        steps = self.trainer.estimated_stepping_batches  # infinite if nothing but early stopping ends the training
        warmup = min(self.warmup_steps, steps / 10)

        def factor(step: int) -> float:
            rising = min(1.0, (step + 1) / max(1, warmup))
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) if self.decay else 1.0
            return rising * falling

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by learning rate, in the order in which they have ever been numbered."""
        if self.feature_learning_rate == self.learning_rate:
            return [{"params": list(self.parameters())}]
        features = set(self.towers.item.sum.parts[1:].parameters())  # the first are the ids
        return [
            {"params": list(run), "lr": self.feature_learning_rate if theirs else self.learning_rate}
            for theirs, run in itertools.groupby(self.parameters(), features.__contains__)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["towers"] = self.towers.config()
        checkpoint["dimensions"] = list(self.loss.dimensions(self.towers.architecture.dimension))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of other data or other towers by name, before weights of other shapes say it worse."""
        data = self._trainer and self._trainer.datamodule  # type: ignore[attr-defined]
        if not data:
            return
        state = checkpoint.get(type(data).__qualname__)
        if state is None or "towers" not in checkpoint:
            raise ArtifactError("the file is not a checkpoint of `recsys fit`; check its path")
        data.load_state_dict(state)
        own = self.towers.config()["architecture"]
        refuse_another_architecture(checkpoint["towers"]["architecture"], own, ArtifactError)


def _ndcg_and_hit(top_QK: Tensor, asked: Queries) -> tuple[Tensor, Tensor]:
    counts = torch.from_numpy(asked.target_offsets[1:] - asked.target_offsets[:-1])
    query = torch.arange(len(asked)).repeat_interleave(counts)
    relevant = torch.zeros(len(asked), top_QK.shape[1], dtype=torch.bool)
    matches = top_QK.cpu()[query] == torch.from_numpy(asked.targets)[:, None]
    place = matches.nonzero()
    relevant[query[place[:, 0]], place[:, 1]] = True
    discount = 1 / torch.log2(torch.arange(top_QK.shape[1], dtype=torch.float32) + 2)
    ideal = discount.cumsum(0)[counts.clamp(1, top_QK.shape[1]) - 1]
    return ((relevant * discount).sum(1) / ideal).mean(), relevant.any(1).float().mean()
