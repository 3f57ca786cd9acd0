"""A bundle's items with what was said of items since it was sealed: new ones, changed ones, and those that are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.attributes import Attributes
from recsys.bundle import Bundle
from recsys.derived import Derived
from recsys.ids import Id
from recsys.index.engine import faiss
from recsys.index.exact import best
from recsys.index.search import Index
from recsys.live_features import FeatureError, checked_features
from recsys.live_rows import LiveRows
from recsys.online.store import LiveItem

__all__ = ["FeatureError", "LiveCatalogue", "checked_features", "inner_products"]

PUT_HOLDS_MS = 48 * 3600 * 1000
_FEW = 64  # hidden rows that a search is told one by one; above, a mask costs less than the candidates they take up


class LiveCatalogue:
    """The items that may be recommended now. Nothing in it changes: what is said next makes another one.

    Rows 0 … N − 1 are the bundle's, rows N … N + M − 1 those of items that were PUT with features. An item that has
    both is answered by its live row, and its other row is hidden; one that is not available is hidden altogether. A
    hidden row is never returned, but what stands there may still be part of a history, or what others are similar to.

    What a bundle supersedes:

    - Features that were PUT are dropped where the bundle's own features of that item are equal to them; and where the
      bundle knows the item and its data was read more than `put_holds_ms` after the PUT, since by then the company's
      tables should say what they say. The moment taken for that is the manifest's `created`, when the bundle was
      written: its data was read some hours earlier, which `put_holds_ms` has to allow for. The moment of the PUT is
      that of the newest word on the item, even if that was about availability alone.
    - `available: false` holds as long as the bundle knows the item, until somebody PUTs it as available again; and so
      do the features of an item that no bundle knows.

    Making one costs a pass over the live items and, of those that `before` did not hold yet, the item tower's; never a
    pass over the bundle's. What needs one, such as a mask, is made when it is first asked for.

    Args:
        bundle: an opened bundle.
        items: what was said of items since, the newest word on each. Of an item that comes twice the last one counts.
        put_holds_ms: see above.
        before: another catalogue of this bundle, whose rows are used again where an item's features are the same.
    """

    def __init__(
        self,
        bundle: Bundle,
        items: Sequence[LiveItem] = (),
        *,
        put_holds_ms: int = PUT_HOLDS_MS,
        before: LiveCatalogue | None = None,
    ) -> None:
        self.bundle = bundle
        self.put_holds_ms = put_holds_ms
        self.derived: Derived = Derived(bundle) if before is None else before.derived
        newest = {str(item.item_id): item for item in items}
        sealed = datetime.fromisoformat(bundle.manifest.created).timestamp() * 1000
        own = {item_id: -1 if (row := bundle.item_ids.row(item_id)) is None else row for item_id in newest}
        put = {
            item_id: (item.features, own[item_id])
            for item_id, item in newest.items()
            if item.features is not None and not (own[item_id] >= 0 and sealed - item.changed > put_holds_ms)
        }
        rows = LiveRows.none(bundle) if before is None else before._rows
        self._rows: LiveRows = rows.updated(bundle, put) if put else LiveRows.none(bundle)
        self._live_vectors = np.ascontiguousarray(self._rows.vectors)
        self._num_own = len(bundle.item_ids)
        self.num_rows = self._num_own + len(self._rows.ids)
        self._row_of = {item_id: self._num_own + at for at, item_id in enumerate(self._rows.ids)}
        gone = [row for item_id, row in own.items() if row >= 0 and not newest[item_id].available]
        there = [newest[item_id].available for item_id in self._rows.ids]
        self._live_there = np.array(there, dtype=bool)
        replaced = self._rows.bundle_rows >= 0
        order = np.argsort(self._rows.bundle_rows[replaced])
        self._replaced = self._rows.bundle_rows[replaced][order]  # ascending
        self._replacing = (np.flatnonzero(replaced) + self._num_own)[order]
        self._hidden = np.unique(np.concatenate([np.array(gone, dtype=np.int64), self._replaced]))
        self._unavailable = frozenset(self._hidden.tolist()) | frozenset(
            (np.flatnonzero(~self._live_there) + self._num_own).tolist()
        )
        self._as_sealed = not self._row_of and not len(self._hidden)
        self._attributes: Attributes = (
            bundle.attributes.extended(self._rows.table, len(self._rows.ids)) if self._row_of else bundle.attributes
        )

    def updated(self, items: Sequence[LiveItem]) -> LiveCatalogue:
        """The same bundle with other items, all that are live by now; what this one holds of them is used again."""
        return LiveCatalogue(self.bundle, items, put_holds_ms=self.put_holds_ms, before=self)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What was PUT and cannot be used with this bundle, such as a feature that its schema no longer declares."""
        return tuple(self._rows.ignored.values())

    def row(self, item_id: Id) -> int | None:
        """The row that stands for an item now, its live one if it has one; None if nobody knows the item."""
        if self._row_of and (row := self._row_of.get(str(item_id))) is not None:
            return row
        return self.bundle.item_ids.row(item_id)

    def rows(self, ids: Sequence[Id]) -> np.ndarray:
        """The rows that stand for items now, int64 [n]; −1 where nobody knows the item."""
        if not self._row_of:
            return self.bundle.item_ids.rows(ids)
        return np.array([-1 if (row := self.row(item_id)) is None else row for item_id in ids], dtype=np.int64)

    def now(self, rows: np.ndarray) -> np.ndarray:
        """The rows that stand now for the items of some of the bundle's rows [n]."""
        if not len(self._replaced) or not len(rows):
            return rows
        at = np.minimum(np.searchsorted(self._replaced, rows), len(self._replaced) - 1)
        return np.where(self._replaced[at] == rows, self._replacing[at], rows)

    def own(self, rows: np.ndarray) -> np.ndarray:
        """The bundle's rows of the items of some rows [n], int64 [n]; −1 where the bundle does not know the item."""
        if not self._row_of:
            return rows
        live = rows >= self._num_own
        return np.where(live, self._rows.bundle_rows[np.where(live, rows - self._num_own, 0)], rows)

    def id(self, row: int) -> Id:
        """The id of the item at one row, of the bundle's type where it can be."""
        if row < self._num_own:
            return self.bundle.item_ids.id(row)
        if (own := int(self._rows.bundle_rows[row - self._num_own])) >= 0:
            return self.bundle.item_ids.id(own)
        text = self._rows.ids[row - self._num_own]
        if self.bundle.item_ids.is_integer and text.removeprefix("-").isdecimal() and str(int(text)) == text:
            return int(text)
        return text

    def available(self, row: int) -> bool:
        """Whether what stands at a row may be recommended."""
        return row not in self._unavailable

    def shown(self, row: int) -> dict[str, Any]:
        """What an answer shows of the item at a row."""
        return self._attributes.shown(row)

    def said(self, row: int) -> tuple[Id, dict[str, Any]]:
        """The id of the item at a row, and what an answer shows of it; kept, so not to be written to."""
        if row < self._num_own:
            return self.derived.said(row)
        if (said := self._said.get(row)) is None:
            said = self._said[row] = (self.id(row), self.shown(row))
        return said

    @cached_property
    def _said(self) -> dict[int, tuple[Id, dict[str, Any]]]:
        return {}

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows [n], float32 [n, D]."""
        if not self._row_of:
            return self.bundle.item_vectors[rows]
        live = rows >= self._num_own
        vectors: np.ndarray = self.bundle.item_vectors[np.where(live, 0, rows)]
        vectors[live] = self._live_vectors[rows[live] - self._num_own]
        return vectors

    @property
    def live_vectors(self) -> np.ndarray:
        """float32 [M, D]: the vectors of the rows from N on."""
        return self._live_vectors

    def embedded(self, features: Mapping[str, Any]) -> np.ndarray:
        """The vector that an item of these features would have, float32 [D]: its id says nothing.

        Raises:
            FeatureError: a feature is not declared, its value is of another type, or they give no finite vector.
        """
        nothing = LiveRows.none(self.bundle)
        made = nothing.updated(self.bundle, {"": (self.checked(features), -1)})
        if made.ignored:
            raise FeatureError("these features give no finite vector; give smaller numbers")
        vector: np.ndarray = made.vectors[0]
        return vector

    def checked(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """The features of an item as this bundle's schema declares them; see `checked_features`."""
        return checked_features(self.bundle.schema, features, self.bundle.item_encoder)

    def kind(self, attribute: str) -> str:
        """What kind of attribute that is; see `Attributes.kind`."""
        return self._attributes.kind(attribute)

    def numbers(self, attribute: str) -> np.ndarray:
        """An attribute of numbers, or of moments as milliseconds since 1970: float64 [R], NaN where there is none."""
        return self._attributes.numbers(attribute)

    def values(self, attribute: str, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The words that the items at rows [n] have of a categorical or multi attribute."""
        return self._attributes.values(attribute, rows)

    def counts(self, attribute: str, among: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Every word of an attribute, and how many of the rows that bool [R] names have it; see `Attributes.counts`."""
        return self._attributes.counts(attribute, among)

    def eligible(self, filter: Mapping[str, Any]) -> np.ndarray:
        """Which rows pass a filter, bool [R], whether hidden or not; see `Attributes.eligible`."""
        return self._attributes.eligible(filter)

    @cached_property
    def popularity(self) -> np.ndarray:
        """float32 [R], each item's share of the newest tenth of the log; −inf where a row may not be recommended.

        An item that the bundle does not know has none, so 0.
        """
        scores = np.concatenate([self.bundle.popularity, self._live_popularity])
        scores[self._unavailable_rows] = -np.inf
        return scores

    def popularity_of(self, rows: np.ndarray) -> np.ndarray:
        """The popularities of the items at rows [n], float32 [n], whether hidden or not."""
        if not self._row_of:
            return self.bundle.popularity[rows]
        own = self.own(rows)
        return np.where(own >= 0, self.bundle.popularity[np.maximum(own, 0)], np.float32(0))

    @cached_property
    def _live_popularity(self) -> np.ndarray:
        return self.popularity_of(np.arange(self._num_own, self.num_rows))

    @cached_property
    def most_popular(self) -> tuple[np.ndarray, bool]:
        """Recommendable rows int64 [n] in order of popularity, ties by row, and whether they are all there are."""
        head, live = self.derived.most_popular, np.flatnonzero(self._live_there)
        complete = len(head) == self._num_own
        rows = np.concatenate([head[~np.isin(head, self._hidden)], live + self._num_own])
        scores = self.popularity_of(rows)
        if not complete:  # what comes after the head's last one may come after others, too, that are not in it
            least, last = self.bundle.popularity[head[-1]], head[-1]
            certain = (scores > least) | ((scores == least) & (rows <= last))
            rows, scores = rows[certain], scores[certain]
        order = np.lexsort((rows, -scores))
        return rows[order], complete

    @cached_property
    def _unavailable_rows(self) -> np.ndarray:
        """int64 [n]: the rows that may not be recommended."""
        return np.concatenate([self._hidden, np.flatnonzero(~self._live_there) + self._num_own])

    @cached_property
    def _own_shown(self) -> np.ndarray:
        """bool [N]: which of the bundle's rows are not hidden."""
        shown = np.ones(self._num_own, dtype=bool)
        shown[self._hidden] = False
        return shown

    def search(
        self, query: np.ndarray, k: int, *, eligible: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the highest inner product with a query.

        Args:
            query: float32 [D], finite.
            k: how many, at least 1.
            eligible: bool [R], which rows may be returned; None for all.
            exclude: int [E], rows that may not be; −1 does no harm.

        Returns:
            scores float32 [n] and rows int64 [n], descending, ties by row; n = k wherever k may be returned.
        """
        if self._as_sealed:
            scores, rows = self.bundle.index.search(query[None], k, eligible=eligible, exclude=exclude)
            return _filled(scores[0], rows[0])
        return self.search_many(query[None], k, eligible=eligible, exclude=exclude)[0]

    def search_many(
        self,
        queries: np.ndarray,
        k: int,
        *,
        eligible: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
        index: Index | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `search`, for each of many queries [Q, D], with the same rows left out for all of them.

        Args:
            queries: float32 [Q, D], finite.
            k: as for `search`, and so are eligible and exclude.
            eligible: likewise.
            exclude: likewise.
            index: of the bundle's items, instead of its own.
        """
        index = self.bundle.index if index is None else index
        own_eligible, own_exclude = None if eligible is None else eligible[: self._num_own], exclude
        if len(self._hidden) > _FEW:
            own_eligible = self._own_shown if own_eligible is None else own_eligible & self._own_shown
        elif len(self._hidden):
            own_exclude = self._hidden if exclude is None else np.concatenate([exclude, self._hidden])
        scores, rows = index.search(queries, k, eligible=own_eligible, exclude=own_exclude)
        found = [_filled(*one) for one in zip(scores, rows, strict=True)]
        if not self._row_of:
            return found
        there = self._live_there if eligible is None else self._live_there & eligible[self._num_own :]
        if exclude is not None and len(live := exclude[exclude >= self._num_own]):
            there = there.copy()
            there[live - self._num_own] = False
        merged = []
        for query, (own_scores, own_rows) in zip(queries, found, strict=True):
            live_scores = inner_products(query, self._live_vectors)
            live_scores[~there] = -np.inf
            live_scores, live_rows = best(live_scores, k)
            # The bundle's come first, so that a stable sort leaves ties in the order of rows.
            both = np.concatenate([own_scores, live_scores])
            order = (-both).argsort(kind="stable")[:k]
            merged.append((both[order], np.concatenate([own_rows, live_rows + self._num_own])[order]))
        return merged

    @property
    def live_table(self) -> pa.Table:
        """The features of the rows from N on, as `Dataset.item_features` has them."""
        return self._rows.table

    def scores(self, query: np.ndarray) -> np.ndarray:
        """A query's score of every row, float32 [R], by a pass over all vectors; −inf where a row is hidden."""
        scores = np.concatenate(
            [inner_products(query, self.bundle.item_vectors), inner_products(query, self._live_vectors)]
        )
        scores[self._unavailable_rows] = -np.inf
        return scores

    def best_of(
        self, scores: np.ndarray, k: int, *, eligible: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, by scores of every row, float32 [R], which are written to."""
        scores[self._unavailable_rows] = -np.inf
        if eligible is not None:
            scores[~eligible] = -np.inf
        if exclude is not None:
            scores[exclude[exclude >= 0]] = -np.inf
        return best(scores, k)


def inner_products(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """float32 [n]: a query [D] with vectors float32 [n, D]. FAISS's, unlike NumPy's, stays on the calling thread."""
    scores = np.empty(len(vectors), dtype=np.float32)
    if len(vectors):
        query, vectors = np.ascontiguousarray(query, dtype=np.float32), np.ascontiguousarray(vectors)
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(scores), faiss.swig_ptr(query), faiss.swig_ptr(vectors), len(query), len(vectors)
        )
    return scores


def _filled(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Results [k] without the −1 that fill them up, which stand at the end."""
    if rows[-1] >= 0:
        return scores, rows
    found = rows >= 0
    return scores[found], rows[found]
