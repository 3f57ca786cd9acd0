"""Histories: what users took, oldest first, as the padded arrays that the user tower reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.dataset import Dataset
from recsys.data.split import Queries

GAP_BUCKETS = 32


@dataclass(frozen=True)
class History:
    """A batch of histories, oldest first, aligned left; what stands behind a history's end is ignored.

    Attributes:
        items_BL: int64, item rows (0 as padding).
        lengths_B: int64, at least 1.
        events_BL: int64, event codes 0 … num_events − 1, or None.
        gaps_BL: int64, `gap_buckets` of the time since the interaction before, or None.
        users: encoded user features, feature name to [B, …]; empty if there are none.
        times_BL: int64, milliseconds since 1970 of each interaction, or None.
        asked_BL: int64, likewise, when the question at each position is asked: when the user's next interaction
            happened, or, after the last, as soon as that one; or None.
    """

    items_BL: Tensor
    lengths_B: Tensor
    events_BL: Tensor | None
    gaps_BL: Tensor | None
    users: Mapping[str, Tensor]
    times_BL: Tensor | None = None
    asked_BL: Tensor | None = None

    def to(self, device: torch.device) -> History:
        """The same batch on another device."""

        def moved(value: Tensor | None) -> Any:
            return None if value is None else value.to(device, non_blocking=True)

        users = {name: moved(value) for name, value in self.users.items()}
        return History(
            moved(self.items_BL),
            moved(self.lengths_B),
            moved(self.events_BL),
            moved(self.gaps_BL),
            users,
            moved(self.times_BL),
            moved(self.asked_BL),
        )


def gap_buckets(times: np.ndarray) -> np.ndarray:
    """Buckets the time since the interaction before, along the last axis.

    Args:
        times: int64 milliseconds [..., L], oldest first.

    Returns:
        int64 [..., L]: 0 for the first, else 1 + log2(1 + seconds), at most GAP_BUCKETS − 1.
    """
    seconds = np.maximum(np.diff(times, axis=-1), 0) / 1000
    buckets = np.minimum(1 + np.log2(1 + seconds), GAP_BUCKETS - 1).astype(np.int64)
    return np.concatenate([np.zeros_like(times[..., :1]), buckets], axis=-1)


def waits(times: Tensor, asked: Tensor) -> Tensor:
    """Buckets the time from each interaction to the question after it.

    Args:
        times: int64 milliseconds [...].
        asked: int64 milliseconds [...].

    Returns:
        int64 [...]: 1 + log2(1 + seconds), at most GAP_BUCKETS − 1; 1 where the question came first.
    """
    seconds = (asked - times).clamp_min(0).double() / 1000
    return (1 + torch.log2(1 + seconds)).long().clamp_max(GAP_BUCKETS - 1)


def histories(
    dataset: Dataset, users: np.ndarray, starts: np.ndarray, ends: np.ndarray, profiles: Mapping[str, np.ndarray]
) -> History:
    """The interactions at positions `starts` to `ends` [B] of each user, padded to the longest.

    Args:
        dataset: where they stand.
        users: int64 [B], user rows.
        starts: int64 [B], first positions.
        ends: int64 [B], positions after the last; each is after its start.
        profiles: encoded features of all users, feature name to [num_users, …].
    """
    lengths = ends - starts
    return histories_at(dataset, users, starts[:, None] + np.arange(lengths.max()), lengths, profiles)


def histories_at(
    dataset: Dataset, users: np.ndarray, place: np.ndarray, lengths: np.ndarray, profiles: Mapping[str, np.ndarray]
) -> History:
    """The interactions at given positions of each user, in the given order.

    Args:
        dataset: where they stand.
        users: int64 [B], user rows.
        place: int64 [B, L], positions; what stands behind a history's end is ignored.
        lengths: int64 [B], at least 1, the largest of them L.
        profiles: encoded features of all users, feature name to [num_users, …].
    """
    real = np.arange(place.shape[1]) < lengths[:, None]
    place = np.where(real, place, place[:, :1])

    def padded(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.where(real, values[place], 0).astype(np.int64))

    gaps, times, asked = None, None, None
    if dataset.times is not None:
        when = np.asarray(dataset.times[place])
        gaps, times = torch.from_numpy(np.where(real, gap_buckets(when), 0)), torch.from_numpy(when)
        last = dataset.user_offsets[users + 1][:, None] - 1
        asked = torch.from_numpy(np.asarray(dataset.times[np.minimum(place + 1, last)]))
    return History(
        items_BL=padded(dataset.items),
        lengths_B=torch.from_numpy(lengths.astype(np.int64)),
        events_BL=None if dataset.events is None else padded(dataset.events),
        gaps_BL=gaps,
        users={name: torch.from_numpy(values[users]) for name, values in profiles.items()},
        times_BL=times,
        asked_BL=asked,
    )


@dataclass(frozen=True)
class Windows:
    """Stretches of history that answer many queries in one pass: a causal tower's output at a position is the query
    that ends there, so queries whose histories start at the same place share one stretch, exactly.

    Attributes:
        users, starts, ends: int64 [W].
        window: int64 [Q], the stretch that answers each query.
        position: int64 [Q], at which position of it.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    window: np.ndarray
    position: np.ndarray


def windows(dataset: Dataset, queries: Queries, max_length: int) -> Windows:
    """Groups queries by where the newest `max_length` interactions of their history start."""
    starts = np.maximum(dataset.user_offsets[queries.user], queries.end - max_length)
    # A start belongs to one user only, so it names the stretch.
    unique, first, window = np.unique(starts, return_index=True, return_inverse=True)
    ends = np.zeros(len(unique), dtype=np.int64)
    np.maximum.at(ends, window, queries.end)
    return Windows(queries.user[first], unique, ends, window, queries.end - 1 - starts)
