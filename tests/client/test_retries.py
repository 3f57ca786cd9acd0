"""Servers that refuse, hang, break off and recover: what is asked again, how often, and until when."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.client import Accepted, RecommendationError, Unavailable, UserEvent, calls
from recsys.client import attempts as trying
from recsys.client.attempts import Budget, Lost, Patience, Reply, Wait, attempts
from tests.client.faulty import Step, drips, ends_early, faulty, hangs, hangs_up, says
from tests.client.toys import ANSWER, BUSY, PROBLEM, READ, Make


def test_a_refused_connection_is_tried_again(make: Make, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(says(ANSWER), listening=False) as server:

        def comes_up(seconds: float) -> None:
            waits.append(seconds)
            server.listen()

        async def comes_up_meanwhile(seconds: float) -> None:
            comes_up(seconds)

        monkeypatch.setattr("recsys.client.clients.time.sleep", comes_up)
        monkeypatch.setattr("recsys.client.clients.asyncio.sleep", comes_up_meanwhile)
        assert make(server).recommend() == READ
    assert len(waits) == 1


def test_a_connection_that_stays_refused_is_unavailable(make: Make, waits: list[float]) -> None:
    with faulty(says(ANSWER), listening=False) as server, pytest.raises(Unavailable) as caught:
        make(server).recommend()
    assert (caught.value.tries, caught.value.status, len(waits)) == (3, None, 2)
    assert caught.value.request_id
    for word in ("POST /v1/recommendations", "ConnectError", "tried 3 times"):
        assert word in str(caught.value)


@pytest.mark.parametrize("fault", [hangs_up, ends_early], ids=["hangs up", "ends early"])
@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda client: client.recommend(), ANSWER),
        (lambda client: client.put_item("i1", available=True), {"item_id": "i1", "available": True}),
        (lambda client: client.delete_item("i1"), {"item_id": "i1", "available": False}),
    ],
    ids=["recommend", "put", "delete"],
)
def test_a_connection_lost_in_the_middle_is_tried_again(
    make: Make, waits: list[float], fault: Step, ask: Any, said: Any
) -> None:
    with faulty(fault, says(said)) as server:
        ask(make(server))
    assert len(server.asked) == 2
    assert len(waits) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_service_without_room_is_asked_again_after_the_time_it_names(
    make: Make, waits: list[float], status: int
) -> None:
    with faulty(says({**BUSY, "status": status}, status, Retry_After="2"), says(ANSWER)) as server:
        assert make(server).recommend() == READ
    assert len(server.asked) == 2
    assert len(waits) == 1
    assert 2 <= waits[0] <= 2.1


def test_a_time_to_wait_that_is_a_date_is_kept_too(make: Make, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=60))
    past = "Thu, 01 Jan 1970 00:00:00 GMT"
    for said, least, most in ((soon, 30, 61), ("soon", 0, 0.2), ("-3", 0, 0.2), (past, 0, 0.2)):
        waits.clear()
        with faulty(says(BUSY, 503, Retry_After=said), says(ANSWER)) as server:
            assert make(server, deadline_s=100).recommend() == READ
        assert least <= waits[0] <= most, said


def test_a_time_to_wait_that_there_is_not_ends_the_call_at_once(make: Make, waits: list[float]) -> None:
    with faulty(says(BUSY, 503, Retry_After="3600")) as server, pytest.raises(Unavailable) as caught:
        make(server).recommend()
    error = caught.value
    assert (error.tries, error.retry_after_s, error.status, waits) == (1, 3600, 503, [])
    assert "no bundle is loaded yet" in error.detail
    assert "no time is left of 6 s" in error.detail


def test_after_the_last_try_it_is_unavailable_and_says_why(make: Make, waits: list[float]) -> None:
    with faulty(says({**BUSY, "request_id": "r-3"}, 503)) as server, pytest.raises(Unavailable) as caught:
        make(server, retries=1).recommend()
    error = caught.value
    assert (error.status, error.tries, error.request_id, error.retry_after_s) == (503, 2, "r-3", None)
    assert len(server.asked) == 2
    assert str(error) == "503 POST /v1/recommendations: no bundle is loaded yet (tried 2 times) (request r-3)"


def test_no_retries_means_none(make: Make, waits: list[float]) -> None:
    with faulty(says(BUSY, 503)) as server, pytest.raises(Unavailable, match="tried 1 time"):
        make(server, retries=0).recommend()
    assert (len(server.asked), waits) == (1, [])


def test_an_answer_that_does_not_come_is_given_up_in_time(make: Make) -> None:
    with faulty(hangs) as server:
        client = make(server, timeout_s=0.3, retries=1)
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer within 0\.\d+ s") as caught:
            client.recommend()
        assert time.monotonic() - began < 5
        assert caught.value.status is None


def test_an_answer_that_comes_too_slowly_is_asked_for_again(make: Make, waits: list[float]) -> None:
    with faulty(hangs, says(ANSWER)) as server:
        assert make(server, timeout_s=0.5, deadline_s=10).recommend() == READ
        assert len(server.asked) == 2


def test_an_answer_that_drips_is_late_although_each_of_its_bytes_is_in_time(make: Make) -> None:
    with faulty(drips) as server, pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        make(server, timeout_s=0.3, retries=0).recommend()


def test_the_deadline_is_for_all_tries_together(make: Make) -> None:
    with faulty(hangs) as server:
        client = make(server, timeout_s=8, retries=10, deadline_s=0.3)
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no time is left of 0\.3 s"):
            client.recommend()
        assert time.monotonic() - began < 5


def test_a_server_that_is_down_is_not_hammered(make: Make, waits: list[float]) -> None:
    with faulty(says(BUSY, 503)) as server:
        client = make(server, retries=3)
        for _ in range(100):
            with pytest.raises(Unavailable) as caught:
                client.recommend()
        # 100 calls, the 10 retries that were saved up, and 1 for each 10 calls: not 400.
        assert 119 <= len(server.asked) <= 121
        assert "too many calls have failed lately" in str(caught.value)
        server.steps[:] = [says(ANSWER)]
        for _ in range(11):
            assert client.recommend() == READ
        server.steps[:] = [says(BUSY, 503), says(ANSWER)]
        assert client.recommend() == READ


def test_all_tries_of_a_call_bear_one_request_id_and_other_calls_another(make: Make, waits: list[float]) -> None:
    with faulty(says(BUSY, 503), says(ANSWER)) as server:
        client = make(server, key="s3cret")
        client.recommend()
        client.recommend()
    first, again, other = server.asked
    assert first.headers["x-request-id"] == again.headers["x-request-id"] != other.headers["x-request-id"]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer s3cret"}
    assert first.headers["user-agent"].startswith("recsys-client/")


def test_an_event_keeps_its_id_over_tries_and_over_calls(make: Make, waits: list[float]) -> None:
    events = [UserEvent("u1", "i1"), UserEvent("u1", "i1")]
    with faulty(ends_early, says({"accepted": 0, "duplicates": 2})) as server:
        client = make(server)
        assert client.send_events(events) == Accepted(0, 2)
        client.send_events(events)
    assert len(server.asked) == 3
    ids = [[event["event_id"] for event in asked.json["events"]] for asked in server.asked]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 2


def test_ready_is_asked_once_and_a_service_that_is_away_is_not_ready(make: Make, waits: list[float]) -> None:
    with faulty(says(BUSY, 503), says({**PROBLEM, "status": 403}, 403)) as server:
        client = make(server)
        assert client.ready() is False
        assert len(server.asked) == 1
        with pytest.raises(RecommendationError, match="403"):
            client.ready()
    with faulty(says(ANSWER), listening=False) as server:
        assert make(server).ready() is False
    assert waits == []


def test_what_the_proxy_says_until_the_service_has_started_is_no_answer(make: Make, waits: list[float]) -> None:
    starting = b"Path '/readyz' not found. Ping http://.../-/routes for available routes."
    with faulty(says(starting, 404, Content_Type="text/plain"), says({"status": "ok"})) as server:
        client = make(server)
        assert [client.ready(), client.ready()] == [False, True]
        assert len(server.asked) == 2
        assert waits == []
    with faulty(says(starting, 404, Content_Type="text/plain"), says(ANSWER)) as server:
        assert make(server).recommend() == READ
        assert len(waits) == 1
    elsewhere = says(b"<h1>Not here</h1>", 404, Content_Type="text/html")
    with faulty(elsewhere) as server, pytest.raises(RecommendationError, match="404"):
        make(server).ready()


# The logic alone, with a clock that only it moves


def played(
    call: calls.Call[Any], patience: Patience, budget: Budget, outcomes: list[tuple[Reply | Lost, float]]
) -> tuple[int, int, float]:
    """How many tries and waits there were, and how long all took, when these were the outcomes, each after a time."""
    now, sends, waits = 0.0, 0, 0
    outcome: Reply | Lost | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trying, "time", SimpleNamespace(monotonic=lambda: now))
        steps = attempts(call, patience, budget)
        while True:
            try:
                step = steps.send(outcome)
            except (StopIteration, RecommendationError):
                return sends, waits, now
            if isinstance(step, Wait):
                waits, now, outcome = waits + 1, now + step.seconds, None
                continue
            assert 0 < step.timeout_s <= patience.timeout_s
            assert now + step.timeout_s <= patience.deadline_s + 1e-9
            outcome, took = outcomes[min(sends, len(outcomes) - 1)]
            sends, now = sends + 1, now + min(took, step.timeout_s)


OUTCOMES = st.one_of(
    st.builds(Lost, st.just("away"), retry=st.booleans()),
    st.builds(
        Reply,
        st.sampled_from([200, 422, 429, 500, 503]),
        st.dictionaries(st.just("retry-after"), st.sampled_from(["0", "1", "7", "soon"])),
        st.sampled_from([b"{}", b"", b'{"detail": "busy"}']),
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    outcomes=st.lists(st.tuples(OUTCOMES, st.floats(0, 3)), min_size=1, max_size=8),
    patience=st.builds(Patience, st.floats(0.1, 3), st.floats(0.1, 9), st.integers(0, 5)),
    saved=st.integers(0, 4),
)
def test_whatever_happens_tries_waits_and_time_are_bounded(
    outcomes: list[tuple[Reply | Lost, float]], patience: Patience, saved: int
) -> None:
    for call, most in ((calls.ready(), 1), (calls.bundle(), min(1 + patience.retries, 1 + saved))):
        sends, waits, took = played(call, patience, Budget(reserve=saved), outcomes)
        assert 1 <= sends <= most
        assert waits == sends - 1
        assert took <= patience.deadline_s + 1e-9


def test_waits_are_drawn_from_nothing_to_a_most_that_doubles_up_to_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr(trying, "random", SimpleNamespace(uniform=draw))
    assert played(calls.bundle(), Patience(1, 1e9, 7), Budget(), [(Lost("away"), 0)])[:2] == (8, 7)
    assert drawn[:7] == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.0), (0, 1.0), (0, 1.0)]
