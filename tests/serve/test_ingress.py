"""What Ray itself answers is made to keep the contract."""

from __future__ import annotations

from typing import Any

import pytest

from serve.ingress import Ingress, middlewares
from tests.serve.asking import ask


def answering(status: int, body: bytes, kind: str, seen: list[Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        headers = [(b"content-type", kind.encode()), (b"x-request-id", dict(scope["headers"])[b"x-request-id"])]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(("status", "words"), [(503, "more requests"), (500, "its log"), (404, "/docs")])
def test_a_plain_error_of_ray_becomes_a_problem(status: int, words: str) -> None:
    reply = ask(Ingress(answering(status, b"Request dropped due to backpressure", "text/plain", [])), "GET", "/x")
    assert (reply.status, reply.headers["content-type"]) == (status, "application/problem+json")
    assert words in reply.json["detail"]
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert ("retry-after" in reply.headers) == (status == 503)


@pytest.mark.parametrize(("status", "kind"), [(200, "application/json"), (422, "application/problem+json")])
def test_what_the_application_says_passes_as_it_is(status: int, kind: str) -> None:
    reply = ask(Ingress(answering(status, b'{"a":1}', kind, [])), "GET", "/x", headers={"X-Request-ID": "mine"})
    assert (reply.status, reply.body, reply.headers["x-request-id"]) == (status, b'{"a":1}', "mine")


def test_silence_is_a_problem_too() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    assert ask(Ingress(silent), "GET", "/x").json["status"] == 500


def test_a_caller_decides_nothing_of_how_ray_handles_the_request() -> None:
    seen: list[Any] = []
    theirs = {"X-Request-ID": "é", "X-Request-Timeout-Seconds": "0", "X-Request-Disconnect-Disabled": "?0", "A": "b"}
    ask(Ingress(answering(200, b"", "text/plain", seen)), "GET", "/x", headers=theirs)
    (headers,) = seen
    assert headers.pop(b"x-request-id").isalnum()
    assert headers == {b"a": b"b", b"x-request-disconnect-disabled": b"?1"}


def test_ray_finds_it_by_the_name_in_its_environment() -> None:
    assert [each.cls for each in middlewares()] == [Ingress]
