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
import pyarrow.compute as pc

from recsys.data.schema import Entity, Feature, nearest

_ORDER = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
_CLAUSES = ("equals", "in", "contains", *_ORDER, "not")
_MAX_NUMBER = 1e300  # JSON knows larger integers, a float does not
_MAX_DEPTH = 16  # of a `not` in a `not`: far more than anyone means, far less than would exhaust the stack


class FilterError(ValueError):
    """A filter names an attribute or a clause that there is not; the message names the nearest that there is."""


class Attributes:
    """The attributes of N items.

    Args:
        entity: what is declared of items; None if nothing is.
        table: one row an item, one column a feature (see `Dataset.item_features`).
        num_items: N, since a table without columns has no rows.
    """

    def __init__(self, entity: Entity | None, table: pa.Table, num_items: int) -> None:
        features = entity.features if entity else ()
        self._table = table
        self._num_items = num_items
        self._shown = [feature for feature in features if feature.show]
        self._filterable = {feature.name: _Column(feature, table) for feature in features if feature.filterable}

    def frame(self) -> pd.DataFrame:
        """Every declared attribute, a row an item, for people to look at."""
        return self._table.to_pandas()

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
        passing = np.ones(self._num_items, dtype=bool)
        for name, clause in filter.items():
            if name not in self._filterable:
                raise FilterError(f"there is no attribute {name!r} to filter by{nearest(name, list(self._filterable))}")
            passing &= self._passing(self._filterable[name], clause)
        return passing

    def _passing(self, column: _Column, clause: Any, depth: int = 0) -> np.ndarray:
        if depth > _MAX_DEPTH:
            raise FilterError(
                f"{column.feature.name!r}: clauses are nested more than {_MAX_DEPTH} deep; say it shorter"
            )
        if isinstance(clause, list):
            clause = {"in": clause}
        elif not isinstance(clause, Mapping):
            clause = {"equals": clause}
        passing = np.ones(self._num_items, dtype=bool)
        for key, value in clause.items():
            match key:
                case "equals":
                    passing &= column.equal(value)
                case "in" | "contains":
                    if not isinstance(value, list):
                        value = [value]
                    if not value:
                        raise FilterError(f"{column.feature.name!r}: {key!r} is empty; name at least one value")
                    combine = np.logical_or if key == "in" else np.logical_and
                    passing &= combine.reduce([column.equal(one) for one in value])
                case "gt" | "gte" | "lt" | "lte":
                    passing &= column.ordered(key, value)
                case "not":
                    passing &= ~self._passing(column, value, depth + 1)
                case _:
                    raise FilterError(f"{column.feature.name!r}: there is no clause {key!r}{nearest(key, _CLAUSES)}")
        return passing

    def shown(self, row: int) -> dict[str, Any]:
        """What an answer shows of one item; absent where the catalogue says nothing."""
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


class _Column:
    """One attribute, made ready for comparison when it is first asked for."""

    def __init__(self, feature: Feature, table: pa.Table) -> None:
        self.feature = feature
        self._table = table

    @cached_property
    def _values(self) -> np.ndarray:
        """float64 [N], NaN where there is none."""
        return self._table.column(self.feature.name).cast(pa.float64()).to_numpy()

    @cached_property
    def _encoded(self) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
        """Codes by value, and for each occurrence its code and its row."""
        column = self._table.column(self.feature.name).combine_chunks()
        rows = np.arange(len(column))
        if self.feature.kind == "multi":
            rows = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        encoded = column.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy()
        return {value: code for code, value in enumerate(encoded.dictionary.to_pylist())}, codes, rows

    def equal(self, value: Any) -> np.ndarray:
        """bool [N]: equal to the value, or having it among its values."""
        if self.feature.kind in ("numeric", "timestamp"):
            return self._values == self._number(value)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise FilterError(f"{self.feature.name!r} cannot equal {value!r}; give text")
        vocabulary, codes, rows = self._encoded
        passing = np.zeros(self._table.num_rows, dtype=bool)
        # A value that no item has is a question with the answer none, not a mistake: catalogues change.
        passing[rows[codes == vocabulary.get(str(value), -2)]] = True
        return passing

    def ordered(self, key: str, value: Any) -> np.ndarray:
        """bool [N]: on the right side of the value."""
        if self.feature.kind not in ("numeric", "timestamp"):
            raise FilterError(
                f"{self.feature.name!r} is {self.feature.kind} and has no order; use equals, in or contains"
            )
        return np.asarray(_ORDER[key](self._values, self._number(value)))

    def _number(self, value: Any) -> float:
        if self.feature.kind == "timestamp" and isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                raise FilterError(f"{self.feature.name!r}: {value!r} is no ISO 8601 moment") from None
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _MAX_NUMBER:
            raise FilterError(f"{self.feature.name!r} cannot be compared with {value!r}; give a number")
        return value * 1000.0 if self.feature.kind == "timestamp" else float(value)
