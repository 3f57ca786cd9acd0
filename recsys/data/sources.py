"""Sources: where raw rows come from, streamed in batches that know their own origin; CSV and Parquet files."""

from __future__ import annotations

import difflib
import io
import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.utils import infer_compression  # type: ignore[import-untyped]

from recsys.data.news import Mark, News, Piece, Scan, new_files
from recsys.data.schema import Schema, SchemaError
from recsys.data.text_stream import UNIT_SEPARATOR, Quotes, Section, Utf8Stream, wide

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
            yield from self._opened(fs.open(file, "rb", compression="infer"), file, list(columns))

    def since(self, mark: Mark | None) -> News:
        """What is in files that the mark does not know, and what was appended to others.

        Lines appended to uncompressed text are read alone if everything before them is as it was and ended with a line,
        outside of quotes. Of a file that is still being written, what is there now is read.
        """
        said = {name: getattr(self, name) for name in ("delimiter", "columns", "encoding", "quote")}
        quotes = (lambda: Quotes(self.delimiter, self.quote)) if self.quote else None
        new = new_files(files_of(self.path), mark, said, self._unreadable_end, quotes)

        def batches(columns: Sequence[str]) -> Iterator[Batch]:
            for piece in new.pieces:
                row = piece.row or self._first_row
                for batch in self._opened(self._opened_piece(piece), piece.file, list(columns), row):
                    last = [*batch.rows[-1:].tolist(), *(unparsed.row for unparsed in batch.unparsed)]
                    row = max(row, 1 + max(last, default=0))
                    yield batch
                new.mark["files"][piece.file]["row"] = row

        return News(batches, new.mark, new.whole, new.notes)

    @property
    def _first_row(self) -> int:
        return 1 if self.columns else 2

    def _unreadable_end(self, fs: Any, file: str, before: Scan) -> str | None:
        """Why lines appended to a file cannot be read without those before them."""
        if infer_compression(file):
            return "a compressed file is read from its beginning"
        if not before.ends_a_line:
            return "its last line was not finished when it was read"
        if before.within_quotes:
            return f"what was read of it ends within quotes; if {self.quote} means nothing in it, set quote to ''"
        with fs.open(file, "rb") as opened:
            head = opened.readline()
        if wide(head, self.encoding):
            return f"text in {self.encoding} is read from its beginning"
        if self.columns is None and self.quote and head.count(self.quote.encode()) % 2:
            return "its header is longer than a line"
        return None

    def _opened_piece(self, piece: Piece) -> Any:
        if piece.row is None and infer_compression(piece.file):
            return piece.fs.open(piece.file, "rb", compression="infer")
        opened = piece.fs.open(piece.file, "rb")
        head = b""
        if piece.start:
            line = opened.readline()
            head = line if self.columns is None else line[: len(BOM_UTF8)] if line.startswith(BOM_UTF8) else b""
        opened.seek(piece.start)
        return Section(opened, head, piece.stop - piece.start)

    def _opened(self, raw: Any, file: str, columns: list[str], row: int | None = None) -> Iterator[Batch]:
        with Utf8Stream(raw, self.encoding, self.delimiter) as stream:
            try:
                yield from self._file(stream, file, columns, self._first_row if row is None else row)
            except UnicodeDecodeError as error:
                raise SourceError(f"{file} is broken: {error}; write it again, best as UTF-8") from None

    def _file(self, stream: Utf8Stream, file: str, columns: list[str], next_row: int) -> Iterator[Batch]:
        shift = next_row - self._first_row
        delimiter = self.delimiter if len(self.delimiter.encode()) == 1 else UNIT_SEPARATOR
        # The parser runs ahead in a thread of its own, so rows that it rejects wait for the batch in which they stand.
        rejected: deque[Unparsed] = deque()
        waiting: list[Unparsed] = []

        def reject(row: pa.csv.InvalidRow) -> str:
            reason = f"{row.actual_columns} columns instead of {row.expected_columns}"
            raw = row.text.replace(UNIT_SEPARATOR, self.delimiter)
            rejected.append(Unparsed(row.number + shift, reason, raw))
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
            while rejected:
                waiting.append(rejected.popleft())
            rows, next_row = _numbered(next_row, batch.num_rows, [row.row for row in waiting])
            yield Batch(file, batch, rows, tuple(row for row in waiting if row.row < next_row))
            waiting = [row for row in waiting if row.row >= next_row]
        waiting += rejected
        if (
            waiting or stream.decoded_as_cp1252
        ):  # how far the decoding had run ahead of each batch is a matter of chance
            nothing = pa.RecordBatch.from_pylist([], schema=schema)
            yield Batch(file, nothing, np.empty(0, dtype=np.int64), tuple(waiting), stream.decoded_as_cp1252)

    def _missing_column(self, file: str, columns: list[str]) -> str:
        present = self.columns
        if present is None:
            fs, _ = fsspec.core.url_to_fs(self.path)
            with Utf8Stream(fs.open(file, "rb", compression="infer"), self.encoding) as stream:
                line = io.BufferedReader(stream).readline().decode().rstrip("\r\n")
            present = [name.strip(self.quote or None) for name in line.split(self.delimiter)]
        return no_column(file, columns, present)


@dataclass(frozen=True)
class Parquet:
    """Parquet files.

    Args:
        path: a file, a folder (all files in it, sorted, hidden ones left out) or a glob; local or an fsspec address.
    """

    path: str

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        for fs, file in files_of(self.path):
            yield from self._file(fs, file, columns)

    def since(self, mark: Mark | None) -> News:
        """What is in files that the mark does not know."""
        new = new_files(files_of(self.path), mark, {}, lambda *_: "Parquet is not appended to")

        def batches(columns: Sequence[str]) -> Iterator[Batch]:
            for piece in new.pieces:
                yield from self._file(piece.fs, piece.file, columns)

        return News(batches, new.mark, new.whole, new.notes)

    def _file(self, fs: Any, file: str, columns: Sequence[str]) -> Iterator[Batch]:
        with fs.open(file, "rb") as opened:
            try:
                parquet = pq.ParquetFile(opened)
            except pa.ArrowInvalid as error:
                raise SourceError(f"{file} is not a Parquet file: {error}") from None
            present = parquet.schema_arrow.names
            if set(columns) - set(present):
                raise SourceError(no_column(file, columns, present))
            done = 0
            for batch in parquet.iter_batches(batch_size=1 << 19, columns=list(columns)):
                rows = np.arange(done + 1, done + 1 + batch.num_rows)
                done += batch.num_rows
                yield Batch(file, batch.select(list(columns)), rows)


def files_of(path: str) -> list[tuple[Any, str]]:
    """The files that a path, folder or glob stands for, sorted, each with its fsspec file system.

    Raises:
        SourceError: there are none.
    """
    fs, inside = fsspec.core.url_to_fs(path)
    fs.invalidate_cache()  # or files that came since the last listing are not seen
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


def no_column(where: str, columns: Sequence[str], present: Sequence[str]) -> str:
    """What to say of a column that is not there, with the nearest that is."""
    missing = next(name for name in columns if name not in present)
    near = difflib.get_close_matches(missing, present, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where} has no column {missing!r}{hint} (it has: {', '.join(present)})"
