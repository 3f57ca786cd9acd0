"""Hostile requests against every documented route: no failure, every error a problem document, nothing forged."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve.asgi import Application
from serve.online import Online
from serve.service import Service
from tests.serve import hostile
from tests.serve.asking import Reply, ask, asked
from tests.serve.conftest import LIMITS
from tests.serve.hostile import Hostile
from tests.serve.running import running
from tests.serve.stand_in import StandIn, StandInStore

SHOWN = 20


@pytest.fixture
def service(stand_in: StandIn) -> Service:
    """With all the time there is: a busy machine is not what is tested here."""
    return Service(LIMITS, stand_in, online=Online(StandInStore()), timeout_s=60)  # type: ignore[arg-type]


def faults_of(app: Application, cases: Iterator[Hostile]) -> list[str]:
    """What goes wrong, the first of it, over all cases; and at least one case there must be."""

    async def run() -> list[str]:
        found, count = [], 0
        for case in cases:
            count += 1
            try:
                reply = await asked(app, case.method, case.target, case.body, headers=dict(case.headers))
            except Exception as error:
                found.append(f"{case.what}: {case.method} {case.target[:80]}: raised {error!r:.200}")
                continue
            found += [f"{case.what}: {case.method} {case.target[:80]}: {one}" for one in hostile.faults(reply)]
        assert count, "no route takes this"
        return found

    return asyncio.run(run())


CORPORA = (hostile.paths, hostile.methods, hostile.queries, hostile.bodies, hostile.headers)


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.__name__)
def test_no_hostile_request_makes_the_service_fail_or_break_its_word(
    app: Application, corpus: Callable[[Any], Iterator[Hostile]], caplog: pytest.LogCaptureFixture
) -> None:
    document = ask(app, "GET", "/openapi.json").json
    with caplog.at_level(logging.INFO):
        found = faults_of(app, corpus(document))
    assert not found, "\n".join([f"{len(found)} faults, the first:", *found[:SHOWN]])
    forged = [record.getMessage() for record in caplog.records if not record.getMessage().isprintable()]
    assert not forged, forged[:SHOWN]
    assert ask(app, "GET", "/healthz").status == 200


def test_of_a_body_of_10_megabytes_no_more_is_read_than_may_be_kept(app: Application) -> None:
    document = ask(app, "GET", "/openapi.json").json
    takes_body = [
        (method, hostile.filled(path))
        for method, path, operation in hostile.operations(document)
        if "requestBody" in operation
    ]
    for case in hostile.large(document):
        reply = ask(app, case.method, case.target, case.body, headers=dict(case.headers))
        assert not hostile.faults(reply), case
        assert reply.chunks_read <= 1, (case.what, case.method, case.target, reply.chunks_read)
        if (case.method, case.target) in takes_body:
            assert reply.status == 413, (case.what, reply.body)


def test_the_check_itself_sees_what_is_wrong() -> None:
    good = {"type": "about:blank", "title": "t", "status": 404, "detail": "d", "request_id": "r"}
    headers = [(b"content-type", b"application/problem+json"), (b"x-request-id", b"r")]

    def faults(said: Any = good, status: int = 404, sent: list[tuple[bytes, bytes]] = headers) -> list[str]:
        named = {name.decode(): value.decode("latin-1") for name, value in sent}
        return hostile.faults(Reply(status, named, json.dumps(said).encode(), sent, 0))

    assert faults() == []
    wrong: list[tuple[list[str], str]] = [
        (faults({**good, "status": 400}), "status"),
        (faults({**good, "detail": "a\nb"}), "not fit for a log"),
        (faults({**good, "detail": "a\u202eb"}), "not fit for a log"),
        (faults({**good, "detail": "x" * 9_000}), "bytes"),
        (faults({**good, "secret": 1}), "members"),
        (faults({**good, "request_id": "other"}), "request id"),
        (faults({**good, "errors": [{"at": "a\rb", "change": "c"}]}), "not fit for a log"),
        (faults({**good, "status": 500}, 500), "status 500"),
        (faults({"k": float("nan")}, 200, [(b"content-type", b"application/json"), headers[1]]), "NaN"),
        (faults(sent=[*headers, (b"allow", b"a\r\nb: c")]), "header"),
        (faults(sent=headers[1:]), "an error of type ''"),
        (faults(sent=headers[:1]), "X-Request-ID"),
    ]
    for found, words in wrong:
        assert words in " ".join(found)


# Over a real socket: what a server makes of bytes that are no request


LONG = b"x" * 200_000
USER = b"/v1/users/u3/recommendations"
HOST = b"Host: a\r\n"
GET = b"GET " + USER + b" HTTP/1.1\r\n" + HOST
POST = b"POST /v1/recommendations HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"400\r\n" + b" " * 1024 + b"\r\n"
RAW = {
    "no request at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown version": b"GET " + USER + b" HTTP/9.9\r\n" + HOST + b"\r\n",
    "no host": b"GET " + USER + b" HTTP/1.1\r\n\r\n",
    "two hosts": GET + HOST + b"\r\n",
    "an address of 200 kB": b"GET /" + LONG + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header of 200 kB": GET + b"X: " + LONG + b"\r\n\r\n",
    "10,000 headers": GET + b"X: 1\r\n" * 10_000 + b"\r\n",
    "a header with a bare line feed": GET + b"X: a\nEvil: 1\r\n\r\n",
    "a header with a nought": GET + b"X: a\x00b\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a request id that is to break the answer": GET + b"X-Request-ID: a\rEvil: 1\r\n\r\n",
    "an address that is to break the answer": b"GET /%0d%0aEvil:%201 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an address beyond ASCII": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a length that is no number": POST + b"Content-Length: x\r\n\r\n{}",
    "a length below nought": POST + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
    "a length beyond what is allowed": POST + b"Content-Length: 99999999999\r\n\r\n{}",
    "a body shorter than it says": POST + b"Content-Length: 40\r\n\r\n{}",
    "a body longer than it says": POST + b"Content-Length: 2\r\n\r\n{}GET /evil HTTP/1.1\r\n\r\n",
    "a chunk whose size is none": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk without an end": CHUNKED + b"ffffffffffffffff\r\n{}",
    "chunks beyond what is allowed": CHUNKED + CHUNK + CHUNK + b"0\r\n\r\n",
    "a length and chunks": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n"
    + HOST
    + b"\r\n",
    "a coding that nobody knows": POST + b"Transfer-Encoding: bogus, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
}


def said_to(port: int, sent: bytes) -> bytes:
    """All that comes back until the server closes, or after we have said that no more comes from us."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        parts = []
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                parts.append(part)
        except OSError:
            pass  # closed before it had read all: it may
        return b"".join(parts)


