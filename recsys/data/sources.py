"""Sources: where raw rows come from (CSV, Parquet, SQL), streamed in batches that know their own origin."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from recsys.data.schema import Schema, SchemaError
from recsys.data.text_stream import UNIT_SEPARATOR, Utf8Stream

BLOCK = 4 << 20  # bytes of text parsed at a time


class SourceError(Exception):
    """A source cannot be read as declared; the message names it, the value and what to change."""


@dataclass(frozen=True)
class Unparsed:
    """A row that could not even be cut into columns: where it stood, why, and its text as it was."""

    row: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Batch:
    """Some rows of a source, untouched.

    Attributes:
        source: the file, or the database with its password hidden.
        columns: the columns asked for, in the order asked, of the types that the source has (text files: strings).
        rows: int64 [num_rows], the number of each row in its source, from 1; the header counts in a text file, so
            that it is the line's number unless values hold line breaks.
        unparsed: rows met on the way that are not in `columns`.
        decoded_as_cp1252: lines met on the way that were not valid in the declared encoding.
    """

    source: str
    columns: pa.RecordBatch
    rows: np.ndarray
    unparsed: tuple[Unparsed, ...] = ()
    decoded_as_cp1252: int = 0


class Source(Protocol):
    """Raw rows, streamed."""

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Yields the given columns of all rows, in the source's order.

        Raises:
            SourceError: there is no such file, table or column; the message names the nearest.
        """
        ...


class Tables:
    """The tables that `prepare` reads and what their columns mean. Not to be changed once made.

    Args:
        schema: the schema; or its YAML file; or what that file would say.
        interactions: the log.
        items: the catalogue, if there is one; the schema then says `items`.
        users: the table of users, if there is one; the schema then says `users`.

    Attributes:
        whole: why the log holds all there is, so that no base may be added to; None where nobody says that it does.

    Raises:
        SchemaError: schema and sources do not belong together.
    """

    whole: str | None = None

    def __init__(
        self,
        schema: Schema | dict[str, Any] | str,
        interactions: Source,
        items: Source | None = None,
        users: Source | None = None,
    ) -> None:
        if isinstance(schema, str):
            schema = Schema.load(Path(schema))
        elif isinstance(schema, dict):
            schema = Schema.from_dict(schema)
        for name, source in (("items", items), ("users", users)):
            declared = getattr(schema, name)
            if (source is None) != (declared is None):
                lacking = f"a source of {name}" if source is None else f"{name!r} in the schema"
                raise SchemaError(f"{name} are declared by half; add {lacking} or take the other away")
        self.schema: Schema = schema
        self.interactions = interactions
        self.items = items
        self.users = users


@dataclass(frozen=True)
class Csv:
    """Delimited text.

    Args:
        path: a file, a folder (all files in it, sorted, hidden ones left out) or a glob; local or an fsspec address.
            Compressed files are known by their ending.
        delimiter: what separates columns; may be several characters.
        columns: their names, if the files have no header.
        encoding: overruled by a byte order mark; lines not valid in it are read as cp1252 and counted.
        quote: the character around values that hold a delimiter or a line break; empty if quotes mean nothing.
    """

    path: str
    delimiter: str = ","
    columns: list[str] | None = None
    encoding: str = "utf-8"
    quote: str = '"'

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        for fs, file in files_of(self.path):
            with Utf8Stream(fs.open(file, "rb", compression="infer"), self.encoding, self.delimiter) as stream:
                try:
                    yield from self._file(stream, file, list(columns))
                except UnicodeDecodeError as error:
                    raise SourceError(f"{file} is broken: {error}; write it again, best as UTF-8") from None

    def _file(self, stream: Utf8Stream, file: str, columns: list[str]) -> Iterator[Batch]:
        delimiter = self.delimiter if len(self.delimiter.encode()) == 1 else UNIT_SEPARATOR
        unparsed: list[Unparsed] = []
        skipped: list[int] = []

        def reject(row: pa.csv.InvalidRow) -> str:
            reason = f"{row.actual_columns} columns instead of {row.expected_columns}"
            skipped.append(row.number)
            unparsed.append(Unparsed(row.number, reason, row.text.replace(UNIT_SEPARATOR, self.delimiter)))
            return "skip"

        try:
            reader = pa.csv.open_csv(
                pa.PythonFile(stream, mode="r"),
                # One thread, or the parser does not say at which row it met a broken one.
                read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=self.columns),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char=self.quote or False,
                    newlines_in_values=bool(self.quote),
                    ignore_empty_lines=False,
                    invalid_row_handler=reject,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types={name: pa.string() for name in columns}, include_columns=columns
                ),
            )
        except pa.ArrowKeyError:
            raise SourceError(self._missing_column(file, columns)) from None
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return
            raise SourceError(f"{file} cannot be read as CSV: {error}") from None
        next_row = 1 if self.columns else 2
        decoded = 0
        schema = reader.schema
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            except pa.ArrowInvalid as error:
                raise SourceError(
                    f"{file} cannot be read as CSV near row {next_row}: {error}; is a quote left open? "
                    "If quotes mean nothing in this file, set quote to ''"
                ) from None
            rows, next_row = _numbered(next_row, batch.num_rows, skipped)
            skipped[:] = [row for row in skipped if row >= next_row]
            yield Batch(file, batch, rows, tuple(unparsed), stream.decoded_as_cp1252 - decoded)
            decoded = stream.decoded_as_cp1252
            unparsed.clear()
        if unparsed or stream.decoded_as_cp1252 > decoded:
            nothing = pa.RecordBatch.from_pylist([], schema=schema)
            rows = np.empty(0, dtype=np.int64)
            yield Batch(file, nothing, rows, tuple(unparsed), stream.decoded_as_cp1252 - decoded)

    def _missing_column(self, file: str, columns: list[str]) -> str:
        present = self.columns
        if present is None:
            fs, _ = fsspec.core.url_to_fs(self.path)
            with Utf8Stream(fs.open(file, "rb", compression="infer"), self.encoding) as stream:
                line = io.BufferedReader(stream).readline().decode().rstrip("\r\n")
            present = [name.strip(self.quote or None) for name in line.split(self.delimiter)]
        return _no_column(file, columns, present)


