"""What each method sends and what it makes of the answer: one suite for the blocking and the awaited client."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest

from recsys.client import (
    Accepted,
    Answer,
    AsyncClient,
    Attribute,
    Event,
    Fault,
    Item,
    ItemMap,
    ItemState,
    KnownItem,
    LiveBundle,
    Pull,
    Reason,
    RecommendationError,
    Unavailable,
    UserEvent,
    WhyNot,
)
from serve.asgi import Application
from serve.service import Service
from tests.client.faulty import faulty, says
from tests.client.toys import ANSWER, ITEM, PROBLEM, READ, Make
from tests.serve.conftest import LIMITS
from tests.serve.stand_in import StandIn

EVERYTHING = {
    "user_id": None,
    "history": ["i1", 2, Event("i3", 1_700_000_000.5, "buy"), Event("i4", datetime(2026, 1, 2, tzinfo=UTC))],
    "exclude": [np.int64(9)],
    "include_seen": True,
    "filter": {"year": {"gte": np.int64(1990)}, "genre": ["War"]},
    "caps": {"brand": 2},
    "quotas": [{"filter": {"new": True}, "at_least": 1}],
    "diversity": 0.5,
    "freshness": {"attribute": "added", "half_life_days": 7, "weight": 0.2},
    "explain": True,
}
EVERYTHING_SENT = {
    **{name: value for name, value in EVERYTHING.items() if name != "user_id"},
    "history": [
        "i1",
        2,
        {"item_id": "i3", "timestamp": 1_700_000_000.5, "event": "buy"},
        {"item_id": "i4", "timestamp": "2026-01-02T00:00:00+00:00"},
    ],
    "exclude": [9],
    "filter": {"year": {"gte": 1990}, "genre": ["War"]},
}
EXPLAINED = {
    **ANSWER,
    "items": [{**ITEM, "because": [{"item_id": 2, "share": 1}], "rank_before_rules": 4}],
    "unknown_items": [2],
    "relaxed": ["caps"],
    "degraded": ["diversity"],
}
EXPLAINED_READ = Answer(
    "b1",
    "personalised",
    (Item("i1", 2.5, 1, {"title": "One"}, (Pull(2, 1.0),), 4),),
    (2,),
    ("caps",),
    ("diversity",),
)
ITEM_FEATURES = {"title": "One", "added": datetime(2026, 1, 2, tzinfo=UTC)}
KNOWN = {"item_id": "i1", "attributes": {"title": "One"}, "available": True}
KNOWN_READ = KnownItem("i1", {"title": "One"}, True)
WHY_NOT = {
    "bundle": "b1",
    "item_id": "i9",
    "in_list": False,
    "rank": None,
    "rank_among_eligible": 7,
    "reasons": [{"reason": "below", "detail": "6 items score higher"}],
}


@pytest.mark.parametrize(
    ("ask", "sent", "said", "read"),
    [
        (
            lambda client: client.recommend(user_id="u1", k=3),
            ("POST", "/v1/recommendations", {"user_id": "u1", "k": 3}),
            ANSWER,
            READ,
        ),
        (lambda client: client.recommend(), ("POST", "/v1/recommendations", {}), ANSWER, READ),
        (
            lambda client: client.recommend(**EVERYTHING),
            ("POST", "/v1/recommendations", EVERYTHING_SENT),
            EXPLAINED,
            EXPLAINED_READ,
        ),
        (
            lambda client: client.similar("i 1", k=2),
            ("POST", "/v1/similar", {"items": ["i 1"], "k": 2}),
            {**ANSWER, "strategy": "similar"},
            Answer("b1", "similar", READ.items),
        ),
        (
            lambda client: client.similar([np.int64(1), "b"], caps={"brand": 1}, filter=None),
            ("POST", "/v1/similar", {"items": [1, "b"], "caps": {"brand": 1}}),
            ANSWER,
            READ,
        ),
        (
            lambda client: client.similar(np.int64(1)),
            ("POST", "/v1/similar", {"items": [1]}),
            ANSWER,
            READ,
        ),
        (
            lambda client: client.similar(features={"genre": ["War"]}),
            ("POST", "/v1/similar", {"features": {"genre": ["War"]}}),
            ANSWER,
            READ,
        ),
        (
            lambda client: client.why_not("i9", user_id="u1", k=5),
            ("POST", "/v1/why-not", {"item_id": "i9", "user_id": "u1", "k": 5}),
            WHY_NOT,
            WhyNot("b1", "i9", False, None, 7, (Reason("below", "6 items score higher"),)),
        ),
        (
            lambda client: client.send_events([UserEvent("u1", "i1", 12, "buy", event_id="e1")]),
            (
                "POST",
                "/v1/events",
                {"events": [{"event_id": "e1", "user_id": "u1", "item_id": "i1", "timestamp": 12, "event": "buy"}]},
            ),
            {"accepted": 1, "duplicates": 0},
            Accepted(1, 0),
        ),
        (
            lambda client: client.put_item("i/1", features=ITEM_FEATURES),
            ("PUT", "/v1/items/i%2F1", {"features": {"title": "One", "added": "2026-01-02T00:00:00+00:00"}}),
            {"item_id": "i/1", "available": True},
            ItemState("i/1", True),
        ),
        (
            lambda client: client.put_item(7, available=False),
            ("PUT", "/v1/items/7", {"available": False}),
            {"item_id": 7, "available": False},
            ItemState(7, False),
        ),
        (
            lambda client: client.delete_item("i1"),
            ("DELETE", "/v1/items/i1", None),
            {"item_id": "i1", "available": False},
            ItemState("i1", False),
        ),
        (
            lambda client: client.search_items("a & ü", limit=2),
            ("GET", "/v1/items?q=a+%26+%C3%BC&limit=2", None),
            {"bundle": "b1", "items": [KNOWN]},
            [KNOWN_READ],
        ),
        (lambda client: client.search_items(), ("GET", "/v1/items", None), {"bundle": "b1", "items": []}, []),
        (
            lambda client: client.look_up([np.int64(1), "nope"]),
            ("POST", "/v1/items:lookup", {"items": [1, "nope"]}),
            {"bundle": "b1", "items": [KNOWN], "unknown_items": ["nope"]},
            [KNOWN_READ],
        ),
        (
            lambda client: client.attributes(values=1),
            ("GET", "/v1/attributes?values=1", None),
            {
                "bundle": "b1",
                "attributes": [
                    {"name": "title", "kind": "text", "shown": True, "filterable": False},
                    {
                        "name": "brand",
                        "kind": "categorical",
                        "shown": False,
                        "filterable": True,
                        "distinct": 9,
                        "values": [{"value": "Acme", "items": 7}],
                    },
                    {"name": "year", "kind": "numeric", "shown": True, "filterable": True, "least": 1, "most": 2.5},
                ],
            },
            [
                Attribute("title", "text", True, False),
                Attribute("brand", "categorical", False, True, (("Acme", 7),), 9),
                Attribute("year", "numeric", True, True, least=1, most=2.5),
            ],
        ),
        (
            lambda client: client.item_map(limit=2, attribute="brand"),
            ("GET", "/v1/map?limit=2&attribute=brand", None),
            {"bundle": "b1", "items": [1, "b"], "x": [3, 4], "y": [5, 6], "values": ["Acme"], "codes": [0, -1]},
            ItemMap("b1", (1, "b"), (3, 4), (5, 6), ("Acme",), (0, -1)),
        ),
        (
            lambda client: client.bundle(),
            ("GET", "/v1/bundle", None),
            {"bundle": "b1", "about": {"items": 3}},
            LiveBundle("b1", {"items": 3}),
        ),
        (lambda client: client.ready(), ("GET", "/readyz", None), {"status": "ok"}, True),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_each_method_sends_what_the_contract_says_and_reads_the_answer(
    make: Make, ask: Any, sent: tuple[str, str, Any], said: dict[str, Any], read: Any
) -> None:
    with faulty(says({**said, "of a newer service": [1]})) as server:
        assert ask(make(server)) == read
    (asked,) = server.asked
    assert (asked.method, asked.target, asked.json if asked.body else None) == sent
    assert asked.headers.get("content-type") == ("application/json" if asked.body else None)


def test_a_batch_gives_answers_and_errors_in_the_order_of_its_queries(make: Make) -> None:
    with faulty(says({"bundle": "b1", "answers": [ANSWER, PROBLEM, {**ANSWER, "bundle": "b2"}]})) as server:
        first, second, third = make(server).recommend_many([{"user_id": 1}, {"k": 0}, {"history": [Event("i1")]}])
    assert first == READ
    assert isinstance(second, RecommendationError)
    assert (second.status, second.request_id) == (422, "r-1")
    assert third.bundle == "b2"
    (asked,) = server.asked
    assert asked.target == "/v1/recommendations:batch"
    assert asked.json == {"requests": [{"user_id": 1}, {"k": 0}, {"history": [{"item_id": "i1"}]}]}


def test_a_batch_of_which_an_answer_is_missing_is_refused(make: Make) -> None:
    with (
        faulty(says({"bundle": "b1", "answers": [ANSWER]})) as server,
        pytest.raises(RecommendationError, match="1 answers came for 2 queries"),
    ):
        make(server).recommend_many([{}, {}])


@pytest.mark.parametrize("item_id", ["a/b", "a b", "ü✓", "%2F", "?x=1#y", ".", "..", "../bundle", "a+b", "\r\nX: 1", 7])
def test_whatever_an_item_is_called_its_address_says_that(make: Make, item_id: str | int) -> None:
    with faulty(says({"item_id": item_id, "available": False})) as server:
        make(f"{server.address}/shop/").delete_item(item_id)
    start = "/shop/v1/items/"
    target = server.asked[0].target
    assert target.startswith(start)
    assert "/" not in target[len(start) :]
    assert target[len(start) :] not in (".", "..")
    assert unquote(target[len(start) :]) == str(item_id)


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda client: client.recommend(usr_id=1), TypeError, r"there is no 'usr_id' \(valid: .*user_id"),
        (lambda client: client.similar("a", include_seen=True), TypeError, "'include_seen'"),
        (lambda client: client.similar(), ValueError, "needs items or features"),
        (lambda client: client.recommend(diversity=float("nan")), ValueError, "JSON"),
        (lambda client: client.recommend(diversity=np.float32("nan")), ValueError, "JSON"),
        (lambda client: client.recommend(filter={"x": object()}), TypeError, "object"),
        (lambda client: client.recommend(history=[Event("a", datetime(2026, 1, 2))]), ValueError, "time zone"),
        (lambda client: client.put_item("", available=True), ValueError, "id is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(make: Make, ask: Any, error: Any, words: str) -> None:
    with faulty(says(ANSWER)) as server:
        client = make(server)
        with pytest.raises(error, match=words):
            ask(client)
        assert server.asked == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"<html>Welcome to the hotel</html>", ["no answer that can be read", "hotel", "check that the address"]),
        (b"", ["0 bytes"]),
        (b"[" * 100_000, ["nested too deeply", "100000 bytes"]),
        ([], ["object is expected"]),
        ({"strategy": "popular", "items": []}, ["'bundle' is missing"]),
        ({**ANSWER, "items": [{**ITEM, "score": "high"}]}, ["'score' is 'high'"]),
        ({**ANSWER, "items": [{**ITEM, "rank": True}]}, ["'rank' is True"]),
        ({**ANSWER, "items": [3]}, ["3 stands where an object is expected"]),
        ({**ANSWER, "items": None}, ["'items' is None"]),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_and_is_not_asked_for_again(
    make: Make, said: Any, words: list[str]
) -> None:
    with faulty(says(said)) as server, pytest.raises(RecommendationError) as caught:
        make(server).recommend()
    assert not isinstance(caught.value, Unavailable)
    assert caught.value.status == 200
    for word in words:
        assert word in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500])
def test_a_problem_is_an_error_with_all_that_it_says_and_is_not_asked_again(make: Make, status: int) -> None:
    with faulty(says({**PROBLEM, "status": status}, status)) as server, pytest.raises(RecommendationError) as caught:
        make(server).recommend(k=0)
    error = caught.value
    assert not isinstance(error, Unavailable)
    assert (error.status, error.detail, error.request_id) == (status, PROBLEM["detail"], "r-1")
    assert error.faults == (Fault("k", "must be 1 or more, got 0"),)
    assert str(error) == f"{status} k: must be 1 or more, got 0 (request r-1)"
    assert len(server.asked) == 1


def test_an_error_that_is_no_problem_document_is_told_all_the_same(make: Make) -> None:
    page = says(b"<h1>Not here\n</h1>", 404, Content_Type="text/html", X_Request_ID="r-2")
    with faulty(page) as server, pytest.raises(RecommendationError, match=r"404 .*text/html.*Not here") as caught:
        make(server).bundle()
    assert caught.value.request_id == "r-2"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("errors", ["many", [1], {"a": 1}])
def test_a_problem_whose_faults_are_odd_is_told_all_the_same(make: Make, errors: Any) -> None:
    with (
        faulty(says({**PROBLEM, "errors": errors}, 422)) as server,
        pytest.raises(RecommendationError, match=r"422 k: must be 1 or more") as caught,
    ):
        make(server).bundle()
    assert (caught.value.status, caught.value.faults) == (422, ())


def test_a_redirect_is_told_and_the_key_is_not_carried_there(make: Make) -> None:
    with (
        faulty(says(ANSWER)) as other,
        faulty(says(b"", 307, Location=f"{other.address}/v1")) as server,
        pytest.raises(RecommendationError, match=f"307 goes on at {other.address}"),
    ):
        make(server, key="s3cret").recommend()
    assert other.asked == []


def test_the_real_application_is_asked_and_read() -> None:
    stand_in = StandIn()
    app = Application(Service(LIMITS, stand_in))  # type: ignore[arg-type]

    async def run() -> None:
        async with AsyncClient("http://recsys.test", transport=httpx.ASGITransport(app)) as client:
            answer = await client.recommend(user_id="u3", k=3, exclude=["i/0"], history=["i 1", Event("nope", 12)])
            assert (answer.bundle, answer.strategy, answer.unknown_items) == ("toy-1", "history", ("nope",))
            assert [item.rank for item in answer.items] == [1, 2, 3]
            assert answer.items[0].attributes["genres"] == ["Drama", "War"]
            assert stand_in.calls[-1]["history"][1].timestamp == 12_000
            assert await client.bundle() == LiveBundle("toy-1", {"items": 50})
            assert [one.item_id for one in await client.search_items("14")] == ["ï14"]
            assert [one.item_id for one in await client.look_up(["ï2", "nope"])] == ["ï2"]
            assert (await client.attributes())[1].values == (("Drama", 50), ("War", 50))
            assert len((await client.item_map(limit=9, attribute="genres")).codes) == 9
            assert await client.ready()
            with pytest.raises(RecommendationError, match=r"k: .*less than or equal to 20, got 21") as caught:
                await client.recommend(k=21)
            assert (caught.value.status, caught.value.faults[0].at) == (422, "k")
            assert caught.value.request_id

    asyncio.run(run())