def answers_in(said: bytes) -> list[tuple[int, bytes, bytes]]:
    """Status, head and body of each answer in what came back, taken apart by their lengths."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        started = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert started, said
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        size = int(length[1]) if length else len(rest)
        found.append((int(started[1]), head, rest[:size]))
        said = rest[size:]
    return found


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_bytes_that_are_no_request_get_an_error_or_nothing_and_the_server_goes_on(stand_in: StandIn, http: str) -> None:
    app = Application(Service(LIMITS, stand_in, timeout_s=0.5))  # type: ignore[arg-type]
    with running(app, http=http) as port:
        for what, sent in RAW.items():
            for status, head, body in answers_in(said_to(port, sent)):
                assert status < 500, (what, head, body)
                assert not re.search(rb"^evil:", head, re.MULTILINE | re.IGNORECASE), (what, head)
                if status >= 400 and b"x-request-id" in head.lower():  # by us, and not by the server before us
                    assert b"application/problem+json" in head, (what, head)
                    assert json.loads(body)["detail"].isprintable(), (what, body)
            alive = said_to(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert [status for status, _, _ in answers_in(alive)] == [200], what


def test_who_sends_half_and_waits_is_refused_in_time(stand_in: StandIn) -> None:
    app = Application(Service(LIMITS, stand_in, timeout_s=0.3))  # type: ignore[arg-type]
    with running(app) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n{")
        said = connection.recv(65_536)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in said
