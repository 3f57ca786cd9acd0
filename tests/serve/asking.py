"""Asks an ASGI application without a server, so that a test decides every byte and when it arrives."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_headers: list[tuple[bytes, bytes]]
    chunks_read: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Any, method: str, target: str, body: Any = b"", *, headers: dict[str, str] | None = None) -> Reply:
    """Sends one request.

    Args:
        app: an ASGI application.
        method: GET, POST, …
        target: path and query as they stand in a request line, percent-encoded.
        body: bytes, a list of byte chunks that arrive one after the other, or a value to send as JSON.
        headers: of the request.
    """
    return asyncio.run(asked(app, method, target, body, headers=headers))


async def asked(app: Any, method: str, target: str, body: Any = b"", *, headers: dict[str, str] | None = None) -> Reply:
    """`ask`, within a running event loop."""
    path, _, query = target.partition("?")
    chunks = body if isinstance(body, list) and all(isinstance(part, bytes) for part in body) else None
    if chunks is None:
        chunks = [body if isinstance(body, bytes) else json.dumps(body).encode()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read == len(chunks):
            await asyncio.Event().wait()  # nothing comes any more, and the caller stays connected
        read += 1
        return {"type": "http.request", "body": chunks[read - 1], "more_body": read < len(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *bodies = sent
    said = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], said, b"".join(part["body"] for part in bodies), start["headers"], read)
