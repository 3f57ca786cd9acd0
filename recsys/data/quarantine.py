"""The quarantine: rows that `prepare` could not use, with where they stood and why, counted and kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_SCHEMA = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])


class Quarantine:
    """Writes rejected rows to a Parquet file as they come, and counts them by reason.

    Attributes:
        counts: rows by reason.
        examples: for each reason, the first row, as one line of text.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA)
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(
        self,
        source: str | Sequence[str],
        rows: Sequence[int] | np.ndarray,
        reasons: Sequence[str],
        raw: Sequence[str],
    ) -> None:
        """Takes rows: their source (one for all, or one each), numbers, reasons and raw texts, [n] each."""
        if not len(rows):
            return
        sources = [source] * len(rows) if isinstance(source, str) else source
        self.counts.update(reasons)
        for where, row, reason, text in zip(sources, rows, reasons, raw, strict=True):
            if reason not in self.examples:
                self.examples[reason] = f"{where}, row {row}: {text[:300]}"
        table = pa.table(
            [pa.array(sources), pa.array(rows, pa.int64()), pa.array(reasons), pa.array(raw)],
            schema=_SCHEMA,
        )
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


def as_text(columns: pa.RecordBatch) -> list[str]:
    """Rows as JSON, one text a row; values JSON has not become their text."""
    return [json.dumps(row, ensure_ascii=False, default=str) for row in columns.to_pylist()]
