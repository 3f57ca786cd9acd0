"""Batches for training and evaluation, of histories of like length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.data.history import History, histories, windows
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
from recsys.data.vocabulary import FeatureEncoder, Input


@dataclass(frozen=True)
class TrainBatch:
    """Histories and what came next at each of their positions.

    Attributes:
        history: [B, L].
        position_P: int64, real positions, as indices into the flattened [B·L].
        target_P: int64, the item row taken right after each.
    """

    history: History
    position_P: Tensor
    target_P: Tensor

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(self.history.to(device), self.position_P.to(device), self.target_P.to(device))


@dataclass(frozen=True)
class QueryBatch:
    """Histories, and the queries that end at some of their positions.

    Attributes:
        history: [B, L].
        position_Q: int64, as indices into the flattened [B·L].
        query_Q: int64, which of the queries asked for each is.
    """

    history: History
    position_Q: Tensor
    query_Q: Tensor

    def to(self, device: torch.device) -> QueryBatch:
        return QueryBatch(self.history.to(device), self.position_Q.to(device), self.query_Q.to(device))


def like_lengths(lengths: np.ndarray, budget: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Groups sequences of like length, at most `budget` positions a batch once padded.

    Args:
        lengths: int64 [n], all at least 1.
        budget: positions; a sequence longer than that is a batch alone.
        rng: shuffles who meets whom, and the order of batches; None keeps a fixed order. The number of batches is the
            same for every draw.

    Returns:
        Indices into `lengths`, a batch each.
    """
    # Lengths that share a bucket (12 % wide) are exchangeable, which leaves room to shuffle.
    bucket = np.ceil(np.log(lengths) / np.log(1.12)).astype(np.int64)
    shuffled = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = shuffled[np.argsort(bucket[shuffled], kind="stable")]
    longest = np.zeros(bucket.max(initial=0) + 1, dtype=np.int64)
    np.maximum.at(longest, bucket, lengths)
    batches, start = [], 0
    widths = longest[bucket[order]]  # rising
    while start < len(order):
        room = widths[start : start + budget // widths[start] + 1]  # widths rise, so no more than these can fit
        most = np.searchsorted(room * np.arange(1, len(room) + 1), budget, side="right")
        end = start + max(1, int(most))
        batches.append(order[start:end])
        start = end
    if rng is not None:
        rng.shuffle(batches)
    return batches


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, count: int, make: Any) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


