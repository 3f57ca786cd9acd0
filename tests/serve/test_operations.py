"""What the service does beyond one bundle: events, live items, rules, batches and explanations, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle import Bundle
from recsys.online.store import OnlineStoreError, open_online
from recsys.recommender import Recommender
from serve.asgi import Application
from serve.follow import Follower
from serve.online import Online
from serve.schemas import Limits
from serve.service import Service
from serve.swap import Current, on_loop
from tests.serve.asking import Reply, asked

Ask = Callable[..., Awaitable[Reply]]


@asynccontextmanager
async def up(bundle: Bundle, folder: Path) -> AsyncIterator[Ask]:
    """The service over a bundle and a store, as a replica puts them together, but for the registry."""
    store = open_online(str(folder))
    service = Service(Limits(max_batch=5), online=Online(store))
    current = Current(on_loop(asyncio.get_running_loop(), lambda each: setattr(service, "recommender", each)))
    follower = Follower(store, current)
    await follower.first()
    follower.start()
    service.caught_up = follower.caught_up
    current.put(Recommender(bundle))
    await asyncio.sleep(0)
    app = Application(service)

    async def ask(method: str, target: str, body: Any = b"") -> Reply:
        return await asked(app, method, target, body)

    try:
        yield ask
    finally:
        await follower.close()
        service.close()
        await store.close()


def running(work: Callable[[Ask], Awaitable[None]], bundle: Bundle, folder: Path) -> None:
    async def run() -> None:
        async with up(bundle, folder) as ask:
            await work(ask)

    asyncio.run(run())


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [item["item_id"] for item in reply.json["items"]]


def parity(item_id: str) -> str:
    """Of the toy's items, whose numbers say it; the one never taken is odd."""
    return ("even", "odd")[int(item_id[1:]) % 2] if item_id != "new" else "odd"


def event(number: int, user: str = "nobody", item: str = "i4") -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": item, "timestamp": 1_800_000_000 + number}


def test_an_event_counts_in_the_next_request_and_after_a_restart(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def first(ask: Ask) -> None:
        assert (await ask("GET", "/v1/users/nobody/recommendations")).json["strategy"] == "popular"
        reply = await ask("POST", "/v1/events", {"events": [event(1, item="i2"), event(61, item="i3")]})
        assert (reply.status, reply.json) == (200, {"accepted": 2, "duplicates": 0})
        assert ids(await ask("GET", "/v1/users/nobody/recommendations?k=3"))[0] == "i4"
        assert (await ask("POST", "/v1/events", event(121, item="i4"))).json["accepted"] == 1
        reply = await ask("GET", "/v1/users/nobody/recommendations?k=3")
        assert reply.json["strategy"] == "history"
        assert ids(reply)[0] == "i5", "on the ring i5 follows i4"
        assert "i4" not in ids(reply), "it is seen now"

    async def later(ask: Ask) -> None:
        assert ids(await ask("GET", "/v1/users/nobody/recommendations?k=3"))[0] == "i5"

    running(first, toy_bundle, tmp_path)
    running(later, toy_bundle, tmp_path)


def test_an_event_sent_again_counts_once(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        several = {"events": [event(1), event(2), event(1)]}
        assert (await ask("POST", "/v1/events", several)).json == {"accepted": 2, "duplicates": 1}
        assert (await ask("POST", "/v1/events", several)).json == {"accepted": 0, "duplicates": 3}

    running(work, toy_bundle, tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "event_id"),
        ({"events": []}, "events"),
        (event(1) | {"timestamp": 1e300}, "milliseconds"),
        (event(1) | {"event_id": ""}, "1 to 512 characters"),
        (event(1) | {"user_id": None}, "user_id"),
        (event(1) | {"surprise": 1}, "there is no 'surprise'"),
    ],
)
def test_a_wrong_event_is_refused_by_name(toy_bundle: Bundle, tmp_path: Path, body: Any, words: str) -> None:
    async def work(ask: Ask) -> None:
        reply = await ask("POST", "/v1/events", body)
        assert reply.status == 422
        assert words in reply.body.decode()

    running(work, toy_bundle, tmp_path)


