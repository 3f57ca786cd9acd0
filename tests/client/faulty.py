"""An HTTP server on loopback that does to each request what a script says, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["_Handler"], None]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Faulty:
    """The server; steps are taken in turn, and the last one again and again."""

    steps: list[Step]
    asked: list[Asked] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)  # a request has come
    done: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    _server: ThreadingHTTPServer | None = None

    def __post_init__(self) -> None:
        self._taken = socket.socket()
        self._taken.bind(("127.0.0.1", 0))  # and not listening: connections are refused
        self.port = self._taken.getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """From now on connections are taken."""
        self._taken.close()
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.faulty = self  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.done.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()


@contextlib.contextmanager
def faulty(*steps: Step, listening: bool = True) -> Iterator[Faulty]:
    """A server that follows a script, up to the end of the block."""
    server = Faulty(list(steps))
    if listening:
        server.listen()
    try:
        yield server
    finally:
        server.close()


def says(said: Any, status: int = 200, **headers: str) -> Step:
    """An answer: a value as JSON, or bytes as they are; `Retry_After="2"` becomes that header."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()

    def step(handler: _Handler) -> None:
        kind = {"Content_Type": "application/json" if status < 400 else "application/problem+json"}
        handler.answer(status, body, {**kind, **headers})

    return step


def hangs(handler: _Handler) -> None:
    """No answer, until the server is closed."""
    handler.faulty.done.wait(20)
    handler.close_connection = True


def hangs_up(handler: _Handler) -> None:
    """The connection is closed without a word."""
    handler.close_connection = True


def ends_early(handler: _Handler) -> None:
    """The connection is closed in the middle of the body."""
    handler.answer(200, b'{"bundle": "b1", "str', {"Content_Length": "500"})
    handler.close_connection = True


def drips(handler: _Handler) -> None:
    """A body of which each byte comes in time, and the last one never."""
    handler.answer(200, b"", {"Content_Length": "100000"})
    while not handler.faulty.done.wait(0.02):
        try:
            handler.wfile.write(b" ")
        except OSError:
            break
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up close connections: no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def faulty(self) -> Faulty:
        return self.server.faulty  # type: ignore[attr-defined]

    def setup(self) -> None:
        self.faulty.connections += 1
        super().setup()

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.faulty.asked.append(Asked(self.command, self.path, headers, body))
        self.faulty.first.set()
        steps = self.faulty.steps
        (steps.pop(0) if len(steps) > 1 else steps[0])(self)

    do_GET = do_POST = do_PUT = do_DELETE = _do

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests look at what was kept."""