class HistoryData(pl.LightningDataModule):
    """A prepared dataset and a split of it, as batches.

    Args:
        dataset: the directory that `recsys prepare` wrote.
        split: how interactions are divided into train, validation and test; by time if left out.
        max_length: L, how many of the newest interactions of a history count; linked from the model.
        batch_positions: positions of a training batch, padding included; if left out, a fiftieth of an epoch, and from
            256 to 8,192.
        max_validation_queries: validation asks at most this many, a fixed random sample; `recsys evaluate` asks all.
        seed: of the order of batches.
    """

    def __init__(
        self,
        dataset: Path,
        split: TimeSplit | LeaveOneOut | GivenSplit | None = None,
        max_length: int = 200,
        batch_positions: int | None = None,
        max_validation_queries: int = 10_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset = Dataset.open(dataset)
        self.split = split or TimeSplit()
        self.cuts: Cuts = self.split.cut(self.dataset)
        self.max_length = max_length
        ends = self.cuts.validation_start
        starts = np.maximum(self.dataset.user_offsets[:-1], ends - self.max_length - 1)
        self.batch_positions = batch_positions or int(np.clip(np.maximum(ends - starts - 1, 0).sum() // 50, 256, 8192))
        self.max_validation_queries = max_validation_queries
        self.seed = seed
        schema = self.dataset.schema
        counts = train_counts(self.dataset, self.cuts)
        if not counts.sum():
            raise ValueError(f"{self.split} leaves no interaction of {dataset} to train on; move its cuts")
        self.trained = counts > 0
        self.frequency = (counts / counts.sum()).astype(np.float32)
        items, users = schema.items, schema.users
        known_users = self.cuts.validation_start > self.dataset.user_offsets[:-1]
        item_table, user_table = self.dataset.item_features(), self.dataset.user_features()
        self.item_encoder = FeatureEncoder.fit(items.features if items else (), item_table, self.trained)
        self.user_encoder = FeatureEncoder.fit(users.features if users else (), user_table, known_users)
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
        ends = self.cuts.validation_start
        starts = np.maximum(self.dataset.user_offsets[:-1], ends - self.max_length - 1)
        users = np.flatnonzero(ends - starts >= 2)
        if not len(users):
            raise ValueError("no user has two interactions to train on; a target needs a history before it")
        lengths = (ends - starts - 1)[users]
        count = len(like_lengths(lengths, self.batch_positions, np.random.default_rng(0)))

        def epoch() -> Iterator[TrainBatch]:
            # Seeded by the epoch, so that a resumed run goes on as the undisturbed one would.
            now = self.trainer.current_epoch if self.trainer else 0
            for chosen in like_lengths(lengths, self.batch_positions, np.random.default_rng((self.seed, now))):
                yield self._train_batch(users[chosen], starts[users[chosen]], ends[users[chosen]])

        return DataLoader(_Stream(count, epoch), batch_size=None)

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

    def _train_batch(self, users: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> TrainBatch:
        history = histories(self.dataset, users, starts, ends - 1, self.profiles)
        width = history.items_BL.shape[1]
        real = np.arange(width) < (ends - 1 - starts)[:, None]
        next_place = np.minimum(starts[:, None] + 1 + np.arange(width), len(self.dataset) - 1)
        targets = np.asarray(self.dataset.items)[next_place[real]].astype(np.int64)
        return TrainBatch(history, torch.from_numpy(np.flatnonzero(real)), torch.from_numpy(targets))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must remember of its data: which ids its rows are, and how features were encoded."""
        return {
            "dataset": self.dataset.manifest.digest,
            "item_ids": self.dataset.item_ids.digest,
            "split": described(self.split),
            "trained": torch.from_numpy(self.trained),
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
                    f"under {self.split}; use the dataset and the split it was trained on"
                )


def query_loader(
    dataset: Dataset, queries: Queries, profiles: Mapping[str, np.ndarray], max_length: int, budget: int = 1 << 14
) -> DataLoader[QueryBatch]:
    """Batches whose positions, between them, answer every query once.

    Args:
        dataset: where the histories stand.
        queries: what is asked.
        profiles: encoded features of all users, feature name to [num_users, …].
        max_length: L, how many of the newest interactions of a history count.
        budget: positions of a batch, padding included.
    """
    asked = windows(dataset, queries, max_length)
    batches = like_lengths(asked.ends - asked.starts, budget, None)
    by_window = np.argsort(asked.window, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(asked.window, minlength=len(asked.users)))])

    def all_batches() -> Iterator[QueryBatch]:
        for chosen in batches:
            history = histories(dataset, asked.users[chosen], asked.starts[chosen], asked.ends[chosen], profiles)
            counts = np.diff(offsets)[chosen]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            query = by_window[np.repeat(offsets[:-1][chosen], counts) + within]
            place = np.repeat(np.arange(len(chosen)), counts) * history.items_BL.shape[1] + asked.position[query]
            yield QueryBatch(history, torch.from_numpy(place), torch.from_numpy(query))

    return DataLoader(_Stream(len(batches), all_batches), batch_size=None)


def refuse_other_ids(digest: str, dataset: Dataset) -> None:
    """Raises ArtifactError unless `digest`, which a checkpoint remembers, is that of the dataset's item ids."""
    if digest != dataset.item_ids.digest:
        raise ArtifactError(
            f"the checkpoint was trained on other item ids ({digest[:12]}) than {dataset.path} has "
            f"({dataset.item_ids.digest[:12]}); its rows mean other items. Use the dataset it was trained on"
        )
