"""The data module that training reads: a prepared dataset, cut by a split, as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from recsys.artifacts import ArtifactError
from recsys.data.batches import QueryBatch, Stream, TrainBatch, like_lengths, query_loader, refuse_other_ids, share
from recsys.data.dataset import Dataset
from recsys.data.split import (
    Cuts,
    GivenSplit,
    HeldOut,
    LeaveOneOut,
    Queries,
    TimeSplit,
    described,
    everyone,
    queries_of,
    train_counts,
    unseen_targets,
)
from recsys.data.targets import AllActions, HeldOutPart, NextItem
from recsys.data.vocabulary import FeatureEncoder, Input
from recsys.data.warm import Before, WarmStartError, replayed


class HistoryData(pl.LightningDataModule):
    """A prepared dataset and a split of it, as batches.

    Args:
        dataset: the directory that `recsys prepare` wrote.
        split: how interactions are divided into train, validation and test; by time if left out.
        max_length: L, how many of the newest interactions of a history count; linked from the model.
        batch_positions: positions of a training batch, padding included; if left out, a fiftieth of an epoch, and from
            256 to 8,192.
        max_validation_queries: validation asks at most this many, a fixed random sample; `recsys evaluate` asks all.
        seed: of the order of batches, and of what training draws at random in each epoch.
        warm_start: the checkpoint that training starts from, whose rows and codes then keep their meaning; linked from
            the command line.
        stretches: how many stretches of `max_length` targets a long history is learnt from, the newest ones; what is
            older is left out.
        targets: what training asks of a stretch: `NextItem`, `AllActions`, or for sets `HeldOutPart`.
        replay: with a warm start, the share of users trained on in an epoch, drawn anew each time, of those who have
            nothing newer than what the checkpoint was trained on; the others are all trained on, always.
    """

    def __init__(
        self,
        dataset: Path,
        split: TimeSplit | LeaveOneOut | GivenSplit | None = None,
        max_length: int = 200,
        batch_positions: int | None = None,
        max_validation_queries: int = 10_000,
        seed: int = 0,
        warm_start: Path | None = None,
        replay: float = 1.0,
        stretches: int = 1,
        targets: NextItem | AllActions | HeldOutPart = NextItem(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if stretches < 1:
            raise ValueError(f"data.stretches is {stretches}; learn from at least 1")
        if not 0 <= replay <= 1:
            raise ValueError(f"data.replay is {replay}; choose a share from 0 to 1")
        self.dataset = Dataset.open(dataset)
        self.split = split or TimeSplit()
        self.cuts: Cuts = self.split.cut(self.dataset)
        self.max_length = max_length
        # What is learnt from: each user's newest interactions.
        self._users, self._starts, self._ends = _stretches(self.dataset, self.cuts, self.max_length, stretches)
        lengths = np.diff(self.dataset.user_offsets)
        oldest = self.cuts.validation_start.copy()
        np.minimum.at(oldest, self._users, self._starts)
        position = np.arange(len(self.dataset))
        after = np.repeat(oldest if targets.asks_for_first else oldest + 1, lengths)
        is_target = (position >= after) & (position < np.repeat(self.cuts.validation_start, lengths))
        self.batch_positions = batch_positions or int(np.clip(is_target.sum() // 50, 256, 8192))
        self.max_validation_queries = max_validation_queries
        self.seed = seed
        self.targets = targets
        schema = self.dataset.schema
        counts = train_counts(self.dataset, self.cuts)
        if not counts.sum():
            raise ValueError(f"{self.split} leaves no interaction of {dataset} to train on; move its cuts")
        self.trained = counts > 0
        items, users = schema.items, schema.users
        known_users = self.cuts.validation_start > self.dataset.user_offsets[:-1]
        times, newest = self.dataset.times, (self.cuts.validation_start - 1)[known_users]
        self.trained_until = None if times is None else int(times[newest].max())
        item_table, user_table = self.dataset.item_features(), self.dataset.user_features()
        before = None if warm_start is None else Before.of(warm_start, self.dataset)
        if before is None:
            self.item_encoder = FeatureEncoder.fit(items.features if items else (), item_table, self.trained)
            self.user_encoder = FeatureEncoder.fit(users.features if users else (), user_table, known_users)
        else:
            self.item_encoder = before.grown(before.item_encoder, items, item_table, self.trained)
            self.user_encoder = before.grown(before.user_encoder, users, user_table, known_users)
        self.warm_start, self.replay, self._news = warm_start, replay, np.ones(self.dataset.num_users, dtype=bool)
        if before is not None and before.trained_until is not None and times is not None and replay < 1:
            self._news[known_users] = times[newest] > before.trained_until
        if not self._news.all() and not self._drawn(0)[0].size:
            raise WarmStartError(f"{dataset} has nothing newer to train on than {warm_start} had; raise data.replay")
        # Each item's share of the targets of an epoch, as is expected: who is replayed counts as often as drawn.
        weights = np.repeat(np.where(self._news, 1.0, replay), lengths)[is_target]
        expected = np.bincount(
            np.asarray(self.dataset.items)[is_target], weights=weights, minlength=self.dataset.num_items
        )
        self.frequency = (expected / (expected.sum() or 1)).astype(np.float32)
        self.item_codes = self.item_encoder.encode(item_table)
        self.profiles = self.user_encoder.encode(user_table)

    # What the model's sizes are linked to.
    @property
    def num_items(self) -> int:
        return self.dataset.num_items

    @property
    def item_inputs(self) -> tuple[Input, ...]:
        return self.item_encoder.inputs

    @property
    def user_inputs(self) -> tuple[Input, ...]:
        return self.user_encoder.inputs

    @property
    def num_events(self) -> int:
        return len(self.dataset.event_names)

    @property
    def has_times(self) -> bool:
        return self.dataset.times is not None

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Batches of training sequences; where several workers train, each gets its share of every batch."""
        users, starts, ends = self._users, self._starts, self._ends
        _, widths = self._drawn(0)
        if not len(widths):
            raise ValueError("no user has two interactions to train on; a target needs a history before it")
        count = len(like_lengths(widths, self.batch_positions, np.random.default_rng(0)))

        def epoch() -> Iterator[TrainBatch]:
            # Seeded by the epoch, so that a resumed run goes on as the undisturbed one would, and all workers draw the
            # same batches.
            now = self.trainer.current_epoch if self.trainer else 0
            rank, workers = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            drawn, widths = self._drawn(now)
            lengths = (ends - starts - 1)[drawn]
            for batch in like_lengths(widths, self.batch_positions, np.random.default_rng((self.seed, now))):
                part, weight = share(batch, lengths, rank, workers)
                chosen = drawn[part]
                drawing = np.random.default_rng((self.seed, now, int(drawn[batch[0]]), rank))
                made = self.targets.batch(
                    self.dataset, users[chosen], starts[chosen], ends[chosen], self.profiles, drawing
                )
                yield replace(made, weight=weight)

        return DataLoader(Stream(count, epoch), batch_size=None)

    def _drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What an epoch trains on, and the length to batch each stretch as: the same lengths in every epoch.

        Returns:
            Indices of stretches, int64 [n], and their numbers of positions [n], at least their own.
        """
        lengths, news = self._ends - self._starts - 1, self._news[self._users]
        always = np.flatnonzero((lengths > 0) & news)
        others = np.flatnonzero((lengths > 0) & ~news)
        chosen, widths = replayed(lengths[others], self.replay, np.random.default_rng((self.seed, epoch, 1)))
        return np.concatenate([always, others[chosen]]), np.concatenate([lengths[always], widths])

    def val_dataloader(self) -> DataLoader[QueryBatch]:
        return self.query_loader(self.queries("validation"))

    def test_dataloader(self) -> DataLoader[QueryBatch]:
        return self.query_loader(self.queries("test"))

    def predict_dataloader(self) -> DataLoader[QueryBatch]:
        return self.query_loader(everyone(self.dataset))

    def queries(self, part: HeldOut) -> Queries:
        """The queries that a part of the split asks, about unseen items; for validation, at most so many."""
        queries, _ = unseen_targets(self.dataset, queries_of(self.dataset, self.cuts, part))
        if part == "validation" and len(queries) > self.max_validation_queries:
            chosen = np.random.default_rng(0).choice(len(queries), self.max_validation_queries, replace=False)
            queries = queries.take(np.sort(chosen))
        return queries

    def seen(self, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Which items stand in each query's history: query indices and item rows, both int64 [n], in pairs."""
        starts = self.dataset.user_offsets[queries.user]
        counts = queries.end - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.asarray(self.dataset.items)[np.repeat(starts, counts) + within].astype(np.int64)
        return np.repeat(np.arange(len(queries)), counts), rows

    def query_loader(self, queries: Queries) -> DataLoader[QueryBatch]:
        """Batches whose positions, between them, answer every query once."""
        return query_loader(self.dataset, queries, self.profiles, self.max_length)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must remember of its data: which ids its rows are, and how features were encoded."""
        return {
            "dataset": self.dataset.manifest.digest,
            "item_ids": self.dataset.item_ids.digest,
            "event_names": self.dataset.event_names,
            "split": described(self.split),
            "trained": torch.from_numpy(self.trained),
            "trained_until": self.trained_until,
            "item_encoder": self.item_encoder.to_dict(),
            "user_encoder": self.user_encoder.to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose rows are other items than this dataset's, or whose codes mean other values."""
        refuse_other_ids(state_dict["item_ids"], self.dataset)
        own = self.state_dict()
        for name in ("split", "item_encoder", "user_encoder"):
            if state_dict[name] != own[name]:
                raise ArtifactError(
                    f"the checkpoint was trained with another {name.replace('_', ' ')} than {self.dataset.path} has "
                    f"under {self.split}; use the dataset and the split it was trained on, and its warm_start if any"
                )


def _stretches(dataset: Dataset, cuts: Cuts, length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The newest `count` stretches of each training history, each of up to `length` targets and what stands before it.

    The oldest item of one is the newest target of the stretch before, so that no target comes twice.

    Returns:
        User rows, starts and ends (exclusive), int64 [S]; at least one a user, which may be empty.
    """
    users, ends, begin = np.arange(dataset.num_users), cuts.validation_start, dataset.user_offsets[:-1]
    found = []
    for _ in range(count):
        starts = np.maximum(begin[users], ends - length - 1)
        found.append((users, starts, ends))
        more = starts > begin[users]
        users, ends = users[more], starts[more] + 1
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))  # type: ignore[return-value]
