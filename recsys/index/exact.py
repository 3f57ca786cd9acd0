"""Exact top-k by inner product in NumPy: the twin that every index is tested against, and the selection they share."""

from __future__ import annotations

import numpy as np

_COLUMNS_A_RESULT = 4  # block maxima a wanted result: enough that few scores pass the threshold they give
_BLOCK = 32  # scores a block at most; 32 to 64 measured fastest from 3,700 to 50,000 scores
_SCORES = 1 << 26  # scores held at a time: a quarter of a gigabyte, however many items there are


def best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores above −inf, ties by row, ascending.

    The k-th highest of the maxima of disjoint blocks is a lower bound of the k-th highest score, so one vectorised
    pass leaves a handful of candidates to sort: 10 µs for 3,700 scores, where argpartition takes 50 µs (and 400 µs
    when most of them are −inf, which its pivots handle badly).

    Args:
        scores: float [N], without NaN; −inf marks what may not be returned.
        k: how many are wanted, at least 1.

    Returns:
        scores [n] and rows int64 [n], n = min(k, number of scores above −inf).
    """
    columns = max(_COLUMNS_A_RESULT * k, len(scores) // _BLOCK)
    height = len(scores) // columns
    if height > 1:
        maxima = scores[: height * columns].reshape(height, columns).max(axis=0)
        maxima.partition(columns - k)
        threshold = maxima[columns - k]
        rows = (scores >= threshold if threshold > -np.inf else scores > -np.inf).nonzero()[0]
    else:
        rows = (scores > -np.inf).nonzero()[0]
    found = scores[rows]
    if len(rows) > 8 * k:  # many candidates (ties, or k near N): narrow before the sort
        kept = found >= np.partition(found, len(found) - k)[len(found) - k]
        rows, found = rows[kept], found[kept]
    order = (-found).argsort(kind="stable")[:k]
    return found[order], rows[order]


class Exact:
    """Full scan in NumPy, the twin of `Index` with the same `search`.

    Args:
        vectors: float32 [N, D].
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        eligible: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `recsys.index.search.Index.search`."""
        queries, exclude = checked(queries, k, eligible, exclude, *self._vectors.shape)
        scores, rows = unfilled(len(queries), k)
        together = max(1, min(256, _SCORES // max(1, len(self._vectors))))
        for start in range(0, len(queries), together):
            block = queries[start : start + together] @ self._vectors.T
            if eligible is not None:
                block[:, ~eligible] = -np.inf
            if exclude is not None:
                block[:, exclude] = -np.inf
            for q, query_scores in enumerate(block, start):
                found, at = best(query_scores, k)
                scores[q, : len(at)], rows[q, : len(at)] = found, at
        return scores, rows


def unfilled(num_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Results before anything was found: float32 [num_queries, k] of −inf and int64 [num_queries, k] of −1."""
    return np.full((num_queries, k), -np.inf, dtype=np.float32), np.full((num_queries, k), -1, dtype=np.int64)


def checked(
    queries: np.ndarray,
    k: int,
    eligible: np.ndarray | None,
    exclude: np.ndarray | None,
    num_items: int,
    dimension: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The queries as contiguous float32 and the rows to exclude, without those outside the index.

    Raises:
        ValueError: the arguments of a search are of the wrong shape or type, or a query is not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ValueError(f"queries have shape {list(queries.shape)}, expected [num_queries, {dimension}]; reshape them")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not np.isfinite(queries).all():
        raise ValueError("a query holds NaN or infinity; look at the user tower that made it")
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 item")
    if eligible is not None and (eligible.dtype != np.bool_ or eligible.shape != (num_items,)):
        raise ValueError(
            f"eligible is {eligible.dtype} {list(eligible.shape)}, expected bool [{num_items}]: one value an item"
        )
    if exclude is not None:
        exclude = np.asarray(exclude, dtype=np.int64)
        exclude = exclude[exclude.view(np.uint64) < num_items]  # what is negative is huge unsigned: one comparison
    return queries, exclude
