"""Ids numbered while a log streams by, without keeping the log's text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ROWS = 1 << 22


class GrowingIds:
    """Turns columns of ids into codes, numbered by first appearance.

    Looking ids up builds a hash table over all that are known, so columns wait until there are about as many new rows
    as known ids: the work stays proportional to the rows, the memory to the ids.
    """

    def __init__(self, kind: pa.DataType) -> None:
        self._known: pa.Array = pa.array([], type=kind)
        self._waiting: list[pa.Array] = []
        self._rows_waiting = 0
        self._codes: list[np.ndarray] = []

    def add(self, ids: pa.Array) -> None:
        """Takes the next ids [n], without nulls."""
        self._waiting.append(ids)
        self._rows_waiting += len(ids)
        if self._rows_waiting >= max(_ROWS, len(self._known)):
            self._encode()

    def finish(self) -> tuple[np.ndarray, pa.Array]:
        """The codes, int32 [rows added], and the ids that they stand for [number of ids]."""
        self._encode()
        codes = np.concatenate([np.empty(0, dtype=np.int32), *self._codes])
        self._codes.clear()
        return codes, self._known

    def _encode(self) -> None:
        if not self._waiting:
            return
        encoded = pa.chunked_array(self._waiting).combine_chunks().dictionary_encode()
        self._waiting, self._rows_waiting = [], 0
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        found = pc.index_in(encoded.dictionary, value_set=self._known)
        fresh = encoded.dictionary.filter(pc.is_null(found))
        codes = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).copy()
        codes[codes < 0] = np.arange(len(self._known), len(self._known) + len(fresh))
        self._known = pa.concat_arrays([self._known, fresh])
        self._codes.append(codes[encoded.indices.to_numpy(zero_copy_only=False)].astype(np.int32))
