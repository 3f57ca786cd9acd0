"""Log lines as JSON that nobody waits for: put aside where requests are answered, written by a thread beside it.

Ray keeps to itself what replicas of a local instance print. So a process of the instance's owner listens at a socket in
the instance's folder and prints what comes; where there is no socket, lines go to standard error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

SOCKET = "RECSYS_LOG_SOCKET"
MOST_TEXT = 500  # characters of one field: what a caller wrote may be in it
MOST_TRACE = 8000
MOST_WAITING = 10_000  # lines
GATHERED_S = 0.05  # lines go out together
DATAGRAM = 32_768
PATIENCE_S = 1.0  # for a reader that is slow, before its lines are dropped; nobody but the writing thread waits


class LogSink:
    """Takes lines without waiting, and drops, and counts, what it cannot pass on.

    Args:
        path: the socket of a `LogReader`; None writes to standard error.
        sample: the share of answered requests to write a line for, 0 to 1; failed ones (5xx) get theirs always.
        on_dropped: told how many lines were dropped.
    """

    def __init__(
        self, path: str | Path | None = None, *, sample: float = 0.0, on_dropped: Callable[[int], None] | None = None
    ) -> None:
        if not 0 <= sample <= 1:
            raise ValueError(f"the share of requests to log is {sample}; give 0 to 1")
        self.sample = sample
        self.dropped = 0
        self._path = None if path is None else str(path)
        self._on_dropped = on_dropped
        self._waiting: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._some, self._closing = threading.Event(), threading.Event()
        self._socket: socket.socket | None = None
        self._counting = threading.Lock()
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    @classmethod
    def from_environment(cls, *, sample: float = 0.0, on_dropped: Callable[[int], None] | None = None) -> LogSink:
        """To the socket that RECSYS_LOG_SOCKET names; to standard error where it is not set."""
        return cls(os.environ.get(SOCKET) or None, sample=sample, on_dropped=on_dropped)

    def access(
        self,
        *,
        request_id: str,
        route: str,
        status: int,
        seconds: float,
        strategy: str | None = None,
        bundle: str | None = None,
        key_id: str | None = None,
    ) -> None:
        """A request was answered; most are passed over, as `sample` says."""
        if status < 500 and (self.sample == 0 or (self.sample < 1 and random.random() >= self.sample)):
            return
        said = {
            "request_id": request_id,
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 3),
            "strategy": strategy,
            "bundle": bundle,
            "key": key_id,
        }
        self.line("error" if status >= 500 else "info", "request", **said)

    def line(self, level: str, message: str, **fields: Any) -> None:
        """Puts a line aside to be written; fields of None are left out.

        Whatever fields hold, the line is one line of ASCII: what is longer than `MOST_TEXT` is cut, the rest escaped.
        """
        if len(self._waiting) >= MOST_WAITING:
            self._drop(1)
            return
        self._waiting.append((time.time(), level, {"message": message, **fields}))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Writes what waits, as far as somebody takes it, and takes no more."""
        self._closing.set()
        self._some.set()
        self._writer.join(5 * PATIENCE_S)
        if self._socket is not None:
            self._socket.close()

    def _drop(self, lines: int) -> None:
        with self._counting:
            self.dropped += lines
        if self._on_dropped is not None:
            self._on_dropped(lines)

    def _write(self) -> None:
        while True:
            self._some.wait()
            closing = self._closing.is_set()
            self._some.clear()
            parcel: list[bytes] = []
            size = 0
            while self._waiting:
                try:
                    line = _encoded(*self._waiting.popleft())
                except Exception:  # a field that is no JSON, whatever it is: the writer must not end with it
                    self._drop(1)
                    continue
                if size + len(line) > DATAGRAM and parcel:
                    self._send(parcel)
                    parcel, size = [], 0
                parcel.append(line)
                size += len(line)
            if parcel:
                self._send(parcel)
            if closing:
                return
            self._closing.wait(GATHERED_S)
            if self._closing.is_set():
                self._some.set()

    def _send(self, lines: list[bytes]) -> None:
        try:
            if self._path is None:
                sys.stderr.write(b"".join(lines).decode("ascii"))
                sys.stderr.flush()
                return
            if self._socket is None:
                self._socket = _connected(self._path)
            self._socket.send(b"".join(lines))
        except (OSError, ValueError):  # ValueError: standard error is closed
            self._drop(len(lines))
            if self._socket is not None:
                self._socket.close()
            self._socket = None


class LogHandler(logging.Handler):
    """Passes Python's own log records on: `logging.getLogger("serve").addHandler(LogHandler(sink))`.

    Args:
        sink: where to.
    """

    def __init__(self, sink: LogSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging; `extra={"request_id": …}` is kept."""
        fields: dict[str, Any] = {"logger": record.name, "request_id": getattr(record, "request_id", None)}
        if record.exc_info and record.exc_info[0] is not None:
            fields["trace"] = "".join(traceback.format_exception(*record.exc_info))[-MOST_TRACE:]
        self._sink.line(record.levelname.lower(), record.getMessage(), **fields)


class LogReader:
    """Prints what the sinks of an instance send, until it is closed.

    Args:
        path: where to make the socket; in a folder that only this user can enter.
        stream: what to print to; standard error by default.
    """

    def __init__(self, path: str | Path, stream: TextIO | None = None) -> None:
        self._path = Path(path)
        self._stream = stream or sys.stderr
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read, name="log-reader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Prints what has come so far, and removes the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last, contextlib.suppress(OSError):
            last.settimeout(PATIENCE_S)
            last.connect(str(self._path))
            last.send(b"")  # after all that came: the reader takes it for the end
        self._thread.join(5 * PATIENCE_S)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        while lines := self._socket.recv(2 * DATAGRAM):
            with contextlib.suppress(OSError, ValueError):  # nobody reads what we print: then nobody does
                self._stream.write(lines.decode("ascii", "backslashreplace"))
                self._stream.flush()


def _connected(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connected.settimeout(PATIENCE_S)
        connected.connect(path)
    except OSError:
        connected.close()
        raise
    return connected


def _encoded(at: float, level: str, fields: dict[str, Any]) -> bytes:
    said: dict[str, Any] = {"time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), "level": level}
    said.update((name, _bounded(name, value)) for name, value in fields.items() if value is not None)
    # ASCII throughout: json escapes control characters and whatever else moves a terminal's cursor.
    return json.dumps(said, default=lambda value: _bounded("", str(value))).encode() + b"\n"


def _bounded(name: str, value: Any) -> Any:
    most = MOST_TRACE if name == "trace" else MOST_TEXT
    return value[:most] + "…" if isinstance(value, str) and len(value) > most else value
