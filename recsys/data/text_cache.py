"""Vectors of texts on the disk, a file a model: written once, shared by processes, never trusted if damaged."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np

_LOG = logging.getLogger(__name__)
_ASKED = 500  # keys a query, below SQLite's limit
_WAIT = 30.0  # seconds for another writer
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL, seal BLOB NOT NULL)"


class TextCache:
    """What a model made of texts, by the sha256 of each text; a cache, so that what fails costs time and no answer.

    SQLite holds it, so that several processes may write and a power cut leaves what was whole. Each vector carries a
    digest of itself and its text: one that was damaged is not there, and is made again.

    Args:
        connection: an open database; None keeps nothing.
    """

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def at(cls, folder: Path | None, model: str) -> Iterator[Self]:
        """The cache of a model.

        Args:
            folder: of all caches; None, or one that cannot be written, keeps nothing.
            model: digest of the model's content, which names the file.
        """
        connection = None if folder is None else _opened(folder / f"{model}.sqlite")
        try:
            yield cls(connection)
        finally:
            if connection is not None:
                connection.close()

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors, float32 [width], of those texts that are known and whole."""
        if self._connection is None:
            return {}
        by_key = {_key(text): text for text in texts}
        keys, found = list(by_key), {}
        with suppress(sqlite3.Error):
            for start in range(0, len(keys), _ASKED):
                some = keys[start : start + _ASKED]
                asked = f"SELECT text, vector, seal FROM vectors WHERE text IN ({','.join('?' * len(some))})"
                for key, vector, seal in self._connection.execute(asked, some):
                    if seal == _seal(key, vector):
                        found[by_key[key]] = np.frombuffer(vector, dtype="<f4")
        return found

    def write(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Keeps vectors, all or none of them."""
        if self._connection is None:
            return
        rows = [(_key(text), np.asarray(vector, dtype="<f4").tobytes()) for text, vector in vectors.items()]
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                    [(key, vector, _seal(key, vector)) for key, vector in rows],
                )
        except sqlite3.Error as error:  # a full disk, a lock held for too long
            _LOG.warning("vectors of texts are not kept: %s", error)


def _opened(file: Path) -> sqlite3.Connection | None:
    """The database, made if need be; begun anew where it is none any more."""
    for again in (True, False):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=_WAIT)
            connection.execute(_TABLE)
            connection.execute("SELECT count(*) FROM vectors").fetchone()
        except sqlite3.OperationalError as error:
            _LOG.warning("vectors of texts are not kept in %s: %s", file, error)
            return None
        except sqlite3.DatabaseError:
            if not again:
                return None
            with suppress(OSError):  # who still has it open writes to what is gone
                file.unlink()
        except OSError as error:
            _LOG.warning("vectors of texts are not kept in %s: %s", file, error)
            return None
        else:
            return connection
    return None


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _seal(key: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(key + vector).digest()[:8]
