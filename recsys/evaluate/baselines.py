"""What a model has to beat: popular items, recently popular items, and items like those of the history."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import sparse

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, Queries, in_training, train_counts

_CELLS = 1 << 23  # similarities held at a time while neighbours are found: 32 MB
_HOUR = 3_600_000  # milliseconds
_DAY = 24 * _HOUR


class Scorer(Protocol):
    """Anything that can rank all items for a query.

    It may learn from training interactions alone, and look at a query's history: all of the user's interactions before
    `queries.end`, whatever part of the split they are in.
    """

    def scores(self, queries: Queries) -> np.ndarray:
        """Scores of all items, higher is better.

        Returns:
            float32 [num_queries, num_items], without NaN.
        """
        ...


class Popular:
    """Every item's number of training interactions, the same for everyone."""

    def __init__(self, dataset: Dataset, cuts: Cuts) -> None:
        self._scores = train_counts(dataset, cuts).astype(np.float32)

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        return np.broadcast_to(self._scores, (len(queries), len(self._scores)))


class PopularRecent:
    """Every item's number of training interactions in the last days of training; all its training breaks ties.

    Args:
        dataset: with times.
        cuts: where training ends.
        days: how many days count, back from the last training interaction.

    Raises:
        ValueError: the dataset has no times, or days is not positive.
    """

    def __init__(self, dataset: Dataset, cuts: Cuts, *, days: float = 7) -> None:
        if dataset.times is None:
            raise ValueError(f"{dataset.path} has no times, so nothing in it is recent; leave PopularRecent out")
        if days <= 0:
            raise ValueError(f"days is {days}; the last days of training need at least part of one")
        trained = in_training(dataset, cuts)
        items, times = np.asarray(dataset.items)[trained], np.asarray(dataset.times)[trained]
        recent = items[times > times.max(initial=0) - days * _DAY]
        order = np.lexsort((train_counts(dataset, cuts), np.bincount(recent, minlength=dataset.num_items)))
        self._scores = np.empty(dataset.num_items, dtype=np.float32)
        self._scores[order] = np.arange(dataset.num_items)

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        return np.broadcast_to(self._scores, (len(queries), len(self._scores)))


class PopularNow:
    """Every item's number of interactions in the last hours before each query, everybody's, to the millisecond.

    What a live service could count, if it counted anew for each request. An interaction at the query's own time does
    not count, nor does a later one.

    Args:
        dataset: with times.
        hours: how many hours count, back from each query.

    Raises:
        ValueError: the dataset has no times, or hours is not positive.
    """

    def __init__(self, dataset: Dataset, *, hours: float = 1) -> None:
        if dataset.times is None:
            raise ValueError(f"{dataset.path} has no times, so nothing in it is of now; leave PopularNow out")
        if hours <= 0:
            raise ValueError(f"hours is {hours}; the last hours need at least part of one")
        self._asked = np.asarray(dataset.times)
        order = np.argsort(self._asked, kind="stable")
        self._items, self._times = np.asarray(dataset.items)[order], self._asked[order]
        self._span, self._num_items = round(hours * _HOUR), dataset.num_items

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        asked = self._asked[queries.end]
        starts, ends = np.searchsorted(self._times, asked - self._span), np.searchsorted(self._times, asked)
        scores = np.empty((len(queries), self._num_items), dtype=np.float32)
        for row, start, end in zip(scores, starts, ends, strict=True):
            row[:] = np.bincount(self._items[start:end], minlength=self._num_items)
        return scores


class ItemKNN:
    """Sums, over the distinct items of the history, the cosine similarities of their nearest items.

    Deshpande and Karypis 2004, doi 10.1145/963770.963776: cosine between the columns of the binary user-item matrix of
    training; each item keeps its most similar ones. Their further scaling of similarities is left out.

    The whole history is the textbook's and weak where taste moves: on MovieLens 1M's validation part the last 5 items
    alone give NDCG@10 of 0.094 against 0.031 (500 neighbours, 4,000 queries, 2026-11-22). Report both.

    Args:
        dataset: the interactions.
        cuts: where training ends.
        neighbours: how many similar items each item keeps.
        last: how many interactions of the history count, the newest ones; all of them if None.

    Raises:
        ValueError: neighbours or last is not positive.
    """

    def __init__(self, dataset: Dataset, cuts: Cuts, *, neighbours: int = 500, last: int | None = None) -> None:
        if neighbours < 1 or (last is not None and last < 1):
            raise ValueError(f"neighbours is {neighbours} and last is {last}; both need at least 1")
        self._dataset, self._last = dataset, last
        trained = in_training(dataset, cuts)
        shape = (dataset.num_users, dataset.num_items)
        users, items = dataset.user_rows[trained], np.asarray(dataset.items)[trained]
        self._similar = _nearest(_binary(users, items, shape), neighbours)

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        query, position = history_positions(self._dataset, queries, last=self._last)
        items = np.asarray(self._dataset.items)[position]
        histories = _binary(query, items, (len(queries), self._dataset.num_items))
        return np.asarray((histories @ self._similar).toarray(), dtype=np.float32)


def history_positions(dataset: Dataset, queries: Queries, *, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every interaction before each query, or the last ones of them.

    Returns:
        int64 [n], the index of the query, ascending; and int64 [n], positions in the dataset, oldest first.
    """
    start = np.asarray(dataset.user_offsets)[queries.user]
    if last is not None:
        start = np.maximum(start, queries.end - last)
    lengths = queries.end - start
    query = np.repeat(np.arange(len(queries)), lengths)
    return query, np.arange(len(query)) + np.repeat(start - (np.cumsum(lengths) - lengths), lengths)


def _binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    matrix = sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # what was taken twice was summed to 2
    return matrix


def _nearest(taken: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """float32 sparse [N, N]: the cosines of each item (row) with its nearest others, of taken [num_users, N]."""
    counts = np.asarray(taken.sum(axis=0)).ravel()
    unit = (taken @ sparse.diags_array(1 / np.sqrt(np.maximum(counts, 1)))).tocsc().astype(np.float32)
    num_items = unit.shape[1]
    kept = min(neighbours, num_items)
    rows, columns, values = [], [], []
    step = max(1, _CELLS // max(1, num_items))
    by_user = unit.tocsr()
    for start in range(0, num_items, step):
        block = (unit[:, start : start + step].T @ by_user).toarray()
        here = np.arange(len(block))
        block[here, start + here] = 0  # an item is not its own neighbour
        nearest = np.argpartition(block, num_items - kept, axis=1)[:, num_items - kept :]
        cosines = np.take_along_axis(block, nearest, axis=1)
        row, column = np.nonzero(cosines > 0)
        rows.append(start + row)
        columns.append(nearest[row, column])
        values.append(cosines[row, column])
    if not rows:
        return sparse.csr_array((num_items, num_items), dtype=np.float32)
    where = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array((np.concatenate(values), where), shape=(num_items, num_items))