@dataclass(frozen=True)
class Parquet:
    """Parquet files.

    Args:
        path: a file, a folder (all files in it, sorted, hidden ones left out) or a glob; local or an fsspec address.
    """

    path: str

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        for fs, file in files_of(self.path):
            with fs.open(file, "rb") as opened:
                try:
                    parquet = pq.ParquetFile(opened)
                except pa.ArrowInvalid as error:
                    raise SourceError(f"{file} is not a Parquet file: {error}") from None
                present = parquet.schema_arrow.names
                if set(columns) - set(present):
                    raise SourceError(_no_column(file, columns, present))
                done = 0
                for batch in parquet.iter_batches(batch_size=1 << 19, columns=list(columns)):
                    rows = np.arange(done + 1, done + 1 + batch.num_rows)
                    done += batch.num_rows
                    yield Batch(file, batch.select(list(columns)), rows)


@dataclass(frozen=True)
class Sql:
    """The answer of a query.

    Args:
        address: SQLAlchemy's, such as `postgresql+psycopg://user@host/shop`; `$NAME` in it is taken from the
            environment, so that no password need stand in a file.
        query: a SELECT. Without a time column in the schema its ORDER BY is the order that counts.
        rows: how many to fetch at a time.
    """

    address: str
    query: str
    rows: int = 50_000

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        try:
            engine = sqlalchemy.create_engine(os.path.expandvars(self.address))
        except (SQLAlchemyError, ImportError) as error:
            raise SourceError(f"the address of the database cannot be used: {error}") from None
        source = engine.url.render_as_string(hide_password=True)
        # A lone colon would be taken for a parameter; there are none.
        query = sqlalchemy.text(re.sub(r"(?<!:):(?!:)", r"\:", self.query))
        try:
            with engine.connect().execution_options(stream_results=True, yield_per=self.rows) as connection:
                result = connection.execute(query)
                present = list(result.keys())
                if set(columns) - set(present):
                    raise SourceError(_no_column(f"the query on {source}", columns, present))
                done = 0
                for part in result.partitions(self.rows):
                    values = list(zip(*part, strict=True))
                    arrays = [_array(values[present.index(name)]) for name in columns]
                    rows = np.arange(done + 1, done + 1 + len(part))
                    done += len(part)
                    yield Batch(source, pa.RecordBatch.from_arrays(arrays, names=list(columns)), rows)
        except SQLAlchemyError as error:
            raise SourceError(f"the query on {source} failed: {error}") from None
        finally:
            engine.dispose()


def files_of(path: str) -> list[tuple[Any, str]]:
    """The files that a path, folder or glob stands for, sorted, each with its fsspec file system.

    Raises:
        SourceError: there are none.
    """
    fs, inside = fsspec.core.url_to_fs(path)
    if any(character in inside for character in "*?["):
        found = [file for file in fs.glob(inside) if fs.isfile(file)]
    elif fs.isdir(inside):
        hidden = re.compile(r"(^|/)[._][^/]*")
        found = [file for file in fs.find(inside) if not hidden.search(file.removeprefix(inside))]
    else:
        found = [inside] if fs.exists(inside) else []
    if not found:
        raise SourceError(f"{path} matches no file; check the path")
    return [(fs, file) for file in sorted(found)]


def _numbered(start: int, count: int, skipped: list[int]) -> tuple[np.ndarray, int]:
    """int64 [count]: the numbers from `start` on which were not skipped, and the one that comes next."""
    numbers = np.arange(start, start + count + len(skipped))
    kept = numbers[~np.isin(numbers, skipped)] if skipped else numbers
    return kept[:count], int(kept[count - 1]) + 1 if count else start


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # mixed types, or one that Arrow has not, such as UUID
        return pa.array([None if value is None else str(value) for value in values], type=pa.string())


def _no_column(where: str, columns: Sequence[str], present: Sequence[str]) -> str:
    missing = next(name for name in columns if name not in present)
    near = difflib.get_close_matches(missing, present, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where} has no column {missing!r}{hint} (it has: {', '.join(present)})"
