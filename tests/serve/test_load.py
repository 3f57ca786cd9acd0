"""Less and less is done under load, each step named, before anybody is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest

from recsys.recommender import Effort, Recommender
from serve.asgi import Application
from serve.load import Load
from serve.pace import Pace
from serve.problems import Refusal
from serve.schemas import Limits
from serve.service import Service
from serve.settings import Shed
from tests.serve.asking import Reply, ask, asked
from tests.serve.conftest import LIMITS
from tests.serve.stand_in import StandIn

STEPS = [(0, Effort.FULL), (1, Effort.FULL), (2, Effort.FEWER), (4, Effort.PREFIX), (6, Effort.POPULAR)]


@pytest.mark.parametrize(("waiting", "effort"), STEPS)
def test_what_waits_decides_the_effort(waiting: int, effort: Effort) -> None:
    load = Load(8)
    with contextlib.ExitStack() as under_way:
        for _ in range(waiting):
            under_way.enter_context(load.waiting())
        assert load.effort() is effort
    assert load.effort() is Effort.FULL, "what has ended no longer counts"


@pytest.mark.parametrize(("delay_s", "effort"), [(0.1, Effort.FULL), (0.3, Effort.PREFIX), (0.45, Effort.POPULAR)])
def test_so_does_the_event_loops_delay(delay_s: float, effort: Effort) -> None:
    load = Load(8)
    load.delay_s = delay_s
    assert load.effort() is effort


def test_too_much_of_either_is_turned_away() -> None:
    load = Load(1)
    with load.waiting(), pytest.raises(Refusal) as too_many, load.waiting():
        pass
    load.delay_s = 0.6
    with pytest.raises(Refusal) as too_late:
        load.effort()
    assert [caught.value.status for caught in (too_many, too_late)] == [503, 503]
    assert all("Retry-After" in caught.value.headers for caught in (too_many, too_late))


def test_a_loop_that_is_held_up_is_noticed_and_forgotten_again() -> None:
    async def run() -> tuple[float, float]:
        load = Load()
        watching = asyncio.create_task(load.watch())
        await asyncio.sleep(0.01)
        time.sleep(0.3)
        await asyncio.sleep(0.06)
        held_up = load.delay_s
        while load.delay_s > held_up / 2:
            await asyncio.sleep(0.01)
        watching.cancel()
        return held_up, load.delay_s

    held_up, later = asyncio.run(run())
    assert held_up > 0.15
    assert later <= held_up / 2


USER, POST, SIMILAR = "/v1/users/u3/recommendations", "/v1/recommendations", "/v1/items/i%2F0/similar"
ITEM_LISTS: list[tuple[str, str, Any]] = [
    ("GET", USER, b""),
    ("POST", POST, {"history": ["i 1"]}),
    ("GET", SIMILAR, b""),
    ("POST", "/v1/similar", {"items": ["i 1"]}),
    ("POST", "/v1/similar", {"features": {"title": "a"}}),
]
LATE = [(0.1, Effort.FULL), (0.2, Effort.FEWER), (0.3, Effort.PREFIX), (0.45, Effort.POPULAR)]


@pytest.mark.parametrize(("method", "target", "body"), ITEM_LISTS)
@pytest.mark.parametrize(("delay_s", "effort"), LATE)
def test_every_list_is_made_with_the_effort_of_its_step(
    stand_in: StandIn, method: str, target: str, body: Any, delay_s: float, effort: Effort
) -> None:
    taken: list[Effort] = []
    for name in ("recommend", "similar"):
        usual = getattr(stand_in, name)

        def noted(*given: Any, usual: Any = usual, **named: Any) -> Any:
            taken.append(named["effort"])
            return usual(*given, **named)

        setattr(stand_in, name, noted)
    service = Service(LIMITS, stand_in)  # type: ignore[arg-type]
    service.load.delay_s = delay_s
    assert ask(Application(service), method, target, body).status == 200
    assert taken == [effort]


@pytest.mark.parametrize(("method", "target", "body"), ITEM_LISTS)
def test_every_list_is_refused_at_the_last_step(stand_in: StandIn, method: str, target: str, body: Any) -> None:
    service = Service(LIMITS, stand_in)  # type: ignore[arg-type]
    service.load.delay_s = 0.6
    reply = ask(Application(service), method, target, body)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "0.6 s late" in reply.json["detail"]


def test_popular_items_stand_in_for_similar_ones_and_it_is_said(toy_bundle: Any) -> None:
    recommender = Recommender(toy_bundle)
    service = Service(Limits(), recommender)
    app = Application(service)
    assert ask(app, "GET", "/v1/items/i3/similar?k=3").json["strategy"] == "similar"
    service.load.delay_s = 0.45
    said = ask(app, "GET", "/v1/items/i3/similar?k=3").json
    assert (said["strategy"], said["degraded"]) == ("popular", ["popular"])
    popular = [item.item_id for item in recommender.recommend(k=4).items if item.item_id != "i3"]
    assert [item["item_id"] for item in said["items"]] == popular[:3]


class Gated:
    """A service of four places, popular items from three on, whose histories are answered when the gate opens."""

    def __init__(self, stand_in: StandIn, slow: set[Effort]) -> None:
        self.gate = threading.Event()
        quick = stand_in.recommend

        def gated(**given: Any) -> Any:
            if given["history"] and given["effort"] in slow:
                self.gate.wait(10)
            return quick(**given)

        stand_in.recommend = gated  # type: ignore[method-assign]
        load = Load(4, Shed(fewer=0.75, cheaper=0.75, popular=0.75))
        self.service = Service(LIMITS, stand_in, load=load)  # type: ignore[arg-type]
        self.service._pace = Pace(at_once_s=0.5)  # so that what is quick is so on a busy machine, too
        self.app = Application(self.service)

    async def ask(self) -> Reply:
        async with asyncio.timeout(5):
            return await asked(self.app, "POST", POST, {"history": ["i 1"]})

    async def ask_popular(self) -> Reply:
        self.service.load.delay_s = 0.45
        reply = await self.ask()
        self.service.load.delay_s = 0.0
        return reply

    @contextlib.asynccontextmanager
    async def waiting(self, count: int) -> Any:
        tasks = [asyncio.create_task(self.ask()) for _ in range(count)]
        await asyncio.sleep(0.05)
        try:
            yield tasks
        finally:
            self.gate.set()
            await asyncio.gather(*tasks)


def test_what_is_quick_with_less_effort_does_not_wait_behind_what_is_slow(stand_in: StandIn) -> None:
    async def run() -> None:
        gated = Gated(stand_in, {Effort.FULL})
        assert (await gated.ask_popular()).json["degraded"] == ["popular"]  # so that it is known to be quick
        async with gated.waiting(3) as tasks:
            reply = await gated.ask()
            assert (reply.status, reply.json["degraded"]) == (200, ["popular"])
            assert not any(task.done() for task in tasks)
        assert [task.result().json["strategy"] for task in tasks] == ["history"] * 3

    asyncio.run(run())


def test_but_is_turned_away_with_it_where_only_what_is_always_quick_passes(stand_in: StandIn) -> None:
    async def run() -> None:
        gated = Gated(stand_in, {Effort.FULL})
        await gated.ask_popular()
        assert (await asked(gated.app, "GET", USER)).status == 200  # quick at full effort, and never asked with less
        async with gated.waiting(3):
            blocker = asyncio.create_task(asked(gated.app, "POST", "/v1/recommendations:batch", {"requests": [{}]}))
            await asyncio.sleep(0.05)  # the fourth place: a batch is never quick
            refused = await gated.ask()
            assert refused.status == 503
            assert "4 slow requests" in refused.json["detail"]
            passed = await asked(gated.app, "GET", USER)
            assert (passed.status, passed.json["degraded"]) == (200, ["popular"])
            assert not blocker.done()
        assert (await blocker).status == 200
        assert (await gated.ask()).status == 200

    asyncio.run(run())


def test_what_was_never_quick_with_less_effort_is_not_taken_to_be(stand_in: StandIn) -> None:
    async def run() -> None:
        gated = Gated(stand_in, {Effort.FULL, Effort.POPULAR})
        async with gated.waiting(3):
            last = asyncio.create_task(gated.ask())
            await asyncio.sleep(0.05)  # the loop is not held up: it waits on the thread
            assert not last.done()
            assert gated.service.load.is_full
        assert (await last).json["degraded"] == ["popular"]

    asyncio.run(run())
