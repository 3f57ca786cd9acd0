"""The online store of one machine: a SQLite file in a folder, shared by all replicas that run there.

Whatever one process commits the next read of every other sees, since each read goes through to the file. Writes of a
process that wait at the same time are committed together: one fsync for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.artifacts import sync_directory
from recsys.online.commits import Commits
from recsys.online.store import (
    FORMAT_VERSION,
    Accepted,
    LiveItem,
    OnlineStoreError,
    Row,
    StoredEvent,
    features_json,
    refuse_unkeepable,
)

FILE = "online.sqlite3"
_APPLICATION = 0x52435359  # "RCSY", so that another program's database is told from ours
_READ_WAIT_S, _WRITE_WAIT_S = 1.0, 5.0  # for another process's lock: reads wait on the event loop
_ROWS = 50_000

# The index holds whole events, since every request reads some: finding each by its number would take twice as long.
_TABLES = """
CREATE TABLE store (id TEXT NOT NULL) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    user_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    event TEXT
) STRICT;
CREATE INDEX events_of ON events (user_id, timestamp, number, item_id, event, event_id);
CREATE TABLE items (
    item_id TEXT PRIMARY KEY,
    features TEXT,
    available INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    number INTEGER NOT NULL UNIQUE
) STRICT
"""
_MOST_KNOWN = 10_000  # users whose events are kept until the next commit
_WHOSE = """
SELECT application_id, user_version, (SELECT COUNT(*) FROM sqlite_master)
FROM pragma_application_id, pragma_user_version
"""
# SQLite has one writer at a time, so whoever sees a number sees all below it.
_ADD_EVENT = (
    "INSERT INTO events (event_id, user_id, item_id, timestamp, event) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_EVENTS_OF = """
SELECT event_id, item_id, timestamp, event FROM events
WHERE user_id = ? ORDER BY timestamp DESC, number DESC LIMIT ?
"""
_PUT_ITEM = """
INSERT INTO items VALUES (?, ?, ?, ?, (SELECT COALESCE(MAX(number), 0) + 1 FROM items))
ON CONFLICT (item_id) DO UPDATE SET
    features = COALESCE(excluded.features, features),
    available = excluded.available, changed = excluded.changed, number = excluded.number