def test_a_new_item_is_recommendable_at_once_and_gone_at_once(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        everything = {"history": ["i4"], "k": 50, "filter": {"parity": "odd"}}
        assert "fresh" not in ids(await ask("POST", "/v1/recommendations", everything))
        body = {"features": {"title": "Item number 5", "parity": "odd", "place": 5, "tags": ["odd", "ring"]}}
        reply = await ask("PUT", "/v1/items/fresh", body)
        assert (reply.status, reply.json) == (200, {"item_id": "fresh", "available": True})
        assert "fresh" in ids(await ask("POST", "/v1/recommendations", everything))
        assert ids(await ask("GET", "/v1/items/fresh/similar?k=3"))
        assert (await ask("DELETE", "/v1/items/fresh")).json == {"item_id": "fresh", "available": False}
        assert "fresh" not in ids(await ask("POST", "/v1/recommendations", everything))
        assert (await ask("PUT", "/v1/items/fresh", {"available": True})).status == 200
        assert "fresh" in ids(await ask("POST", "/v1/recommendations", everything)), "its features were kept"

    running(work, toy_bundle, tmp_path)


def test_what_was_said_of_items_outlives_a_restart(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def first(ask: Ask) -> None:
        assert (await ask("DELETE", "/v1/items/i5")).status == 200

    async def later(ask: Ask) -> None:
        assert "i5" not in ids(await ask("POST", "/v1/recommendations", {"history": ["i4"], "k": 50}))

    running(first, toy_bundle, tmp_path)
    running(later, toy_bundle, tmp_path)


def test_a_wrong_item_is_refused_by_name(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        reply = await ask("PUT", "/v1/items/fresh", {"features": {"parety": "odd"}})
        assert reply.status == 422
        assert "parity" in reply.json["detail"], "the nearest feature"
        assert (await ask("PUT", "/v1/items/unheard", {"available": True})).status == 404
        assert (await ask("PUT", "/v1/items/", {"features": {}})).status == 404

    running(work, toy_bundle, tmp_path)


def test_similar_to_several_items_and_to_one_that_does_not_exist(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        several = await ask("POST", "/v1/similar", {"items": ["i3", "i5"], "k": 4})
        assert len(ids(several)) == 4
        assert not {"i3", "i5"} & set(ids(several))
        described = await ask("POST", "/v1/similar", {"features": {"parity": "odd", "tags": ["odd", "ring"]}, "k": 4})
        assert len(ids(described)) == 4
        wrongs: list[Any] = [{}, {"items": []}, {"items": ["i3"], "features": {"parity": "odd"}}]
        for wrong in wrongs:
            assert (await ask("POST", "/v1/similar", wrong)).status == 422
        half = await ask("POST", "/v1/similar", {"items": ["i3", "unheard"]})
        assert (half.status, half.json["unknown_items"]) == (200, ["unheard"])
        assert (await ask("POST", "/v1/similar", {"items": ["unheard"]})).status == 404

    running(work, toy_bundle, tmp_path)


def test_rules_are_kept_and_what_cannot_be_is_named(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        reply = await ask("POST", "/v1/recommendations", {"history": ["i4"], "k": 6, "caps": {"parity": 3}})
        assert sorted(map(parity, ids(reply))) == ["even"] * 3 + ["odd"] * 3
        assert "relaxed" not in reply.json
        reply = await ask("POST", "/v1/recommendations", {"history": ["i4"], "k": 6, "caps": {"parity": 2}})
        assert (len(ids(reply)), reply.json["relaxed"]) == (6, ["caps"])
        odd = {"quotas": [{"filter": {"parity": "odd"}, "at_least": 4}], "diversity": 0.3}
        reply = await ask("POST", "/v1/recommendations", {"history": ["i4"], "k": 6} | odd)
        assert sum(parity(item) == "odd" for item in ids(reply)) >= 4
        reply = await ask("POST", "/v1/recommendations", {"history": ["i4"], "caps": {"parety": 2}})
        assert reply.status == 422
        assert "parity" in reply.json["detail"]

    running(work, toy_bundle, tmp_path)


def test_a_batch_answers_each_request_or_says_what_is_wrong_with_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        one = {"history": ["i4"], "k": 3}
        requests = [one, {"user_id": "u3", "k": 2}, {"filter": {"colour": "red"}}, {}]
        reply = await ask("POST", "/v1/recommendations:batch", {"requests": requests})
        assert reply.status == 200
        first, second, wrong, popular = reply.json["answers"]
        alone = (await ask("POST", "/v1/recommendations", one)).json
        assert [item["item_id"] for item in first["items"]] == [item["item_id"] for item in alone["items"]]
        assert (second["strategy"], len(second["items"])) == ("personalised", 2)
        assert (wrong["status"], "colour" in wrong["detail"]) == (422, True)
        assert popular["strategy"] == "popular"
        assert (await ask("POST", "/v1/recommendations:batch", {"requests": [{}] * 6})).status == 422

    running(work, toy_bundle, tmp_path)


def test_answers_are_explained_on_request_alone(toy_bundle: Bundle, tmp_path: Path) -> None:
    async def work(ask: Ask) -> None:
        asked_for = {"history": ["i2", "i3", "i4"], "k": 2}
        plain = (await ask("POST", "/v1/recommendations", asked_for)).json["items"][0]
        assert set(plain) == {"item_id", "score", "rank", "attributes"}
        said = (await ask("POST", "/v1/recommendations", asked_for | {"explain": True})).json["items"][0]
        assert said["rank_before_rules"] >= 1
        assert {pull["item_id"] for pull in said["because"]} <= {"i2", "i3", "i4"}
        why = (await ask("POST", "/v1/why-not", asked_for | {"item_id": "i3"})).json
        assert why["in_list"] is False
        assert "seen" in [reason["reason"] for reason in why["reasons"]]

    running(work, toy_bundle, tmp_path)


def test_without_its_store_it_answers_on_and_takes_nothing(toy_bundle: Bundle, tmp_path: Path) -> None:
    class Away:
        address = "away"

        async def events_of(self, *_: Any) -> Any:
            raise OnlineStoreError("away does not answer")

        add_events = put_item = events_of

    async def run() -> None:
        app = Application(Service(Limits(), Recommender(toy_bundle), online=Online(Away())))  # type: ignore[arg-type]
        reply = await asked(app, "GET", "/v1/users/u3/recommendations")
        assert (reply.status, reply.json["degraded"]) == (200, ["events"])
        for method, target, body in (("POST", "/v1/events", event(1)), ("DELETE", "/v1/items/i1", b"")):
            reply = await asked(app, method, target, body)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")

    asyncio.run(run())


def test_a_service_without_a_store_says_so(toy_bundle: Bundle) -> None:
    app = Application(Service(Limits(), Recommender(toy_bundle)))
    reply = asyncio.run(asked(app, "POST", "/v1/events", event(1)))
    assert reply.status == 404
    assert "online store" in reply.json["detail"]
