"""The log in order of time, and which of its interactions followed which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.data.dataset import Dataset

HOUR = 3_600_000  # milliseconds
PAUSE = HOUR // 2  # a longer one opens a new session


@dataclass(frozen=True)
class Pairs:
    """Two items that one user took, one after the other, oldest first.

    Attributes:
        earlier, later: int64 [n], item rows.
        times: int64 [n], of the later one, ascending.
        weights: float32 [n], less the more lay between them.
    """

    earlier: np.ndarray
    later: np.ndarray
    times: np.ndarray
    weights: np.ndarray

    def between(self, start: int, end: int) -> Pairs:
        """Those known at `end` (before it, not at it) and not before `start`, milliseconds."""
        some = slice(*np.searchsorted(self.times, (start, end)))
        return Pairs(self.earlier[some], self.later[some], self.times[some], self.weights[some])


@dataclass(frozen=True)
class Clicks:
    """Everybody's interactions, oldest first.

    Attributes:
        items: int64 [n], item rows.
        times: int64 [n], ascending, milliseconds.
        opening: bool [n], whether it opened a session: the user's first, or the first after a pause.
    """

    items: np.ndarray
    times: np.ndarray
    opening: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Clicks:
        """All of a dataset's.

        Raises:
            ValueError: it has no times.
        """
        times = times_of(dataset)
        order = np.argsort(times, kind="stable")
        return cls(np.asarray(dataset.items)[order].astype(np.int64), times[order], opens_session(dataset)[order])

    def between(self, start: int, end: int) -> Clicks:
        """As `Pairs.between`."""
        some = slice(*np.searchsorted(self.times, (start, end)))
        return Clicks(self.items[some], self.times[some], self.opening[some])


def times_of(dataset: Dataset) -> np.ndarray:
    """int64 [num_interactions], milliseconds; ValueError if the log has none."""
    if dataset.times is None:
        raise ValueError(
            f"{dataset.path} has no times, so nothing in it is new; declare a time column and prepare again"
        )
    return np.asarray(dataset.times)


def opens_session(dataset: Dataset) -> np.ndarray:
    """bool [num_interactions]: whether each is its user's first, or came after a pause."""
    times = times_of(dataset)
    opening = np.ones(len(dataset), dtype=np.bool_)
    opening[1:] = np.diff(times) > PAUSE
    starts = np.asarray(dataset.user_offsets)[:-1]
    opening[starts[starts < len(dataset)]] = True
    return opening


def pairs_of(dataset: Dataset, *, reach: int, within: int, fading: float) -> Pairs:
    """Every interaction with those of the same user shortly before it.

    Args:
        dataset: with times.
        reach: up to how many interactions before.
        within: milliseconds that may lie between.
        fading: weight of each further one, as a share of the one before.
    """
    times, items, users = times_of(dataset), np.asarray(dataset.items).astype(np.int64), dataset.user_rows
    found = []
    for back in range(1, min(reach, len(items) - 1) + 1):
        near = (users[back:] == users[:-back]) & (times[back:] - times[:-back] < within)
        near &= items[back:] != items[:-back]
        weights = np.full(near.sum(), fading ** (back - 1), dtype=np.float32)
        found.append((items[:-back][near], items[back:][near], times[back:][near], weights))
    if not found:
        nothing = np.empty(0, dtype=np.int64)
        return Pairs(nothing, nothing, nothing, nothing.astype(np.float32))
    earlier, later, when, weights = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(when, kind="stable")
    return Pairs(earlier[order], later[order], when[order], weights[order])
