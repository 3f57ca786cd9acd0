"""What is new in a source since a mark: which files, or which end of them, were not read yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from recsys.data.text_stream import Quotes

if TYPE_CHECKING:
    from recsys.data.sources import Batch

Mark = dict[str, Any]
"""How far a source was read, as plain JSON values."""

_BLOCK = 4 << 20


@dataclass
class News:
    """What a source has that it had not at a mark.

    Attributes:
        batches: yields the given columns of the new rows, as `Source.batches` does; to be read once, to the end.
        mark: where to go on from next time; complete when all batches were read.
        whole: why everything is given, as if for the first time; None if only what is new.
        notes: what else people should know, counted.
    """

    batches: Callable[[Sequence[str]], Iterator[Batch]]
    mark: Mark
    whole: str | None
    notes: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class Incremental(Protocol):
    """A source that can tell what is new in it."""

    def since(self, mark: Mark | None) -> News:
        """What came after the mark, which is one that it gave before, or None for everything."""
        ...


@dataclass(frozen=True)
class Scan:
    """What the first bytes of a file are: sha256, whether a line ends with them, and whether within a quoted value."""

    sha256: str
    ends_a_line: bool
    within_quotes: bool


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `stop` of a file, whose first row has the number `row`; None if it is the file's own first."""

    fs: Any
    file: str
    start: int
    stop: int
    row: int | None = None


@dataclass
class Files:
    """Which pieces of files are new, and the mark to which each file read is added."""

    pieces: list[Piece]
    mark: Mark
    whole: str | None
    notes: dict[str, int]


def new_files(
    files: Sequence[tuple[Any, str]],
    mark: Mark | None,
    said: dict[str, Any],
    grows: Callable[[Any, str, Scan], str | None],
    quotes: Callable[[], Quotes] | None = None,
) -> Files:
    """Compares files with what a mark says of them. Files are only ever added, or grow at their end.

    A file is known by name, size and what its file system calls its version (etag or time of change); where only the
    latter differs, and of every new one, sha256 decides, so that a log that was copied or renamed is not read twice.
    What is gone stays in the mark, in case it comes back. If anything else has changed all files are read again, since
    nobody could say which of their rows are new.

    Args:
        files: each with its fsspec file system, in the order to read them.
        mark: what this function said before, or None.
        said: how the files are read; if that has changed they must all be read again.
        grows: told a file and the scan of what was read of it, why what was appended cannot be read alone; None if it
            can.
        quotes: makes what tells whether text ends within quotes; None if nothing is quoted.
    """
    if mark is None:
        return _all(files, said, "nothing was read before")
    if mark["said"] != said:
        return _all(files, said, f"the files are read otherwise than before ({mark['said']} then, {said} now)")
    known: dict[str, Any] = dict(mark["files"])
    gone = set(known) - {file for _, file in files}
    gone_by_content = {(known[file]["bytes"], known[file]["sha256"]): file for file in sorted(gone)}
    pieces, notes = [], {"files_new": 0, "files_grown": 0, "files_renamed": 0}
    for fs, file in files:
        size, version = _size_and_version(fs, file)
        was = known.get(file, {"bytes": 0})
        if was["bytes"] == 0:
            (scan,) = _scanned(fs, file, [size])
            known[file] = {"bytes": size, "version": version, "sha256": scan.sha256}
            if (before := gone_by_content.get((size, scan.sha256))) is not None:
                known[file]["row"] = known.pop(before).get("row")
                notes["files_renamed"] += 1
            else:
                pieces.append(Piece(fs, file, 0, size))
                notes["files_new"] += 1
            continue
        if size == was["bytes"] and version == was["version"]:
            continue
        if size < was["bytes"]:
            return _all(files, said, f"{file} is shorter than it was ({size} bytes, {was['bytes']} then)")
        then, now = _scanned(fs, file, [was["bytes"], size], quotes and quotes())
        if then.sha256 != was["sha256"]:
            return _all(files, said, f"{file} was changed in what had been read of it")
        known[file] = {**was, "bytes": size, "version": version, "sha256": now.sha256}
        if size > was["bytes"]:
            if why := grows(fs, file, then):
                return _all(files, said, f"{file} has grown, and {why}")
            pieces.append(Piece(fs, file, was["bytes"], size, was["row"]))
            notes["files_grown"] += 1
    notes["files_gone"] = len(set(known) - {file for _, file in files})
    return Files(pieces, {"said": said, "files": known}, None, notes)


def _all(files: Sequence[tuple[Any, str]], said: dict[str, Any], why: str) -> Files:
    known, pieces = {}, []
    for fs, file in files:
        size, version = _size_and_version(fs, file)
        (scan,) = _scanned(fs, file, [size])
        known[file] = {"bytes": size, "version": version, "sha256": scan.sha256}
        pieces.append(Piece(fs, file, 0, size))
    return Files(pieces, {"said": said, "files": known}, why, {"files_new": len(files)})


def _size_and_version(fs: Any, file: str) -> tuple[int, str | None]:
    info = fs.info(file)
    version = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), None)
    return int(info["size"]), None if version is None else str(version)


def _scanned(fs: Any, file: str, stops: Sequence[int], quotes: Quotes | None = None) -> list[Scan]:
    """Scans of a file's first bytes up to each of the stops, which rise, in one reading."""
    digest, last, done = hashlib.sha256(), b"", 0
    scans: list[Scan] = []
    with fs.open(file, "rb") as opened:
        for stop in stops:
            while done < stop and (block := opened.read(min(_BLOCK, stop - done))):
                digest.update(block)
                if quotes is not None and not scans:
                    quotes.read(block)
                last = block[-1:]
                done += len(block)
            scans.append(Scan(digest.hexdigest(), last == b"\n", quotes is not None and quotes.open))
    return scans


def to_json(value: Any) -> dict[str, Any]:
    """The value of a cursor as plain JSON; `from_json` reads it back.

    Raises:
        ValueError: there is no way to write such a value.
    """
    match value:
        case bool():
            pass
        case int() | float() | str():
            return {"kind": "plain", "value": value}
        case Decimal():
            return {"kind": "decimal", "value": str(value)}
        case datetime():
            return {"kind": "datetime", "value": value.isoformat()}
        case date():
            return {"kind": "date", "value": value.isoformat()}
    raise ValueError(f"{value!r} is a {type(value).__name__}; choose numbers, text or times")


def from_json(said: dict[str, Any]) -> Any:
    """The value that `to_json` wrote."""
    match said["kind"]:
        case "decimal":
            return Decimal(said["value"])
        case "datetime":
            return datetime.fromisoformat(said["value"])
        case "date":
            return date.fromisoformat(said["value"])
    return said["value"]
