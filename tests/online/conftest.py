from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from recsys.online.store import OnlineStore, open_online
from tests.online.server import KEEPS, Server

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs coroutines, all of a test's on one event loop, as a service does."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a Redis of the test's own, which keeps what it accepts unless options say otherwise."""
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(tmp_path / f"redis-{len(started)}", *(options or KEEPS)))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for tests that do not kill it: the one that is named, else one of their own."""
    if named := os.environ.get("RECSYS_TEST_REDIS"):
        yield named
        return
    if shutil.which("redis-server") is None:
        pytest.skip("set RECSYS_TEST_REDIS to the address of a Redis, like redis://127.0.0.1:6379/15")
    server = Server(tmp_path_factory.mktemp("redis"), *KEEPS)
    yield server.address
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Addresses of new stores of one kind."""
    if request.param == "sqlite":
        yield lambda: str(tmp_path / uuid.uuid4().hex)
        return
    address, names = request.getfixturevalue("redis_address"), []

    def place() -> str:
        names.append(f"test-{uuid.uuid4().hex}")
        return f"{address}?name={names[-1]}"

    yield place
    with redis.Redis.from_url(address) as client:
        for name in names:
            for key in client.scan_iter(f"recsys:{{{name}}}:*", count=10_000):
                client.delete(key)


@pytest.fixture
def address(places: Callable[[], str]) -> str:
    return places()


@pytest.fixture
def opened(run: Run) -> Iterator[Callable[[str], OnlineStore]]:
    """Opens stores and closes them in the end."""
    stores: list[OnlineStore] = []

    def open_at(address: str) -> OnlineStore:
        stores.append(open_online(address))
        return stores[-1]

    yield open_at
    for store in stores:
        run(store.close())


@pytest.fixture
def store(opened: Callable[[str], OnlineStore], address: str) -> OnlineStore:
    return opened(address)
