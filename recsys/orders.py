"""Other orders to search a LiveCatalogue in, which rules arrange as they do its own: popularity, prefixes, haste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys.live import LiveCatalogue, inner_products


class _Order:
    """What every order has from the catalogue: all but the search."""

    def __init__(self, live: LiveCatalogue) -> None:
        self._live = live
        self.num_rows = live.num_rows

    def eligible(self, filter: Mapping[str, Any]) -> np.ndarray:
        return self._live.eligible(filter)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self._live.vectors(rows)

    def kind(self, attribute: str) -> str:
        return self._live.kind(attribute)

    def numbers(self, attribute: str) -> np.ndarray:
        return self._live.numbers(attribute)

    def values(self, attribute: str, rows: np.ndarray) -> list[tuple[str, ...]]:
        return self._live.values(attribute, rows)


class ByPopularity(_Order):
    """The items by popularity, whatever the query; of diversity, the items' own vectors still decide."""

    def search(
        self, query: np.ndarray, k: int, *, eligible: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `LiveCatalogue.search`; the scores are popularities.

        What is asked for again and again stands at the head of an order made once. Only where a filter eats that head,
        or k is larger, all popularities are looked at.
        """
        head, complete = self._live.most_popular
        rows = head
        if eligible is not None:
            rows = rows[eligible[rows]]
        elif exclude is not None:
            rows = rows[: k + len(exclude)]  # no more than these can be left out
        else:
            rows = rows[:k]
        if exclude is not None and len(exclude) and len(rows):
            rows = rows[~np.isin(rows, exclude)]
        if len(rows) >= k or complete:
            rows = rows[:k]
            return self._live.popularity_of(rows), rows
        return self._live.best_of(self._live.popularity.copy(), k, eligible=eligible, exclude=exclude)


class Hastily(_Order):
    """The items by the inner product of query and item, as the catalogue's own search finds them by half the effort."""

    def search(
        self, query: np.ndarray, k: int, *, eligible: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `LiveCatalogue.search`."""
        hasty = self._live.derived.hasty_index
        return self._live.search_many(query[None], k, eligible=eligible, exclude=exclude, index=hasty)[0]


class ByPrefix(_Order):
    """The items by the inner product of the shortest trained prefix of query and item, cut as training cut them."""

    def search(
        self, query: np.ndarray, k: int, *, eligible: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `LiveCatalogue.search`; the scores are those of the prefix."""
        derived = self._live.derived
        cut = derived.cut(query[None])[0]
        live = derived.cut(self._live.live_vectors)
        scores = np.concatenate([inner_products(cut, derived.cut_vectors), inner_products(cut, live)])
        return self._live.best_of(scores, k, eligible=eligible, exclude=exclude)
