"""New interactions put to their places among those of a dataset, which are read but neither parsed nor sorted again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recsys.data.dataset import Dataset
from recsys.data.order import repeats, stable_order


def places(
    base: Dataset, users: np.ndarray, parts: np.ndarray | None, times: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Where interactions belong among a dataset's, found by as many steps as the longest history has binary digits.

    Args:
        base: the dataset.
        users: [n], of the new interactions, by row; those unknown to the dataset from its `num_users` on.
        parts: [n], None if not declared.
        times: [n], None if not declared.

    Returns:
        int64 [n] twice: where the dataset's interactions equal in user, part and time begin, and where they end. A new
        one belongs at the end: after what was there before.
    """
    # Who is unknown to the dataset stands behind everybody: the last offset, twice.
    offsets = np.append(base.user_offsets, len(base))
    known = np.minimum(users, base.num_users)
    start, end = offsets[known], offsets[known + 1]
    columns = [(old, new) for old, new in ((base.parts, parts), (base.times, times)) if old is not None]

    def before(at: np.ndarray, which: np.ndarray, or_equal: bool) -> np.ndarray:
        less, equal = np.zeros(len(at), dtype=bool), np.ones(len(at), dtype=bool)
        for old, new in columns:
            assert new is not None  # one schema, so both have the column
            there, here = old[at], new[which]
            less |= equal & (there < here)
            equal &= there == here
        return less | equal if or_equal else less

    first = _bisected(start, end, lambda at, which: before(at, which, or_equal=False))
    return first, _bisected(first, end, lambda at, which: before(at, which, or_equal=True))


def among(
    base: Dataset, first: np.ndarray, end: np.ndarray, items: np.ndarray, events: np.ndarray | None
) -> np.ndarray:
    """bool [n]: which of the new interactions equal one of the dataset's in item and event, too.

    Args:
        base: the dataset.
        first: [n], where its interactions equal in user, part and time begin.
        end: [n], where they end.
        items: [n], of the new interactions.
        events: [n], None if not declared.
    """
    found = np.zeros(len(first), dtype=bool)
    near = np.flatnonzero(first < end)
    starts, which = np.unique(first[near], return_index=True)
    lengths = end[near][which] - starts
    # Every such stretch once, however many new interactions meet it.
    old = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    stretch = np.concatenate([np.repeat(starts, lengths), first[near]])
    differing = [np.concatenate([base.items[old], items[near]])]
    if base.events is not None and events is not None:
        differing.append(np.concatenate([base.events[old], events[near]]))
    order = stable_order(stretch)
    repeated = order[repeats(order, [stretch], differing)] - len(old)
    found[near[repeated[repeated >= 0]]] = True
    return found


def inserted(old: np.ndarray, new: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The old values [m] with new ones [n] between them, each before the old value of the position given [n].

    Positions do not fall; new values of one position keep their order.
    """
    merged = np.empty(len(old) + len(new), dtype=old.dtype)
    is_old = np.ones(len(merged), dtype=bool)
    is_old[before + np.arange(len(new))] = False
    merged[is_old] = old
    merged[~is_old] = new
    return merged


def _bisected(start: np.ndarray, end: np.ndarray, before: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """int64 [n]: for each of n sorted stretches, the first position that is not `before(positions, stretches)`."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    while len(open_ := np.flatnonzero(low < high)):
        middle = (low[open_] + high[open_]) // 2
        is_before = before(middle, open_)
        low[open_[is_before]] = middle[is_before] + 1
        high[open_[~is_before]] = middle[~is_before]
    return low
