"""What a client shares, holds, hides and brings along."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from recsys.client import Answer, AsyncClient, Client, Fault, RecommendationError, Unavailable
from recsys.client.attempts import Budget, Patience
from tests.client.faulty import faulty, hangs, hangs_up, says
from tests.client.toys import ANSWER, PROBLEM, READ, Make


def test_threads_share_a_client_and_its_few_connections() -> None:
    with faulty(says(ANSWER)) as server, Client(server.address, connections=2, timeout_s=20) as client:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda user: client.recommend(user_id=user), range(40))) == [READ] * 40
        assert len(server.asked) == 40
        assert server.connections <= 2


def test_threads_wait_before_the_pool_and_never_in_it() -> None:
    """Where they wait in it, it can close a connection that one of them works with (httpcore 1.0.9)."""

    class Crowd(httpx.BaseTransport):
        def __init__(self) -> None:
            self.third = threading.Barrier(3)
            self.crowded = False

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.third.wait(0.2)
                self.crowded = True
            return httpx.Response(200, json=ANSWER)

    crowd = Crowd()
    with Client("http://shop", connections=2, timeout_s=20, transport=crowd) as client, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda user: client.recommend(user_id=user), range(6))) == [READ] * 6
    assert not crowd.crowded


def test_tasks_share_a_client_and_its_few_connections() -> None:
    async def run(address: str) -> list[Answer]:
        async with AsyncClient(address, connections=2, timeout_s=20) as client:
            return await asyncio.gather(*(client.recommend(user_id=user) for user in range(40)))

    with faulty(says(ANSWER)) as server:
        assert asyncio.run(run(server.address)) == [READ] * 40
        assert server.connections <= 2


def test_a_blocking_call_that_finds_all_connections_busy_is_told_so() -> None:
    with faulty(hangs) as server, Client(server.address, connections=1, timeout_s=20) as client:
        first = threading.Thread(target=client.ready)
        first.start()
        assert server.first.wait(10)
        client._settings.patience = Patience(0.2, 5, 2)
        with pytest.raises(Unavailable, match="more `connections`") as caught:
            client.recommend()
        assert caught.value.tries == 1
        server.done.set()
        first.join(10)


def test_an_awaited_call_that_finds_all_connections_busy_is_told_so() -> None:
    async def run(address: str, first_came: threading.Event) -> None:
        async with AsyncClient(address, connections=1, timeout_s=20) as client:
            first = asyncio.create_task(client.recommend())
            assert await asyncio.to_thread(first_came.wait, 10)
            client._settings.patience = Patience(0.2, 5, 2)
            with pytest.raises(Unavailable, match="more `connections`") as caught:
                await client.recommend()
            assert caught.value.tries == 1
            first.cancel()

    with faulty(hangs) as server:
        asyncio.run(run(server.address, server.first))


def test_a_task_that_is_cancelled_ends_at_once_and_asks_no_more() -> None:
    async def run(address: str, first_came: threading.Event) -> None:
        async with AsyncClient(address, timeout_s=20) as client:
            task = asyncio.create_task(client.recommend())
            assert await asyncio.to_thread(first_came.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with faulty(hangs) as server:
        began = time.monotonic()
        asyncio.run(run(server.address, server.first))
        assert time.monotonic() - began < 10
        assert len(server.asked) == 1


def test_a_closed_client_says_so(make: Make) -> None:
    with faulty(says(ANSWER)) as server:
        client = make(server)
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.recommend()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("address", "named", "words"),
    [
        ("127.0.0.1:8000", {}, "give one such as http://"),
        ("localhost:8000", {}, "'localhost:8000' is no http:// or https://"),
        ("ftp://shop", {}, "is no http://"),
        ("http://", {}, "is no http://"),
        ("http://shop/?a=1", {}, "is no http://"),
        ("http://shop\n", {}, "address is none"),
        ("http://me:pass1@shop", {}, "give the service's key as `key`"),
        ("http://shop", {"key": "a b"}, "the key holds"),
        ("http://shop", {"key": "abc\r\nX: 1"}, "the key holds"),
        ("http://shop", {"key": ""}, "the key holds"),
        ("http://shop", {"timeout_s": 0}, "timeout_s is 0"),
        ("http://shop", {"timeout_s": float("nan")}, "timeout_s is nan"),
        ("http://shop", {"deadline_s": -1}, "deadline_s is -1"),
        ("http://shop", {"retries": -1, "deadline_s": 1}, "retries is -1"),
        ("http://shop", {"connections": 0}, "connections is 0"),
    ],
)
def test_a_client_that_cannot_be_is_refused_and_secrets_are_not_told(
    kind: Any, address: str, named: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        kind(address, **named)
    for secret in ("pass1", "abc"):
        assert secret not in str(caught.value)


def test_the_key_is_in_no_error_and_in_no_repr(make: Make, waits: list[float]) -> None:
    with faulty(says(PROBLEM, 422), hangs_up) as server:
        client = make(server, key="s3cret-key")
        for _ in range(2):
            with pytest.raises(RecommendationError) as caught:
                client.recommend()
            assert "s3cret" not in f"{caught.value} {caught.value!r} {vars(caught.value)} {client!r}"


@pytest.mark.parametrize(
    "error",
    [
        RecommendationError("k: wrong", status=422, faults=[Fault("k", "wrong")], request_id="r"),
        Unavailable("away", tries=3, retry_after_s=2.0),
    ],
)
def test_errors_travel_between_processes(error: RecommendationError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_client_brings_nothing_heavy() -> None:
    program = (
        "import sys, recsys.client\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'numpy', 'ray', 'faiss', 'fastapi', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_httpx_the_error_names_what_to_install() -> None:
    program = "import sys; sys.modules['httpx'] = None; import recsys.client"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "ImportError: recsys.client needs httpx" in run.stderr
    assert "pip install 'recsys[client]'" in run.stderr


def test_a_budget_is_shared_by_threads_without_loss() -> None:
    budget = Budget(share=0, reserve=1000)
    spent: list[bool] = []
    threads = [threading.Thread(target=lambda: spent.extend(budget.spend() for _ in range(300))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) == 1000
