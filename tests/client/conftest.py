from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from recsys.client import AsyncClient, Client
from tests.client.faulty import Faulty
from tests.client.toys import Make


class Awaited:
    """An AsyncClient whose methods can be called as those of a Client."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **named: self._runner.run(method(*arguments, **named))

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: Any) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "awaited"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a client of either kind, which is closed after the test."""
    made: list[Any] = []

    def make(server: Faulty | str, **named: Any) -> Any:
        made.append(request.param(server if isinstance(server, str) else server.address, **named))
        return made[-1].__enter__()

    yield make
    for client in made:
        client.__exit__(None, None, None)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that clients would have waited between tries, and do not."""
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    blocking = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr("recsys.client.clients.time", blocking)
    monkeypatch.setattr("recsys.client.clients.asyncio", SimpleNamespace(sleep=wait, timeout=asyncio.timeout))
    return waited
