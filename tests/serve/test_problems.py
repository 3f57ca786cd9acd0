"""Every refusal is a problem document that says what to change; hostile bodies cost little and tell nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.asgi import Application
from serve.load import Load
from serve.pace import Pace
from serve.service import Service
from serve.settings import Shed
from tests.serve.asking import Reply, ask, asked
from tests.serve.conftest import LIMITS
from tests.serve.stand_in import StandIn

USER, POST, SIMILAR = "/v1/users/u3/recommendations", "/v1/recommendations", "/v1/items/i%2F0/similar"


def assert_problem(reply: Reply, status: int, *words: str) -> None:
    said = reply.json
    assert reply.status == said["status"] == status, said
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert [name for name, _ in reply.sent_headers].count(b"x-request-id") == 1
    assert said["type"] == "about:blank"
    assert said["title"]
    assert said["request_id"] == reply.headers["x-request-id"]
    for word in words:
        assert word in said["detail"], said["detail"]


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        (f"{USER}?k=0", 422, ["k:", "greater than or equal to 1", "'0'"]),
        (f"{USER}?k=21", 422, ["k:", "less than or equal to 20", "'21'"]),
        (f"{USER}?k=ten", 422, ["k:", "integer", "'ten'"]),
        (f"{USER}?k=", 422, ["k:", "integer"]),
        (f"{USER}?k=1e1", 422, ["k:"]),
        (f"{USER}?include_seen=perhaps", 422, ["include_seen:", "'perhaps'"]),
        (f"{USER}?K=3", 422, ["'K'", "did you mean 'k'?", "include_seen"]),
        (f"{USER}?include_sean=1", 422, ["did you mean 'include_seen'?"]),
        (f"{USER}?{'&'.join(f'a{n}=1' for n in range(40))}", 422, ["16 parameters"]),
        (f"{SIMILAR}?k=-1", 422, ["k:"]),
        (f"{SIMILAR}?include_seen=1", 422, ["'include_seen'", "valid: k"]),
        ("/v1/items/nope/similar", 404, ["'nope'", "toy-1"]),
        ("/v1/items//similar", 404, ["names no item"]),
        ("/v1/users//recommendations", 404, ["names no user"]),
        ("/v1/users/u3", 404, ["/v1/users/u3", "/docs"]),
        ("/v1/users/u3/recommendations/", 404, ["/docs"]),
        ("/nothing", 404, ["/docs"]),
        (POST, 405, ["GET", "use POST"]),
    ],
)
def test_a_bad_address_is_refused(app: Application, target: str, status: int, words: list[str]) -> None:
    assert_problem(ask(app, "GET", target), status, *words)


@pytest.mark.parametrize("target", [USER, SIMILAR, "/v1/bundle", "/healthz", "/openapi.json"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "PATCH"])
def test_another_method_is_refused_with_those_allowed(app: Application, method: str, target: str) -> None:
    reply = ask(app, method, target)
    assert_problem(reply, 405, method, "use ", "GET")
    assert "GET" in reply.headers["allow"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, ["not JSON"]),
        (b"{", 400, ["not JSON", "user_id"]),
        (b'{"user_id": "1"} x', 400, ["not JSON"]),
        (b'{"k": NaN}', 400, ["not JSON"]),
        (b'{"filter": {"year": Infinity}}', 400, ["not JSON"]),
        (b'{"k": 1e999}', 400, ["not JSON", "infinity"]),
        (b'"\xff"', 400, ["not JSON"]),
        (b'{"user_id": "\\ud800"}', 400, ["not JSON"]),
        (b"[" * 1999, 400, ["not JSON"]),
        (b"[1]", 422, ["JSON object", "list"]),
        (b"null", 422, ["JSON object"]),
        ({"k": 21}, 422, ["k:", "less than or equal to 20", "21"]),
        ({"k": "3"}, 422, ["k:", "integer", "'3'"]),
        ({"k": True}, 422, ["k:", "integer"]),
        ({"k": 2.5}, 422, ["k:", "2.5"]),
        ({"k": None}, 422, ["k:"]),
        ({"include_seen": "yes"}, 422, ["include_seen:"]),
        ({"user_id": True}, 422, ["user_id:", "string or an integer", "True"]),
        ({"user_id": 1.0}, 422, ["user_id:", "string or an integer"]),
        ({"user_id": ""}, 422, ["user_id:", "1 to 512 characters"]),
        ({"user_id": "x" * 513}, 422, ["user_id:", "1 to 512 characters"]),
        ({"user": "1"}, 422, ["'user'", "did you mean 'user_id'?"]),
        ({"history": "i 1"}, 422, ["history:", "list"]),
        ({"history": [["i 1"]]}, 422, ["history/0:", "item id", "list of 1"]),
        ({"history": [None]}, 422, ["history/0:", "item id"]),
        ({"history": ["i 1"] * 6}, 422, ["history:", "at most 5", "list of 6"]),
        ({"history": [{}]}, 422, ["history/0/item_id:", "required"]),
        ({"history": ["i 1", {"item": 3}]}, 422, ["history/1:", "'item'", "did you mean 'item_id'?"]),
        ({"history": [{"item_id": "a", "timestamp": "soon"}]}, 422, ["history/0/timestamp:", "ISO 8601", "'soon'"]),
        ({"history": [{"item_id": "a", "timestamp": True}]}, 422, ["history/0/timestamp:"]),
        ({"history": [{"item_id": "a", "timestamp": 1.7e12}]}, 422, ["history/0/timestamp:", "milliseconds"]),
        ({"history": [{"item_id": "a", "event": 3}]}, 422, ["history/0/event:", "string"]),
        ({"exclude": ["a"] * 4}, 422, ["exclude:", "at most 3"]),
        ({"exclude": [{}]}, 422, ["exclude/0:", "string or an integer"]),
        ({"filter": ["War"]}, 422, ["filter:", "dictionary"]),
        ({"filter": {str(n): 1 for n in range(33)}}, 422, ["filter:", "at most 32"]),
        ({"filter": {"genre": "War"}}, 422, ["cannot filter by 'genre'"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_body_is_refused_by_the_place_that_is_wrong(
    app: Application, body: Any, status: int, words: list[str]
) -> None:
    assert_problem(ask(app, "POST", POST, body), status, *words)


def test_several_faults_are_listed_and_a_thousand_are_not(app: Application) -> None:
    reply = ask(app, "POST", POST, {"k": 0, "history": [True, {"item_id": None}], "exclude": 3})
    assert_problem(reply, 422, "and 3 more")
    assert sorted(fault["at"] for fault in reply.json["errors"]) == ["exclude", "history/0", "history/1/item_id", "k"]
    many = ask(app, "POST", POST, {f"x{n}": n for n in range(150)})
    assert len(many.body) < 1000


def test_parameters_beside_a_body_are_refused_rather_than_ignored(app: Application) -> None:
    assert_problem(ask(app, "POST", f"{POST}?k=3", {}), 422, "in its body")


def test_a_body_that_says_it_is_too_large_is_refused_unread(app: Application) -> None:
    reply = ask(app, "POST", POST, [b"{"] * 9, headers={"Content-Length": "2001"})
    assert_problem(reply, 413, "2,000 bytes")
    assert reply.chunks_read == 0
    huge = ask(app, "POST", POST, [b"{"], headers={"Content-Length": "9" * 4000})
    assert_problem(huge, 413)


def test_a_body_that_grows_too_large_is_refused_at_the_chunk_that_did_it(app: Application) -> None:
    reply = ask(app, "POST", POST, [b" " * 1000] * 100)
    assert_problem(reply, 413, "2,000 bytes")
    assert reply.chunks_read == 3
    assert reply.headers["connection"] == "close"
    just_fits = ask(app, "POST", POST, [b" " * 1998, b"{}"])
    assert just_fits.status == 200


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(app: Application) -> None:
    async def stalled() -> Reply:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": POST, "query_string": b"", "headers": []}
        await app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], headers, sent[1]["body"], sent[0]["headers"], 0)

    assert_problem(asyncio.run(asyncio.wait_for(stalled(), 5)), 408, "0.3 s")


def test_a_failure_inside_is_logged_with_the_request_id_and_tells_the_caller_nothing_else(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = ask(app, "POST", POST, {"user_id": "boom"}, headers={"X-Request-ID": "find-me"})
    assert_problem(reply, 500, "find-me")
    assert b"secret" not in reply.body
    assert "find-me" in caplog.text
    assert "secret inside" in caplog.text
    assert_problem(ask(app, "GET", "/v1/users/boom/recommendations"), 500)


def test_slow_requests_wait_in_turn_while_quick_ones_pass_and_too_many_are_turned_away(stand_in: StandIn) -> None:
    gate = threading.Event()
    quick = stand_in.recommend

    def slow(**asked_for: Any) -> Any:
        if asked_for.get("history"):
            gate.wait(10)
        return quick(**asked_for)

    stand_in.recommend = slow  # type: ignore[method-assign]
    service = Service(LIMITS, stand_in, threads=1, load=Load(2, Shed(fewer=1, cheaper=1, popular=1)))  # type: ignore[arg-type]
    service._pace = Pace(at_once_s=0.5)  # so that what is quick is so on a busy machine, too
    app = Application(service)

    async def run() -> tuple[list[Reply], Reply, Reply]:
        assert (await asked(app, "GET", USER)).status == 200  # so that it is known to be quick
        waiting = [asyncio.create_task(asked(app, "POST", POST, {"history": ["i 1"]})) for _ in range(2)]
        await asyncio.sleep(0.05)
        passed = await asked(app, "GET", USER)
        refused = await asked(app, "POST", POST, {"history": ["i 1"]})
        gate.set()
        return await asyncio.gather(*waiting), passed, refused

    served, passed, refused = asyncio.run(run())
    assert [reply.status for reply in served] == [200, 200]
    assert passed.status == 200
    assert_problem(refused, 503, "2 slow requests")
    assert refused.headers["retry-after"] == "1"
    assert asyncio.run(asked(app, "POST", POST, {"history": ["i 1"]})).status == 200


def test_a_slow_request_is_given_up_in_time(stand_in: StandIn) -> None:
    gate = threading.Event()
    stand_in.recommend = lambda **_: gate.wait(10)  # type: ignore[assignment,method-assign]
    app = Application(Service(LIMITS, stand_in, timeout_s=0.1))  # type: ignore[arg-type]
    try:
        assert_problem(ask(app, "POST", POST, {"history": ["i 1"]}), 503, "0.1 s")
    finally:
        gate.set()


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["user_id", "history", "k", "exclude", "include_seen", "filter", "item_id"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(KEYS, WILD, max_size=5) | WILD)
def test_no_json_value_makes_the_service_fail(app: Application, body: Any) -> None:
    reply = ask(app, "POST", POST, json.dumps(body).encode())
    assert reply.status in (200, 400, 413, 422)
    if reply.status != 200:
        assert_problem(reply, reply.status)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_service_fail(app: Application, body: bytes) -> None:
    assert ask(app, "POST", POST, body).status in (200, 400, 422)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(max_size=30), query=st.text(st.characters(max_codepoint=127), max_size=30))
def test_no_address_makes_the_service_fail(app: Application, path: str, query: str) -> None:
    for target in (f"/v1/users/{path}/recommendations", f"/v1/items/{path}/similar", f"/{path}"):
        reply = ask(app, "GET", f"{target.replace('?', '')}?{query}")
        assert reply.status in (200, 404, 422), reply.body
