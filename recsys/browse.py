"""The live catalogue for people who look at it: items by what is written of them, what is declared, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.attributes import FilterError
from recsys.data.schema import FeatureKind
from recsys.ids import Id
from recsys.index.exact import best
from recsys.live import LiveCatalogue
from recsys.texts import Texts

MAP_SIDE = 10_000  # places on a map are whole numbers up to this: four digits, where floats would take twice as many
COLOURS = 8  # values of an attribute that a map tells apart; people hardly tell more colours
_CHUNK = 1 << 12  # ids made at a time: one list of all would hold Python's lock for tens of milliseconds


@dataclass(frozen=True, slots=True)
class Known:
    """An item of the live catalogue: what answers show of it, and whether it may be recommended."""

    item_id: Id
    attributes: dict[str, Any]
    available: bool


@dataclass(frozen=True, slots=True)
class Declared:
    """An attribute of items.

    Attributes:
        name: in filters and answers.
        kind: see `recsys.data.schema.Feature`.
        shown: whether answers show it.
        filterable: whether a request may filter by it; else all that follows is empty.
        distinct: how many different words they have; None of numbers.
        values: the most common words, and how many items have each.
        least: the smallest number, or ISO 8601 moment; None of words, or where there is none.
        most: the largest one, likewise.
    """

    name: str
    kind: FeatureKind
    shown: bool
    filterable: bool
    distinct: int | None = None
    values: tuple[tuple[str, int], ...] = ()
    least: float | str | None = None
    most: float | str | None = None


@dataclass(frozen=True, slots=True)
class ItemMap:
    """Where items stand on a plane, the most popular first.

    Attributes:
        items: n ids.
        x: int32 [n], from 0 to `MAP_SIDE`, both axes in one scale.
        y: int32 [n], likewise.
        explained: the share of the variance that each axis shows; see `recsys.plane`.
        values: words that colours may stand for, the most common ones of an attribute; none unless asked for.
        codes: int32 [n], for each item the place of its word among `values`, −1 where it has none of them; where it has
            several, of the least common one, which says most about it.
    """

    items: list[Id]
    x: np.ndarray
    y: np.ndarray
    explained: tuple[float, float]
    values: tuple[str, ...] = ()
    codes: np.ndarray | None = None


class Browse:
    """Answers such questions about one state of the items; what a bundle alone decides is computed once for all.

    Args:
        live: the items as they are now.
    """

    def __init__(self, live: LiveCatalogue) -> None:
        self._live = live
        self._ranked: dict[str, pa.Table] = {}

    def search(self, text: str = "", *, limit: int = 10) -> list[Known]:
        """The items that may be recommended in whose id or shown words a text occurs.

        An item whose id is the text comes first, then those whose first shown attribute is it, begins with it, has it
        as words, or has words that begin so, then those that have each of its words somewhere; the more popular first.
        Case and accents do not count. An empty text gives the most popular items.
        """
        live = self._live
        scores = np.full(live.num_rows, -np.inf)
        own = len(live.bundle.item_ids)
        for texts, offset in ((live.derived.texts, 0), (self._live_texts, own)):
            rows, fits = texts.found(text)
            scores[rows + offset] = -fits.astype(np.float64)
        if (row := live.row(text.strip())) is not None:
            scores[row] = 1.0
        popularity = live.popularity.astype(np.float64)  # -inf where a row may not be recommended
        top = popularity.max(initial=0.0)
        scores += popularity / (2 * top) if top > 0 else popularity  # less than what one fit is better than the next
        return [self._known(row) for row in best(scores, limit)[1].tolist()]

    def look_up(self, ids: Sequence[Id]) -> tuple[list[Known], list[Id]]:
        """Items by their ids, in their order, available or not; and the ids that nobody knows."""
        rows = self._live.rows(ids).tolist()
        unknown = [item_id for item_id, row in zip(ids, rows, strict=True) if row < 0]
        return [self._known(row) for row in rows if row >= 0], unknown

    def attributes(self, *, values: int = 20) -> list[Declared]:
        """What is declared of items, with up to so many of each attribute's values."""
        entity = self._live.bundle.schema.items
        declared = []
        for feature in entity.features if entity else ():
            said: dict[str, Any] = {}
            if feature.filterable and feature.kind in ("categorical", "multi"):
                words = self._common(feature.name)
                said["distinct"] = len(words)
                said["values"] = tuple((one["word"], one["items"]) for one in words[:values].to_pylist())
            elif feature.filterable:
                numbers = self._live.numbers(feature.name)[self._there]
                numbers = numbers[np.isfinite(numbers)]
                if len(numbers):
                    said["least"] = _end(feature.kind, numbers.min())
                    said["most"] = _end(feature.kind, numbers.max())
            declared.append(Declared(feature.name, feature.kind, feature.show, feature.filterable, **said))
        return declared

    def map(self, *, limit: int = 50_000, attribute: str | None = None) -> ItemMap:
        """Where the most popular items that may be recommended stand.

        Args:
            limit: how many items at most.
            attribute: categorical or multi, to tell items apart by.

        Raises:
            FilterError: there is no such attribute, or it is of numbers.
        """
        live = self._live
        if attribute is not None and live.kind(attribute) not in ("categorical", "multi"):
            raise FilterError(f"{attribute!r} is {live.kind(attribute)}; name an attribute of words to tell apart by")
        rows = best(live.popularity, limit)[1]
        own = live.derived.places
        places = np.concatenate([own, live.derived.plane.places(live.live_vectors)])[rows]
        low, high = (own.min(axis=0), own.max(axis=0)) if len(own) else (np.zeros(2), np.ones(2))
        scale = MAP_SIDE / max(float((high - low).max()), 1e-12)
        middle = (MAP_SIDE - (high - low) * scale) / 2
        at = np.clip(np.rint((places - low) * scale + middle), 0, MAP_SIDE).astype(np.int32)
        ids = [live.id(row) for row in rows.tolist()] if live.num_rows > len(own) else self._ids(rows)
        x, y = np.ascontiguousarray(at[:, 0]), np.ascontiguousarray(at[:, 1])
        if attribute is None:
            return ItemMap(ids, x, y, live.derived.plane.explained)
        values = tuple(self._common(attribute)["word"][:COLOURS].to_pylist())
        codes = np.full(live.num_rows, -1, dtype=np.int32)
        for code, value in enumerate(values):  # the least common last
            codes[live.eligible({attribute: value})] = code
        return ItemMap(ids, x, y, live.derived.plane.explained, values, codes[rows])

    def _known(self, row: int) -> Known:
        item_id, shown = self._live.said(row)
        return Known(item_id, shown, self._live.available(row))

    def _ids(self, rows: np.ndarray) -> list[Id]:
        ids = self._live.bundle.item_ids
        return [one for start in range(0, len(rows), _CHUNK) for one in ids.ids(rows[start : start + _CHUNK])]

    def _common(self, attribute: str) -> pa.Table:
        """The words of an attribute that items have, the most common first: `word`, and how many `items` have it."""
        if attribute not in self._ranked:  # kept: of 50,000 words that all differ it takes tens of milliseconds
            words, counts = self._live.counts(attribute, self._there)
            table = pa.table({"word": pa.array(words, pa.large_string()), "items": counts})
            order = [("items", "descending"), ("word", "ascending")]
            self._ranked[attribute] = table.filter(pc.field("items") > 0).sort_by(order)  # without Python's lock
        return self._ranked[attribute]

    @cached_property
    def _there(self) -> np.ndarray:
        """bool [R]: what may be recommended."""
        return self._live.popularity > -np.inf

    @cached_property
    def _live_texts(self) -> Texts:
        entity = self._live.bundle.schema.items
        return Texts(entity.features if entity else (), self._live.live_table, len(self._live.live_vectors))


def _end(kind: FeatureKind, number: float) -> float | str:
    """A smallest or largest number as a filter may say it."""
    if kind == "timestamp":
        return datetime.fromtimestamp(number / 1000, UTC).isoformat()
    return int(number) if float(number).is_integer() else float(number)
