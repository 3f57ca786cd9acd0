"""What a request may filter by and what an answer shows: the items' declared attributes, as arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys.data.columns import ManyWords, Numbers, Words
from recsys.data.schema import Entity, FeatureKind, nearest

_COLUMNS = {"categorical": Words, "multi": ManyWords, "numeric": Numbers, "timestamp": Numbers}
_ORDER = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
_CLAUSES = ("equals", "in", "contains", *_ORDER, "not")
_MAX_NUMBER = 1e300  # JSON knows larger integers, a float does not
_MAX_DEPTH = 16  # of a `not` in a `not`: far more than anyone means, far less than would exhaust the stack


class FilterError(ValueError):
    """A filter names an attribute or a clause that there is not; the message names the nearest that there is."""


class Attributes:
    """The attributes of N items. Nothing in it changes, so many threads may ask at once.

    Args:
        entity: what is declared of items; None if nothing is.
        table: one row an item, one column a feature (see `Dataset.item_features`).
        num_items: how many rows the table has, since one without columns says none.
        before: attributes of the items whose rows come before these, declared alike; see `extended`.
    """

    def __init__(
        self, entity: Entity | None, table: pa.Table, num_items: int, *, before: Attributes | None = None
    ) -> None:
        features = entity.features if entity else ()
        self.entity = entity
        self.num_items: int = num_items + (before.num_items if before else 0)
        self._own_items = num_items
        self._table = table
        self._before = before
        self._shown = [feature for feature in features if feature.show]
        self._kinds = {feature.name: feature.kind for feature in features}
        # Each is made ready when it is first asked for.
        self._columns: dict[str, Any] = {
            f.name: _COLUMNS[f.kind](table.column(f.name)) for f in features if f.filterable
        }
        self._joined: dict[str, np.ndarray] = {}

    def extended(self, table: pa.Table, num_items: int) -> Attributes:
        """These items and, in the rows after them, those of another table; what is ready of these is not made again.

        Args:
            table: as that of these items, of the same declaration.
            num_items: how many rows it has.
        """
        return Attributes(self.entity, table, num_items, before=self)

    def frame(self) -> pd.DataFrame:
        """Every declared attribute, a row an item, for people to look at."""
        return self._whole.to_pandas()

    def table(self, rows: np.ndarray) -> pa.Table:
        """Every declared attribute of some rows, int [n], in the columns of `Dataset.item_features`."""
        return self._whole.take(pa.array(rows, type=pa.int64()))

    @cached_property
    def _whole(self) -> pa.Table:
        return pa.concat_tables([self._before._whole, self._table]) if self._before else self._table

    def kind(self, name: str) -> FeatureKind:
        """Whether an attribute that requests may name is categorical, multi, numeric or timestamp.

        Raises:
            FilterError: there is none of that name, or it is text or a vector, of which only the towers make use.
        """
        if name in self._columns:
            return self._kinds[name]
        usable = list(self._columns)
        if name in self._kinds:
            valid = ", ".join(usable) or "none"
            raise FilterError(f"{name!r} is {self._kinds[name]}, which nothing can filter by; valid: {valid}")
        raise FilterError(f"there is no attribute {name!r} to filter by{nearest(name, usable)}")

    def numbers(self, name: str) -> np.ndarray:
        """An attribute of numbers, or of moments as milliseconds since 1970.

        Returns:
            float64 [N], NaN where there is none; shared, so not to be written to.

        Raises:
            FilterError: there is no such attribute, or it is of words.
        """
        if (kind := self.kind(name)) not in ("numeric", "timestamp"):
            raise FilterError(f"{name!r} is {kind} and holds no numbers; name one that is numeric or timestamp")
        own = self._columns[name].values
        if self._before is None:
            return own
        if name not in self._joined:
            self._joined[name] = np.concatenate([self._before.numbers(name), own])
        return self._joined[name]

    def values(self, name: str, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The words that some items have of a categorical or multi attribute.

        Args:
            name: the attribute.
            rows: int [n], each from 0 to N − 1.

        Returns:
            The words of each row; an empty tuple where there is none.

        Raises:
            FilterError: there is no such attribute, or it is of numbers.
        """
        if (kind := self.kind(name)) not in ("categorical", "multi"):
            raise FilterError(f"{name!r} is {kind} and holds no words; name one that is categorical or multi")
        if self._before is None:
            return self._columns[name].of(rows)
        own = rows >= self._before.num_items
        earlier = iter(self._before.values(name, rows[~own]))
        later = iter(self._columns[name].of(rows[own] - self._before.num_items))
        return [next(later if is_own else earlier) for is_own in own.tolist()]

    def counts(self, name: str, among: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Every word of a categorical or multi attribute, and how many of some items have it.

        Args:
            name: the attribute.
            among: bool [N], which items are counted.

        Returns:
            W words and int64 [W].

        Raises:
            FilterError: there is no such attribute, or it is of numbers.
        """
        if (kind := self.kind(name)) not in ("categorical", "multi"):
            raise FilterError(f"{name!r} is {kind} and holds no words; name one that is categorical or multi")
        words, counts = self._columns[name].counts(among[len(among) - self._own_items :])
        if self._before is None:
            return words, counts
        earlier, earlier_counts = self._before.counts(name, among[: self._before.num_items])
        places = {word: place for place, word in enumerate(dict.fromkeys([*earlier, *words]))}
        together = np.zeros(len(places), dtype=np.int64)
        together[: len(earlier)] = earlier_counts
        np.add.at(together, [places[word] for word in words], counts)
        return list(places), together

    @property
    def own_table(self) -> pa.Table:
        """One row an item, one column a feature, of these items alone: without those before."""
        return self._table

    def eligible(self, filter: Mapping[str, Any]) -> np.ndarray:
        """Which items pass a filter.

        A filter maps attributes to clauses that must all hold. A clause is a value (equal to it; of a multi-valued
        attribute: among its values), a list (any of these), or a mapping of `equals`, `in`, `contains` (all of these),
        `gt`, `gte`, `lt`, `lte` and `not` (a clause that must fail). An item without the attribute fails every clause
        but `not`. Moments are seconds since 1970 or ISO 8601 text.

        Returns:
            bool [N].

        Raises:
            FilterError: an attribute, clause or value cannot be used.
        """
        passing = np.ones(self._own_items, dtype=bool)
        for name, clause in filter.items():
            passing &= self._passing(name, self.kind(name), clause)
        return np.concatenate([self._before.eligible(filter), passing]) if self._before else passing

    def _passing(self, name: str, kind: FeatureKind, clause: Any, depth: int = 0) -> np.ndarray:
        """bool: which of the table's items pass a clause about an attribute."""
        if depth > _MAX_DEPTH:
            raise FilterError(f"{name!r}: clauses are nested more than {_MAX_DEPTH} deep; say it shorter")
        if isinstance(clause, list):
            clause = {"in": clause}
        elif not isinstance(clause, Mapping):
            clause = {"equals": clause}
        column = self._columns[name]
        read = _word if kind in ("categorical", "multi") else _moment if kind == "timestamp" else _number
        passing = np.ones(self._own_items, dtype=bool)
        for key, said in clause.items():
            match key:
                case "equals":
                    passing &= column.having_any([read(name, said)])
                case "in" | "contains":
                    wanted = [read(name, one) for one in (said if isinstance(said, list) else [said])]
                    if not wanted:
                        raise FilterError(f"{name!r}: {key!r} is empty; name at least one value")
                    passing &= column.having_any(wanted) if key == "in" else column.having_all(wanted)
                case "gt" | "gte" | "lt" | "lte":
                    if read is _word:
                        raise FilterError(f"{name!r} is {kind} and has no order; use equals, in or contains")
                    passing &= _ORDER[key](column.values, read(name, said))
                case "not":
                    passing &= ~self._passing(name, kind, said, depth + 1)
                case _:
                    raise FilterError(f"{name!r}: there is no clause {key!r}{nearest(key, _CLAUSES)}")
        return passing

    def shown(self, row: int) -> dict[str, Any]:
        """What an answer shows of one item; absent where the catalogue says nothing."""
        if self._before is not None:
            if row < self._before.num_items:
                return self._before.shown(row)
            row -= self._before.num_items
        said = {}
        for feature in self._shown:
            value = self._table.column(feature.name)[row].as_py()
            if value is None or (feature.kind == "numeric" and not math.isfinite(value)):
                continue
            if feature.kind == "timestamp":
                value = datetime.fromtimestamp(value / 1000, UTC).isoformat()
            elif feature.kind == "numeric" and value.is_integer():
                value = int(value)
            said[feature.name] = value
        return said


def _word(name: str, said: Any) -> str:
    if not isinstance(said, (str, int)) or isinstance(said, bool):
        raise FilterError(f"{name!r} cannot equal {said!r}; give text")
    return str(said)


def _number(name: str, said: Any) -> float:
    if isinstance(said, bool) or not isinstance(said, (int, float)) or abs(said) > _MAX_NUMBER:
        raise FilterError(f"{name!r} cannot be compared with {said!r}; give a number")
    return float(said)


def _moment(name: str, said: Any) -> float:
    """Milliseconds since 1970."""
    if not isinstance(said, str):
        return _number(name, said) * 1000.0
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise FilterError(f"{name!r}: {said!r} is no ISO 8601 moment") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
