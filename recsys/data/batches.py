"""Batches for training and evaluation, of histories of like length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.data.history import History, histories, windows
from recsys.data.split import Queries


@dataclass(frozen=True)
class TrainBatch:
    """Histories, queries at some of their positions, and the right answers.

    Attributes:
        history: [B, L].
        position_P: int64, of the queries, as indices into the flattened [B·L].
        target_T: int64, item rows.
        owner_T: int64, which query each target answers, ascending; None if each has one, in order.
        weight: what its mean loss counts for, where several workers share a batch (see `share`); 1 if none do.
    """

    history: History
    position_P: Tensor
    target_T: Tensor
    owner_T: Tensor | None = None
    weight: float = 1.0

    def to(self, device: torch.device) -> TrainBatch:
        owner_T = None if self.owner_T is None else self.owner_T.to(device)
        position_P, target_T = self.position_P.to(device), self.target_T.to(device)
        return TrainBatch(self.history.to(device), position_P, target_T, owner_T, self.weight)


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


def share(batch: np.ndarray, lengths: np.ndarray, rank: int, workers: int) -> tuple[np.ndarray, float]:
    """One worker's part of a batch, and what the mean loss over it must be multiplied by.

    Gradients are averaged over the W workers. With P positions in the batch and P_w in worker w's part, weights of
    W · P_w / P make that average the gradient of the mean over all P, which is what a worker alone would have had.

    Args:
        batch: int64 [B], indices into `lengths`, at least one.
        lengths: int64 [n], positions of each sequence.
        rank: which worker, from 0.
        workers: W.

    Returns:
        int64 [b], never empty, since every worker must take part in every step: one that has no sequence of its own
        computes another's, with weight 0.
    """
    part = batch[rank::workers]
    if not len(part):
        return batch[:1], 0.0
    return part, workers * int(lengths[part].sum()) / int(lengths[batch].sum())


class Stream(IterableDataset):  # type: ignore[type-arg]
    """As many batches as it says, made anew each time it is read.

    Args:
        count: how many `make` yields.
        make: a function that returns an iterator over them.
    """

    def __init__(self, count: int, make: Any) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


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

    return DataLoader(Stream(len(batches), all_batches), batch_size=None)


def refuse_other_ids(digest: str, dataset: Dataset) -> None:
    """Raises ArtifactError unless `digest`, which a checkpoint remembers, is that of the dataset's item ids."""
    if digest != dataset.item_ids.digest:
        raise ArtifactError(
            f"the checkpoint was trained on other item ids ({digest[:12]}) than {dataset.path} has "
            f"({dataset.item_ids.digest[:12]}); its rows mean other items. Use the dataset it was trained on"
        )
