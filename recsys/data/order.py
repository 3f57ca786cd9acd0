"""Orders of tens of millions of rows: stable sorting by integers, and who appears first."""

from __future__ import annotations

import numpy as np


def stable_order(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: the positions that sort integer keys [n]; equal keys keep their order.

    Where key and position fit into 64 bits together they are sorted as one number, which NumPy does several times
    faster than a stable argsort.
    """
    if not len(keys):
        return np.empty(0, dtype=np.int64)
    lowest = int(keys.min())
    bits = (len(keys) - 1).bit_length()
    if bits + (int(keys.max()) - lowest).bit_length() > 64:
        return np.argsort(keys, kind="stable")
    packed = (keys.astype(np.int64) - lowest).astype(np.uint64)
    packed <<= np.uint64(bits)
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << bits) - 1)
    return packed.view(np.int64)


def by_first_appearance(codes: np.ndarray, number: int) -> np.ndarray:
    """int64 [number]: the codes 0 … number−1, all of which occur in `codes` [n], in the order they first do."""
    first = np.empty(number, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of repeated assignments the last one stays
    return np.argsort(first)


def repeats(groups: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """int64 [m]: positions of the rows [n] that equal an earlier row of their group in every column.

    Args:
        groups: [n], not decreasing; rows of a group stand together.
        columns: [n] each.
    """
    follows = groups[1:] == groups[:-1]
    shared = np.flatnonzero(np.append(follows, False) | np.insert(follows, 0, False))
    keys = [groups[shared], *(column[shared] for column in columns)]
    order = np.lexsort(keys[::-1])  # stable: the earliest of equal rows comes first
    equal = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    return np.sort(shared[order[1:][equal]])
