"""An ASGI application behind a real server on loopback, for what only shows on a socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def running(app: Any, **settings: Any) -> Iterator[int]:
    """Serves the application with uvicorn, up to the end of the block; yields the port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, **settings)
        server = uvicorn.Server(config)
        started = threading.Event()
        startup = server.startup

        async def starting(*arguments: Any, **named: Any) -> None:
            await startup(*arguments, **named)
            started.set()

        server.startup = starting  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        assert started.wait(20), "uvicorn did not start"
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)
