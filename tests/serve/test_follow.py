"""The live follower: what is said of items reaches every replica within a second, whatever fails in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.online.store import LiveItem, OnlineStore, OnlineStoreError, open_online
from serve.follow import Follower
from serve.swap import Current
from tests.serve.test_swap import Told, told


class InMemory:
    """An online store of items alone, that can be made to fail and to hang."""

    address = "memory"

    def __init__(self) -> None:
        self.log: list[LiveItem] = []
        self.fault: Exception | None = None
        self.asked_after: list[int] = []

    async def put_item(self, item: LiveItem) -> None:
        self.log.append(item)

    async def items_changed(self, after: int) -> tuple[list[LiveItem], int]:
        self.asked_after.append(after)
        if self.fault:
            raise self.fault
        if after > len(self.log):
            after = 0
        return self.log[after:], len(self.log)


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: InMemory(),
    "folder": lambda path: open_online(str(path)),
}


def item(item_id: str) -> LiveItem:
    return LiveItem(item_id, None, True, int(time.time() * 1000))


def run(follow: Callable[[OnlineStore, Follower, Current], Awaitable[Any]], store: Any, **settings: Any) -> Any:
    async def main() -> Any:
        current = Current(lambda _: None)
        current.put(Told("a"))
        follower = Follower(store, current, **settings)
        try:
            return await follow(store, follower, current)
        finally:
            await follower.close()
            if hasattr(store, "close"):
                await store.close()

    return asyncio.run(asyncio.wait_for(main(), 20))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", STORES)
def test_what_was_said_before_is_known_at_the_start_and_what_follows_within_a_second(kind: str, tmp_path: Path) -> None:
    async def follow(store: OnlineStore, follower: Follower, current: Current) -> float:
        await store.put_item(item("x"))
        await follower.first()
        assert told(current) == ("x",)
        follower.start()
        await store.put_item(item("y"))
        said = time.monotonic()
        await until(lambda: "y" in told(current))
        return time.monotonic() - said

    assert run(follow, STORES[kind](tmp_path)) < 1


@pytest.mark.parametrize("kind", STORES)
def test_two_replicas_of_one_store_both_learn(kind: str, tmp_path: Path) -> None:
    async def follow(store: OnlineStore, follower: Follower, current: Current) -> None:
        other = Current(lambda _: None)
        other.put(Told("a"))
        second = Follower(store, other)
        for each in (follower, second):
            await each.first()
            each.start()
        await store.put_item(item("x"))
        await until(lambda: told(current) == told(other) == ("x",))
        await second.close()

    run(follow, STORES[kind](tmp_path))


@pytest.mark.parametrize("kind", STORES)
def test_who_has_written_reads_it_back_without_waiting_for_the_next_round(kind: str, tmp_path: Path) -> None:
    async def follow(store: OnlineStore, follower: Follower, current: Current) -> None:
        follower.start()
        for number in range(20):
            await store.put_item(item(f"i{number}"))
            assert await follower.caught_up(5)
            assert f"i{number}" in told(current)

    run(follow, STORES[kind](tmp_path), interval_s=60)


def test_many_who_wait_are_served_by_few_rounds() -> None:
    store = InMemory()

    async def follow(_: OnlineStore, follower: Follower, current: Current) -> None:
        async def write(number: int) -> None:
            await store.put_item(item(f"i{number}"))
            assert await follower.caught_up(5)
            assert f"i{number}" in told(current)

        follower.start()
        await asyncio.gather(*(write(number) for number in range(200)))

    run(follow, store, interval_s=60)
    assert len(store.asked_after) < 10


def test_a_bundle_that_comes_later_knows_all_that_was_said() -> None:
    async def follow(store: OnlineStore, follower: Follower, current: Current) -> None:
        follower.start()
        await store.put_item(item("x"))
        assert await follower.caught_up()
        current.put(Told("b"))
        assert told(current) == ("x",)
        await store.put_item(item("y"))
        assert await follower.caught_up()
        assert (current.recommender.bundle.id, told(current)) == ("b", ("x", "y"))

    run(follow, InMemory())


def test_a_store_that_fails_is_reported_and_followed_again_when_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemory()

    async def follow(_: OnlineStore, follower: Follower, current: Current) -> None:
        store.fault = OnlineStoreError("redis://x does not answer")
        await follower.first()
        follower.start()
        await until(lambda: len(store.asked_after) > 3)
        assert not await follower.caught_up(1)
        assert follower.standing.error == "redis://x does not answer"
        since = follower.standing.failing_since
        assert since is not None
        assert caplog.text.count("redis://x does not answer") == 1
        await store.put_item(item("x"))
        store.fault = None
        await until(lambda: told(current) == ("x",))
        await until(lambda: follower.standing.error is None)
        assert follower.standing.sequence == 1

    run(follow, store, interval_s=0.01)


def test_a_store_that_hangs_holds_up_nobody_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.follow.TIMEOUT_S", 0.05)
    store = InMemory()

    async def hang(after: int) -> Any:
        store.asked_after.append(after)
        await asyncio.sleep(60)

    async def follow(_: OnlineStore, follower: Follower, current: Current) -> None:
        follower.start()
        assert not await follower.caught_up(0.01)
        await until(lambda: len(store.asked_after) > 2)
        assert follower.standing.error == "TimeoutError"

    store.items_changed = hang  # type: ignore[method-assign]
    run(follow, store, interval_s=0.01)


def test_what_a_store_lost_stays_known_and_its_new_numbers_are_followed() -> None:
    store = InMemory()

    async def follow(_: OnlineStore, follower: Follower, current: Current) -> None:
        for name in ("x", "y", "z"):
            await store.put_item(item(name))
        await follower.first()
        store.log = [item("new")]
        follower.start()
        assert await follower.caught_up()
        assert told(current) == ("x", "y", "z", "new")
        assert follower.standing.sequence == 1

    run(follow, store)
