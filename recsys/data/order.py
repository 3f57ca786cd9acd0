"""Orders of tens of millions of rows: stable sorting by integers, and who appears first."""

from __future__ import annotations

import numpy as np


def stable_order(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: the positions that sort integer keys [n]; equal keys keep their order.

    Where key and position fit into 64 bits together they are sorted as one number, which NumPy does several times
    faster than a stable argsort.
    """
    if not len(keys) or bool((keys[1:] >= keys[:-1]).all()):
        return np.arange(len(keys))
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


def repeats(order: np.ndarray, grouping: list[np.ndarray], differing: list[np.ndarray]) -> np.ndarray:
    """int64 [m]: places in the order whose row equals an earlier one in every column.

    Args:
        order: [n], rows such that those equal in all grouping columns stand together.
        grouping: columns [n]; rows are compared only with neighbours equal in these.
        differing: columns [n]; the rest of what is compared.
    """
    follows = np.ones(len(order) - 1, dtype=bool) if len(order) else np.empty(0, dtype=bool)
    for column in grouping:
        ordered = column[order]
        follows &= ordered[1:] == ordered[:-1]
    follows = np.append(np.zeros(min(len(order), 1), dtype=bool), follows)
    shared = np.flatnonzero(follows | np.append(follows[1:], np.zeros(min(len(order), 1), dtype=bool)))
    groups = np.cumsum(~follows[shared])
    keys = [groups, *(column[order[shared]] for column in differing)]
    sorting = np.lexsort(keys[::-1])  # stable: the earliest of equal rows comes first
    equal = np.logical_and.reduce([key[sorting][1:] == key[sorting][:-1] for key in keys])
    return np.sort(shared[sorting[1:][equal]])
