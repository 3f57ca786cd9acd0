"""What training asks of a stretch of history: which queries, and which right answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch

from recsys.data.batches import TrainBatch
from recsys.data.dataset import Dataset
from recsys.data.history import histories, histories_at


class Targets(Protocol):
    """Makes training batches of stretches of history; a configuration names the class.

    Attributes:
        asks_for_first: whether the oldest item of a history can be an answer.
    """

    asks_for_first: ClassVar[bool]

    def batch(
        self,
        dataset: Dataset,
        users: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        profiles: Mapping[str, np.ndarray],
        rng: np.random.Generator,
    ) -> TrainBatch:
        """One batch.

        Args:
            dataset: where the interactions stand.
            users: int64 [B], user rows.
            starts: int64 [B], the first positions of the stretches.
            ends: int64 [B], the positions after their last; at least two after their starts.
            profiles: encoded features of all users, feature name to [num_users, …].
            rng: of what is drawn anew in each epoch.

        Returns:
            A batch whose histories are at most as long as the stretches without their last item.
        """
        ...


@dataclass(frozen=True)
class NextItem:
    """At each position, the item taken next."""

    asks_for_first: ClassVar[bool] = False

    def batch(
        self,
        dataset: Dataset,
        users: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        profiles: Mapping[str, np.ndarray],
        rng: np.random.Generator,
    ) -> TrainBatch:
        """As `Targets.batch`."""
        history = histories(dataset, users, starts, ends - 1, profiles)
        width = history.items_BL.shape[1]
        real = np.arange(width) < (ends - 1 - starts)[:, None]
        next_place = np.minimum(starts[:, None] + 1 + np.arange(width), len(dataset) - 1)
        targets = np.asarray(dataset.items)[next_place[real]].astype(np.int64)
        return TrainBatch(history, torch.from_numpy(np.flatnonzero(real)), torch.from_numpy(targets))


@dataclass(frozen=True)
class HeldOutPart:
    """For histories that are sets: some of a set, drawn anew in each epoch, are the answers, the rest is the query.

    As denoising autoencoders are trained (Wu et al., 2016, "Collaborative Denoising Auto-Encoders").

    Args:
        least: the smallest share of a set that is held out; at least one item is.
        most: the largest.
    """

    asks_for_first: ClassVar[bool] = True
    least: float = 0.2
    most: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1:
            raise ValueError(f"targets hold out from {self.least} to {self.most}; choose shares from 0 to 1, ascending")

    def batch(
        self,
        dataset: Dataset,
        users: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        profiles: Mapping[str, np.ndarray],
        rng: np.random.Generator,
    ) -> TrainBatch:
        """As `Targets.batch`."""
        lengths = ends - starts
        held_out = np.rint(rng.uniform(self.least, self.most, len(users)) * lengths).astype(np.int64)
        kept = lengths - held_out.clip(1, lengths - 1)
        # Shuffled: padding sorts last.
        order = rng.random((len(users), lengths.max()))
        order[np.arange(lengths.max()) >= lengths[:, None]] = 2
        place = starts[:, None] + order.argsort(axis=1)
        history = histories_at(dataset, users, place[:, : kept.max()], kept, profiles)
        column = np.arange(lengths.max())
        asked = (column >= kept[:, None]) & (column < lengths[:, None])
        targets = np.asarray(dataset.items)[place[asked]].astype(np.int64)
        position = np.arange(len(users)) * history.items_BL.shape[1] + kept - 1
        owner = np.repeat(np.arange(len(users)), lengths - kept)
        return TrainBatch(history, torch.from_numpy(position), torch.from_numpy(targets), torch.from_numpy(owner))


@dataclass(frozen=True)
class AllActions:
    """At each position, all of the next few items: what a user will take, in whatever order (dense all-action loss).

    Pancha et al., 2022, "PinnerFormer" (arXiv 2205.04507), section 3.3, with all of the positions as queries. Better
    than the next item alone where a model is asked days after it was trained.

    Args:
        count: how many of the next items are answers.
    """

    asks_for_first: ClassVar[bool] = False
    count: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"targets.count is {self.count}; at least the next item is an answer")

    def batch(
        self,
        dataset: Dataset,
        users: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        profiles: Mapping[str, np.ndarray],
        rng: np.random.Generator,
    ) -> TrainBatch:
        """As `Targets.batch`."""
        history = histories(dataset, users, starts, ends - 1, profiles)
        width = history.items_BL.shape[1]
        place = starts[:, None, None] + np.arange(width)[:, None] + 1 + np.arange(self.count)
        asked = place < ends[:, None, None]
        real = asked[:, :, 0]
        targets = np.asarray(dataset.items)[place[asked]].astype(np.int64)
        owner = np.repeat(np.arange(real.sum()), asked.sum(axis=2)[real])
        return TrainBatch(
            history, torch.from_numpy(np.flatnonzero(real)), torch.from_numpy(targets), torch.from_numpy(owner)
        )
