"""External ids and the dense rows that stand for them inside: exchanged here and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

Id = str | int


class IdMap:
    """A frozen two-way map between external ids (strings or integers) and rows 0 … n−1.

    Args:
        ids: Arrow array of the ids in row order, string or int64; unique, without nulls.

    Raises:
        ValueError: ids repeat, are null or of another type; the message names the first one.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        if pa.types.is_integer(ids.type):
            ids = ids.cast(pa.int64())
        elif pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
            ids = ids.cast(pa.large_string())
        else:
            raise ValueError(f"ids must be strings or integers, got {ids.type}; cast the id column first")
        if ids.null_count:
            row = pc.index(pc.is_null(ids), True).as_py()
            raise ValueError(f"the id at row {row} is null; drop that row or give it an id")
        if pc.count_distinct(ids).as_py() != len(ids):
            counts = pc.value_counts(ids)
            repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0]
            raise ValueError(f"id {repeated['values']} occurs {repeated['counts']} times; ids must be unique")
        self._ids = ids

    @classmethod
    def of(cls, ids: Iterable[Id]) -> IdMap:
        """Builds a map from Python values, all of them `str` or all of them `int`."""
        values = list(ids)
        return cls(pa.array(values, type=pa.int64() if values and isinstance(values[0], int) else pa.large_string()))

    @classmethod
    def load(cls, path: Path) -> IdMap:
        """Opens a map written by `save`, memory-mapped."""
        return cls(feather.read_table(path, memory_map=True).column("id"))

    def save(self, path: Path) -> None:
        """Writes the ids, in row order, as one uncompressed Arrow file."""
        feather.write_feather(pa.table({"id": self._ids}), path, compression="uncompressed")

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def is_integer(self) -> bool:
        """Whether the outside world's ids are integers; else they are strings."""
        return bool(pa.types.is_integer(self._ids.type))

    @property
    def array(self) -> pa.Array:
        """The ids in row order: int64 or large_string."""
        return self._ids

    @cached_property
    def digest(self) -> str:
        """sha256 over the ids and their order; two maps agree on every row if and only if it is equal."""
        digest = hashlib.sha256(f"{self._ids.type}:{len(self._ids)}:".encode())
        if self.is_integer:
            digest.update(self._ids.to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(pc.binary_length(self._ids).to_numpy(zero_copy_only=False).tobytes())
            for start in range(0, len(self._ids), 1 << 16):
                digest.update("".join(self._ids[start : start + (1 << 16)].to_pylist()).encode())
        return digest.hexdigest()

    @cached_property
    def _row_of(self) -> dict[Id, int]:
        rows: dict[Id, int] = {}
        # In parts, so that threads that answer meanwhile get their turn: one list of all would hold Python's lock.
        for start in range(0, len(self._ids), 1 << 12):
            part = self._ids[start : start + (1 << 12)].to_pylist()
            rows.update(zip(part, range(start, start + len(part)), strict=True))
        return rows

    def row(self, value: Id) -> int | None:
        """The row of one id, numpy's scalars too, or None if it is unknown. A URL's text finds an integer id."""
        if self.is_integer and isinstance(value, str):
            try:
                number = int(value)
            except ValueError:
                return None
            if str(number) != value:  # "1_000", " 7" and "007" are no way to write an integer id
                return None
            value = number
        elif not self.is_integer and isinstance(value, (int, np.integer)):
            value = str(value)
        return self._row_of.get(value)

    def rows(self, values: Sequence[Id] | pa.Array) -> np.ndarray:
        """The rows of many ids.

        Returns:
            int64 [len(values)], −1 where the id is unknown or null.
        """
        if not isinstance(values, pa.Array):
            kinds = set(map(type, values))
            if kinds == {int} if self.is_integer else kinds == {str}:  # as they stand in the map
                row_of = self._row_of
                return np.array([row_of.get(value, -1) for value in values], dtype=np.int64)
            found = (self.row(value) for value in values)
            return np.array([-1 if row is None else row for row in found], dtype=np.int64)
        found = pc.index_in(values.cast(self._ids.type), value_set=self._ids)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def id(self, row: int) -> Id:
        """The id that stands at one row."""
        return self._ids[int(row)].as_py()

    def ids(self, rows: np.ndarray) -> list[Id]:
        """The ids that stand at many rows [n], in their order."""
        return self._ids.take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()

    def appended(self, values: pa.Array | Sequence[Id]) -> IdMap:
        """A longer map: the old rows keep their place, ids not yet known follow in the order given."""
        fresh = values if isinstance(values, pa.Array) else pa.array(list(values))
        fresh = fresh.cast(self._ids.type)
        fresh = pc.unique(fresh.filter(pc.invert(pc.is_in(fresh, value_set=self._ids))))
        return IdMap(pa.concat_arrays([self._ids, fresh.drop_null()]))