"""
_ITEMS = "SELECT item_id, features, available, changed, number FROM items WHERE number > ? ORDER BY number"
_FIXES = {
    "SQLITE_FULL": "free room on its disk",
    "SQLITE_BUSY": "another process holds it; end that process, or try again",
    "SQLITE_CORRUPT": "restore it from a copy, or move it away and start without its events",
    "SQLITE_NOTADB": "restore it from a copy, or move it away and start without its events",
    "SQLITE_READONLY": "let this user write the folder and all that is in it",
    "SQLITE_CANTOPEN": "let this user write the folder and all that is in it",
    "SQLITE_PERM": "let this user write the folder and all that is in it",
}


@dataclass(frozen=True)
class _Write:
    """Work for the writing thread within a transaction, and who waits for what it returns."""

    work: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class EmbeddedStore:
    """Events and live items in `<folder>/online.sqlite3`; see OnlineStore.

    The folder must be on a disk of this machine: SQLite's replicas share memory. An answer is given after an fsync,
    so that what was accepted outlives a power cut, too.

    Args:
        folder: made if it is not there.

    Raises:
        OnlineStoreError: the folder or the file cannot be used; the message says why.
    """

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _told(self._path):
                self._writer = _opened(self._path)
                self._reader = _connected(self._path, _READ_WAIT_S)
            sync_directory(folder)
            self._file = _identity(self._path)
        except OSError as error:
            raise _unusable(folder, error) from None
        # For the event loop's thread alone; whoever writes has the other connection.
        self._reader.execute("PRAGMA query_only = ON")
        with _told(self._path):
            self._reader.execute(_EVENTS_OF, ("", 0)).fetchall()  # which opens the file, and so its WAL index
        try:
            self._commits = Commits(self._path)
        except OSError as error:
            raise _unusable(folder, error) from None
        self._state = b""
        self._known: dict[tuple[str, int], list[StoredEvent]] = {}  # what was asked for since the last commit
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        # A daemon, or a process that nobody closed the store of would not end; killing it loses nothing accepted.
        self._thread = threading.Thread(target=self._commit_groups, name="online-store", daemon=True)
        self._thread.start()

    async def add_events(self, events: Sequence[StoredEvent]) -> list[bool]:
        refuse_unkeepable(events)
        rows = [(event.event_id, event.user_id, event.item_id, event.timestamp, event.event) for event in events]
        return await self._written(lambda db: [db.execute(_ADD_EVENT, row).rowcount == 1 for row in rows])

    async def events_of(self, user_id: str, limit: int) -> list[StoredEvent]:
        # Read before the query: what is committed between the two is found again, not missed.
        state = self._commits.state()
        if state != self._state or len(self._known) >= _MOST_KNOWN:
            self._state, self._known = state, {}
        if (known := self._known.get((user_id, limit))) is not None and not self._closed:
            return known
        # Not on a thread: it takes microseconds, which is less than handing it over would.
        try:
            rows = self._reader.execute(_EVENTS_OF, (user_id, max(limit, 0))).fetchall()
        except sqlite3.Error as error:
            raise _failed(self._path, error) from None
        events = [StoredEvent(event_id, user_id, item_id, at, event) for event_id, item_id, at, event in reversed(rows)]
        self._known[user_id, limit] = events
        return events

    async def put_item(self, item: LiveItem) -> None:
        row = (item.item_id, features_json(item), item.available, item.changed)
        await self._written(lambda db: db.execute(_PUT_ITEM, row).rowcount)

    async def items_changed(self, after: int) -> tuple[list[LiveItem], int]:
        with _told(self._path):
            rows = self._reader.execute(_ITEMS, (after,)).fetchall()
            if not rows:
                (newest,) = self._reader.execute("SELECT COALESCE(MAX(number), 0) FROM items").fetchone()
                if newest >= after:
                    return [], after
                rows = self._reader.execute(_ITEMS, (0,)).fetchall()
        items = [
            LiveItem(item_id, None if features is None else json.loads(features), bool(available), changed)
            for item_id, features, available, changed, _ in rows
        ]
        return items, rows[-1][-1] if rows else 0

    async def check(self) -> None:
        # An empty transaction takes the lock that a write would take, and fails where that would, but for a full disk.
        await self._written(lambda db: db.execute("SELECT id FROM store").fetchone())

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reader.close()
            self._waiting.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _written(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        if self._closed:
            raise OnlineStoreError(f"{self._path} was closed; open it again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.put(_Write(work, loop, answer))
        return await answer

    def _commit_groups(self) -> None:
        """The writing thread: commits all that waits, then answers, until it is told to end."""
        ended = False
        while not ended:
            group = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    group.append(self._waiting.get_nowait())
            ended = None in group
            writes = [write for write in group if write is not None]
            if not writes:
                continue
            try:
                results: list[Any] = self._committed(writes)
            except Exception as error:
                results = [copy.copy(error) for _ in writes]
            for loop in {write.loop for write in writes}:
                answers = [(w.answer, result) for w, result in zip(writes, results, strict=True) if w.loop is loop]
                with contextlib.suppress(RuntimeError):  # that loop has ended, and whoever waited with it
                    loop.call_soon_threadsafe(_answer, answers)
        self._writer.close()

    def _committed(self, writes: list[_Write]) -> list[Any]:
        """What each write returned, after all were committed in one transaction; or none of them was."""
        db = self._writer
        # What is written to a file that was removed would be gone with the process.
        if _identity(self._path) != self._file:
            raise OnlineStoreError(f"{self._path} was removed or replaced under the running service; restart it")
        with _told(self._path):
            db.execute("BEGIN IMMEDIATE")
            try:
                results = [write.work(db) for write in writes]
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        return results


@contextmanager
def accepted(folder: Path) -> Iterator[Accepted]:
    """The events accepted in a folder; see `open_accepted`."""
    path = folder / FILE
    if not folder.is_dir():
        raise OnlineStoreError(f"there is no folder {folder}; give the one that the service was told")
    if not path.exists():
        yield Accepted(str(path), None, 0, lambda _after, _upto: iter(()))
        return
    # Read-only, so that a job of another user needs no more than to read.
    with _told(path), contextlib.closing(_connected(path, _WRITE_WAIT_S, "ro")) as db:
        if not _is_ours(db, path):
            raise OnlineStoreError(f"{path} is being made; try again")

        def rows(after: int, upto: int) -> Iterator[list[Row]]:
            # One query after the other: SQLite's log grows for as long as any one lasts.
            while after < upto:
                query = f"SELECT * FROM events WHERE number > ? AND number <= ? ORDER BY number LIMIT {_ROWS}"
                found: list[Row] = db.execute(query, (after, upto)).fetchall()
                if not found:
                    return
                yield found
                after = found[-1][0]

        (store,) = db.execute("SELECT id FROM store").fetchone()
        (newest,) = db.execute("SELECT COALESCE(MAX(number), 0) FROM events").fetchone()
        yield Accepted(str(path), store, newest, rows)


def _connected(path: Path, wait_s: float, mode: str = "rwc") -> sqlite3.Connection:
    # Transactions are begun by hand; threads are kept apart by whoever holds the connection.
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)


def _opened(path: Path) -> sqlite3.Connection:
    """A connection that writes, to a file that has our tables."""
    db = _connected(path, _WRITE_WAIT_S)
    try:
        deadline = time.monotonic() + _WRITE_WAIT_S
        while True:
            try:
                _make(db, path)
                break
            except sqlite3.OperationalError as error:
                # Of two that make it at once SQLite turns one away without a wait.
                if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _make(db: sqlite3.Connection, path: Path) -> None:
    ours = _is_ours(db, path)
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise OnlineStoreError(f"{path} cannot be shared by processes there; use a disk of this machine, or Redis")
    if ours:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _is_ours(db, path):
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO store VALUES (?)", (uuid.uuid4().hex,))
            db.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a file has our tables; False if it is empty.

    Raises:
        OnlineStoreError: it is another program's, or of another version of this one.
    """
    # In one query: another process may be making it just now.
    application, version, tables = db.execute(_WHOSE).fetchone()
    if not (application or version or tables):
        return False
    if application != _APPLICATION:
        raise OnlineStoreError(f"{path} is another program's database; give the store another folder")
    if version != FORMAT_VERSION:
        raise OnlineStoreError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}; "
            "run the version that wrote it, or give the store another folder"
        )
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        said = os.stat(path)
    except FileNotFoundError:
        return None
    return said.st_dev, said.st_ino


def _answer(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for answer, result in answers:
        if answer.done():  # whoever waited has gone; what was committed stays
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _failed(path, error) from None


def _failed(path: Path, error: sqlite3.Error) -> OnlineStoreError:
    name = getattr(error, "sqlite_errorname", "")
    fix = next((fix for start, fix in _FIXES.items() if name.startswith(start)), "see whether its disk is sound")
    return OnlineStoreError(f"{path} failed: {error} ({name or type(error).__name__}); {fix}")


def _unusable(folder: Path, error: OSError) -> OnlineStoreError:
    return OnlineStoreError(f"{folder} cannot be used: {error.strerror}; give the store a folder that it may write")
