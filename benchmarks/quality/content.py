"""What cold items are found by without any training: items like those of the history, by text and attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from recsys.data.dataset import Dataset
from recsys.data.sentences import SentenceModel
from recsys.data.split import Cuts, Queries
from recsys.evaluate.baselines import history_positions

_WORD = re.compile(r"\w+")
LASTS = (None, 1, 5, 10, 20, 50)


class ContentKNN:
    """Scores items by the cosine between their content and the mean of the history's: the mean of cosines.

    Args:
        dataset: the interactions.
        vectors: of length 1, sparse or dense float32 [num_items, width].
        last: how many interactions of the history count, the newest ones; all of them if None.
    """

    def __init__(self, dataset: Dataset, vectors: Any, *, last: int | None = None) -> None:
        self._dataset, self._last = dataset, last
        similar = vectors @ vectors.T
        self._similar = np.asarray(similar.toarray() if sparse.issparse(similar) else similar, dtype=np.float32)

    def with_last(self, last: int | None) -> ContentKNN:
        """The same, by another stretch of the history."""
        other = object.__new__(ContentKNN)
        other._dataset, other._similar, other._last = self._dataset, self._similar, last
        return other

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        query, position = history_positions(self._dataset, queries, last=self._last)
        items = np.asarray(self._dataset.items)[position]
        shape = (len(queries), self._dataset.num_items)
        taken = sparse.csr_array((np.ones(len(query), dtype=np.float32), (query, items)), shape=shape)
        return np.asarray(taken @ self._similar, dtype=np.float32)


class Random:
    """Scores drawn anew for each query: what chance gives.

    Args:
        dataset: whose items.
        cuts: not looked at.
    """

    def __init__(self, dataset: Dataset, cuts: Cuts) -> None:
        self._num_items, self._rng = dataset.num_items, np.random.default_rng(0)

    def scores(self, queries: Queries) -> np.ndarray:
        """As `Scorer.scores`."""
        return self._rng.random((len(queries), self._num_items), dtype=np.float32)


def tf_idf(dataset: Dataset) -> sparse.csr_array:
    """TF-IDF of each item's words and attributes, of length 1, float32 sparse [num_items, terms].

    Sublinear counts, smoothed idf; a term that one item alone has says nothing about others and is left out. Items
    that training did not see count, too: their content is known.
    """
    documents = [_terms(row) for row in dataset.item_features().to_pylist()]
    made = TfidfVectorizer(analyzer=lambda terms: terms, sublinear_tf=True, min_df=2, dtype=np.float32)
    return sparse.csr_array(made.fit_transform(documents))


def sentences(dataset: Dataset, model: str, fields: Sequence[str]) -> np.ndarray:
    """A sentence model's vectors of items, float32 [num_items, width]."""
    rows = dataset.item_features().to_pylist()
    return SentenceModel(model).encode([". ".join(str(row[field] or "") for field in fields) for row in rows])


def _terms(row: Mapping[str, Any]) -> list[str]:
    """Words of texts; attributes whole, each under its feature's name."""
    terms = []
    for name, value in row.items():
        if isinstance(value, str):
            terms += _WORD.findall(value.lower())
        elif isinstance(value, list):
            terms += [f"{name}={one}" for one in value]
    return terms
