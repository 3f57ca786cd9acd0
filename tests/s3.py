"""An S3 server on this machine: moto behind real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec.config  # type: ignore[import-untyped]
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


@dataclass(frozen=True)
class S3:
    """A server and a bucket on it.

    Attributes:
        address: of a bucket that exists.
        options: what fsspec must be told.
    """

    address: str
    options: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """The options as fsspec reads them from the environment of another process."""
        return {f"FSSPEC_S3_{name.upper()}": value for name, value in self.options.items()}


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: Any, **__: Any) -> None:
        """Nobody reads it."""


@contextmanager
def running_s3() -> Iterator[S3]:
    """The server, up to the end of the block; within it fsspec of this process knows its endpoint."""
    moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        # S3 looks whether a key is there and writes it in one step; moto in two, between which others could come.
        with turn:
            return list(moto(environ, start))

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    options = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "key": "nobody", "secret": "nothing"}
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = options
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield S3("s3://bucket", options)
    finally:
        if before is None:
            del fsspec.config.conf["s3"]
        else:
            fsspec.config.conf["s3"] = before
        server.shutdown()
        server.server_close()
        thread.join()
