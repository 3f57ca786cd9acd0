"""The first step of a night: what is new in the source, kept as it came, so that a rerun sees the very same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifacts import Manifest, digest_of, verify, writing
from recsys.data.news import Incremental, Mark, News
from recsys.data.progress import Progress
from recsys.data.schema import Entity, Interactions, Schema
from recsys.data.sources import Batch, Source, Tables, Unparsed

KIND = "snapshot"
FORMAT_VERSION = 1


def snapshot(tables: Tables, out: Path, *, since: Mark | None = None) -> Manifest:
    """Copies the interactions that are new since a mark, and the tables of items and users whole.

    Rows are kept raw: the declared columns in the source's own types, with the source and number of each, and the rows
    that could not be cut into columns. `opened` gives them to `prepare` as the source itself would have.

    The manifest's content holds the new `mark`, to go on from next time; how many rows of each table there are; and
    `whole`: why all interactions were copied, or None if only what is new. The mark says whether they were, too. All
    are copied without a mark, from a source that cannot tell what is new, and whenever the mark no longer fits: what
    was read before has changed, or is declared otherwise. They are then to be prepared without a base.

    Args:
        tables: the schema and the sources.
        out: the directory to write; it must not exist.
        since: the mark of the snapshot to go on from.

    Returns:
        The snapshot's manifest.

    Raises:
        SourceError: a source cannot be read.
        ArtifactError: `out` exists.
    """
    with writing(out, KIND, FORMAT_VERSION) as draft:
        content = draft.content
        said = {"schema": digest_of(tables.schema.to_dict()), "source": type(tables.interactions).__name__}
        news = _news(tables.interactions, since, said)
        parts: list[tuple[str, Source | News | None, Interactions | Entity | None]] = [
            ("interactions", news, tables.schema.interactions),
            ("items", tables.items, tables.schema.items),
            ("users", tables.users, tables.schema.users),
        ]
        for name, source, declared in parts:
            if source is not None and declared is not None:
                content[name] = 0
                with Progress(name) as progress, _Writer(draft.path, name) as writer:
                    for batch in source.batches(_columns(declared)):
                        writer.add(batch)
                        content[name] += batch.columns.num_rows + len(batch.unparsed)
                        progress.add(batch.columns.num_rows + len(batch.unparsed))
        content["schema"] = tables.schema.to_dict()
        content["mark"] = {**said, "whole": news.whole is not None, "interactions": news.mark}
        content["whole"] = news.whole
        content["notes"] = news.notes
    return manifest(out)


def manifest(path: Path) -> Manifest:
    """The manifest of a snapshot, after every file was compared with it.

    Raises:
        ArtifactError: it is no snapshot, or damaged.
    """
    return verify(path, KIND, FORMAT_VERSION)


def opened(path: Path) -> Snapshot:
    """A snapshot's tables, as `prepare` takes them, after every file was checked."""
    return Snapshot(str(path))


class Snapshot(Tables):
    """The tables that `snapshot` copied.

    Args:
        path: the directory that it wrote.

    Raises:
        ArtifactError: it is no snapshot, or damaged.
    """

    def __init__(self, path: str) -> None:
        content = manifest(Path(path)).content
        tables = {name: _Kept(Path(path), name) if name in content else None for name in ("items", "users")}
        super().__init__(Schema.from_dict(content["schema"]), _Kept(Path(path), "interactions"), **tables)
        self.whole = content["whole"]


def _news(source: Source, since: Mark | None, said: dict[str, Any]) -> News:
    if not isinstance(source, Incremental):
        return News(source.batches, {}, f"a {type(source).__name__} cannot tell what is new")
    if since is None:
        return source.since(None)
    for name, value in said.items():
        if since.get(name) != value:
            news = source.since(None)
            news.whole = f"the {name} is not the one of the mark"
            return news
    return source.since(since["interactions"])


def _columns(declared: Interactions | Entity) -> list[str]:
    """The columns that `prepare` will ask for."""
    if isinstance(declared, Entity):
        names = [declared.id, *(feature.column for feature in declared.features)]
    else:
        optional = (declared.time, declared.event, declared.weight, declared.part)
        names = [declared.user, declared.item, *(name for name in optional if name)]
    return list(dict.fromkeys(names))


class _Writer:
    """Writes batches: their columns to Parquet, one row group a batch, all else to a line of JSON.

    A database's answer may be of another type in each batch, which one Parquet file cannot hold; then a new one begins.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._files = 0
        self._parquet: pq.ParquetWriter | None = None
        self._lines: IO[str] = open(_lines_of(folder, name), "w", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        if self._parquet is not None:
            self._parquet.close()

    def add(self, batch: Batch) -> None:
        if self._parquet is None or not self._parquet.schema.equals(batch.columns.schema):
            if self._parquet is not None:
                self._parquet.close()
            self._files += 1
            self._parquet = pq.ParquetWriter(_file_of(self._folder, self._name, self._files), batch.columns.schema)
        if batch.columns.num_rows:
            table = pa.Table.from_batches([batch.columns])
            self._parquet.write_table(table, row_group_size=batch.columns.num_rows)
        said = {
            "file": self._files,
            "source": batch.source,
            "rows": _runs(batch.rows),
            "unparsed": [[row.row, row.reason, row.raw] for row in batch.unparsed],
            "decoded_as_cp1252": batch.decoded_as_cp1252,
        }
        self._lines.write(json.dumps(said) + "\n")


@dataclass(frozen=True)
class _Kept:
    """The batches that `_Writer` wrote, as they were."""

    folder: Path
    name: str

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        file, group = 0, 0
        parquet: Any = None
        with open(_lines_of(self.folder, self.name), encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                if said["file"] != file:
                    file, group = said["file"], 0
                    parquet = pq.ParquetFile(_file_of(self.folder, self.name, file))
                rows = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(*run) for run in said["rows"])])
                if len(rows):
                    table = parquet.read_row_group(group, columns=list(columns)).combine_chunks()
                    group += 1
                    (batch,) = table.select(list(columns)).to_batches()
                else:
                    batch = pa.RecordBatch.from_pylist([], schema=parquet.schema_arrow)
                yield Batch(
                    said["source"],
                    batch.select(list(columns)),
                    rows,
                    tuple(Unparsed(*row) for row in said["unparsed"]),
                    said["decoded_as_cp1252"],
                )


def _runs(rows: np.ndarray) -> list[list[int]]:
    """The runs of consecutive numbers, each from its first to behind its last."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(rows, breaks) if len(run)]


def _file_of(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number}.parquet"


def _lines_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.batches.jsonl"
