"""A database as a source: the answer of a query, or what came since its cursor's last value."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from recsys.artifacts import digest_of
from recsys.data.news import Mark, News, from_json, to_json
from recsys.data.sources import Batch, SourceError, no_column


@dataclass(frozen=True)
class Sql:
    """The answer of a query.

    Args:
        address: SQLAlchemy's, such as `postgresql+psycopg://user@host/shop`; `$NAME` in it is taken from the
            environment, so that no password need stand in a file.
        query: a SELECT. Without a time column in the schema its ORDER BY is the order that counts.
        rows: how many to fetch at a time.
        cursor: a column of the answer that only grows, such as an id or the time of insertion, so that a nightly job
            reads what came since. Whoever commits later must have a larger value: a row of the same moment as the
            newest that was read, or one whose transaction was still open, is not found any more. Rows without a value
            are left out until they have one, and counted. Without a cursor everything is read every night.
    """

    address: str
    query: str
    rows: int = 50_000
    cursor: str | None = None

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        with self._connected() as (connection, source):
            result = connection.execute(sqlalchemy.text(self._query))
            yield from (batch for batch, _ in self._rows(result, source, columns))

    def since(self, mark: Mark | None) -> News:
        """What has a cursor beyond the mark's, in the cursor's order."""
        if self.cursor is None:
            return News(self.batches, {}, "the query has no cursor")
        place = self._url.set(username=None, password=None, query={}).render_as_string()
        said = {"database": place, "query": digest_of(self.query), "cursor": self.cursor}
        whole = None
        if mark is None:
            whole = "nothing was read before"
        elif mark.get("said") != said:
            whole = "the database, the query or its cursor is not the one of before"
        value = None if whole or mark is None else mark["value"]
        new: Mark = {"said": said, "value": value}
        notes: dict[str, int] = {}

        def batches(columns: Sequence[str]) -> Iterator[Batch]:
            assert self.cursor is not None
            with self._connected() as (connection, source):
                inner = f"SELECT * FROM (\n{self._query}\n) AS news"
                # Asked before, since SQLite takes a quoted name that it does not know for text.
                present = list(connection.execute(sqlalchemy.text(f"{inner} WHERE 1 = 0")).keys())
                if self.cursor not in present:
                    raise SourceError(no_column(f"the query on {source}", [self.cursor], present))
                cursor = connection.dialect.identifier_preparer.quote_identifier(self.cursor)
                nulls = f"SELECT COUNT(*) FROM (\n{self._query}\n) AS news WHERE {cursor} IS NULL"
                notes["rows_without_cursor"] = connection.execute(sqlalchemy.text(nulls)).scalar_one()
                beyond = f"{cursor} IS NOT NULL" if value is None else f"{cursor} > :mark"
                query = sqlalchemy.text(f"{inner} WHERE {beyond} ORDER BY {cursor}")
                result = connection.execute(query, {} if value is None else {"mark": from_json(value)})
                for batch, last in self._rows(result, source, columns):
                    try:
                        new["value"] = to_json(last[present.index(self.cursor)])
                    except ValueError as error:
                        what = f"column {self.cursor!r} of the query on {source}"
                        raise SourceError(f"{what} cannot be a cursor: {error}") from None
                    yield batch

        return News(batches, new, whole, notes)

    @property
    def _query(self) -> str:
        # A lone colon would be taken for a parameter; there are none.
        return re.sub(r"(?<!:):(?!:)", r"\:", self.query.rstrip().rstrip(";"))

    @property
    def _url(self) -> sqlalchemy.URL:
        try:
            return sqlalchemy.make_url(os.path.expandvars(self.address))
        except SQLAlchemyError as error:
            raise SourceError(f"the address of the database cannot be used: {error}") from None

    @contextmanager
    def _connected(self) -> Iterator[tuple[sqlalchemy.Connection, str]]:
        try:
            engine = sqlalchemy.create_engine(self._url)
        except (SQLAlchemyError, ImportError) as error:
            raise SourceError(f"the address of the database cannot be used: {error}") from None
        source = engine.url.render_as_string(hide_password=True)
        try:
            with engine.connect().execution_options(stream_results=True, yield_per=self.rows) as connection:
                yield connection, source
        except SQLAlchemyError as error:
            raise SourceError(f"the query on {source} failed: {error}") from None
        finally:
            engine.dispose()

    def _rows(
        self, result: sqlalchemy.CursorResult[Any], source: str, columns: Sequence[str]
    ) -> Iterator[tuple[Batch, Any]]:
        """The answer in batches, each with its last row as the database gave it."""
        present = list(result.keys())
        if set(columns) - set(present):
            raise SourceError(no_column(f"the query on {source}", columns, present))
        done = 0
        for part in result.partitions(self.rows):
            values = list(zip(*part, strict=True))
            arrays = [_array(values[present.index(name)]) for name in columns]
            rows = np.arange(done + 1, done + 1 + len(part))
            done += len(part)
            yield Batch(source, pa.RecordBatch.from_arrays(arrays, names=list(columns)), rows), part[-1]


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # mixed types, or one that Arrow has not, such as UUID
        return pa.array([None if value is None else str(value) for value in values], type=pa.string())
