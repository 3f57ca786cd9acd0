"""Less and less is done under load, each step named, before anybody is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from recsys.recommender import Effort
from serve.load import Load
from serve.problems import Refusal

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
