"""Who is let through: every route × every kind of caller, hostile headers, rates, and keys that change meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.api import documented
from serve.guard import Caller, Guard, scope_needed
from serve.key_changes import add, revoke, rotate
from serve.key_file import KeyLimits, Scope, changing
from serve.keys import Keys
from serve.limits import Rate
from serve.observer import Observer
from serve.problems import PROBLEM_TYPE, Refusal
from serve.schemas import Limits
from serve.service import Service
from tests.serve.asking import ask
from tests.serve.scopes import (
    HOLDERS,
    NEEDS,
    REFUSED,
    STRANGERS,
    assert_guarded,
    bearer,
    documented_routes,
    key_file,
    target_of,
)

LIMITS = Limits(max_k=20)
READ, WRITE = "/v1/bundle", "/v1/events"


class Clock:
    """A clock that goes when told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def sent(file: Path) -> dict[str, str]:
    return key_file(file)


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def now() -> Clock:
    return Clock(float(int(time.time())))  # whole, as key files write it


@pytest.fixture
def guard(file: Path, sent: dict[str, str], clock: Clock, now: Clock) -> Guard:
    return Guard(Keys(file, clock=clock), LIMITS, clock=clock, now=now)


def guarded(guard: Guard) -> Any:
    """An application that says 404 to everything that the guard lets through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            guard.allow(scope["method"], scope["path"], scope["headers"])
            refusal = Refusal(404, "there is nothing here")
        except Refusal as error:
            refusal = error
        headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers.append((b"content-type", PROBLEM_TYPE.encode()))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": refusal.document("1")})

    return app


def allow(guard: Guard, key: str, method: str = "GET", path: str = READ) -> Caller:
    return guard.allow(method, path, [(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())])


def refused(guard: Guard, headers: Any = (), method: str = "GET", path: str = READ) -> Refusal:
    with pytest.raises(Refusal) as caught:
        guard.allow(method, path, headers)
    return caught.value


# The table


@pytest.mark.parametrize(("method", "template"), NEEDS, ids=" ".join)
def test_every_route_lets_through_whom_the_table_says(
    guard: Guard, sent: dict[str, str], method: str, template: str
) -> None:
    assert_guarded(guarded(guard), method, template, sent)


@pytest.mark.parametrize(("method", "template"), NEEDS, ids=" ".join)
def test_without_keys_everything_is_open(method: str, template: str) -> None:
    caller = Guard(None, LIMITS).allow(method, target_of(template), [])
    assert (caller.scope, caller.limits) == (Scope.ADMIN, LIMITS)


def test_every_documented_route_is_in_the_table(service: Service) -> None:
    lacking = [route for route in documented_routes(documented(service, Observer()).openapi()) if route not in NEEDS]
    assert not lacking, f"say in tests/serve/scopes.py, and in serve/guard.py, which scope {lacking} needs"


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/nowhere", "read"),
        ("GET", "/ui", "read"),
        ("GET", "/v1/events", "read"),
        ("HEAD", "/v1/bundle", "read"),
        ("OPTIONS", "/v1/recommendations", "read"),
        ("HEAD", "/metrics", "admin"),
        ("OPTIONS", "/metrics", "admin"),
        ("GET", "/metrics/", "admin"),
        ("GET", "/metrics/x", "admin"),
        ("HEAD", "/healthz", None),
        ("OPTIONS", "/docs", None),
        ("POST", "/healthz", None),
        # Near what is open to all, or to those who read, is neither.
        ("GET", "/healthz/", "read"),
        ("GET", "//healthz", "read"),
        ("GET", "/Healthz", "read"),
        ("GET", "/docs/x", "read"),
        ("GET", "/healthz\x00", "read"),
        ("GET", "/v1/users/../../healthz", "read"),
        ("POST", "/v1/recommendations/", "write"),
        ("POST", "/v1/recommendations:other", "write"),
        ("POST", "/nowhere", "write"),
        ("PUT", "/v1/recommendations", "write"),
        ("PATCH", "/v1/items/x", "write"),
        ("PURGE", "/v1/bundle", "write"),
        ("get", "/v1/bundle", "write"),
        ("DELETE", "/v1/items/a/b/similar", "write"),
    ],
)
def test_what_is_not_listed_needs_a_key_and_to_change_anything_needs_write(
    guard: Guard, sent: dict[str, str], method: str, path: str, needs: str | None
) -> None:
    said = scope_needed(method, path)
    assert (None if said is None else said.word) == needs
    for holder in HOLDERS:
        status = REFUSED[needs][holder] or 404
        headers = [(name.lower().encode(), value.encode()) for name, value in bearer(sent[holder]).items()]
        if status == 404:
            guard.allow(method, path, headers)
        else:
            assert refused(guard, headers, method, path).status == status


def test_an_unknown_address_tells_nothing_without_a_key_and_is_the_applications_with_one(
    guard: Guard, sent: dict[str, str]
) -> None:
    app = guarded(guard)
    known, unknown = ask(app, "GET", READ), ask(app, "GET", "/nowhere")
    assert (known.status, known.body, known.sent_headers) == (unknown.status, unknown.body, unknown.sent_headers)
    assert ask(app, "GET", "/nowhere", headers=bearer(sent["read"])).status == 404


# What is said


def test_a_caller_is_who_the_key_says(file: Path, guard: Guard, sent: dict[str, str]) -> None:
    for name in ("read", "write", "admin"):
        for _ in range(2):  # found in full, then remembered
            caller = allow(guard, sent[name])
            assert (caller.name, caller.scope.word, caller.limits) == (name, name, LIMITS)
            assert caller.key_id == sent[name].split("_")[1]
    assert sent["read"] not in repr(vars(guard)) + repr(caller)


def test_limits_of_a_key_are_the_callers_and_never_above_the_services(file: Path, clock: Clock) -> None:
    sent = key_file(file, max_k=5, max_history=10**9)
    caller = allow(Guard(Keys(file), LIMITS), sent["read"])
    assert caller.limits == Limits(max_k=5, max_history=LIMITS.max_history)


def test_an_unknown_key_and_a_wrong_secret_get_the_same_words(guard: Guard, sent: dict[str, str]) -> None:
    prefix, key_id, _ = sent["read"].split("_", 2)
    wrong = f"{prefix}_{key_id}_{'x' * 43}"
    answers = {ask(guarded(guard), "GET", READ, headers=bearer(key)).body for key in (STRANGERS, wrong)}
    assert len(answers) == 1
    assert b"unknown or was revoked" in answers.pop()
    assert guard.refused == {"unknown": 2}


def test_no_key_is_told_how_to_send_one(guard: Guard) -> None:
    for headers in ([], [(b"cookie", b"a=b")], [(b"x-authorization", b"Bearer x")]):
        said = refused(guard, headers)
        assert (said.status, said.headers) == (401, {"WWW-Authenticate": "Bearer"})
        assert "send it as `Authorization: Bearer <key>`" in said.detail
    assert guard.refused == {"missing": 3}


def test_a_key_is_taken_however_the_header_is_written(guard: Guard, sent: dict[str, str]) -> None:
    for scheme in (b"bearer ", b"BEARER ", b"Bearer   "):
        assert guard.allow("GET", READ, [(b"authorization", scheme + sent["read"].encode())]).name == "read"


def test_ways_of_writing_do_not_fill_the_memory(guard: Guard, sent: dict[str, str]) -> None:
    for spaces in range(1, 100):
        guard.allow("GET", READ, [(b"authorization", b"bearer" + b" " * spaces + sent["read"].encode())])
    for _ in range(3):
        allow(guard, sent["read"])
    assert len(guard._known) == 1


MALFORMED: list[Callable[[bytes], bytes]] = [
    lambda key: b"",
    lambda key: b" ",
    lambda key: b"Bearer",
    lambda key: b"Bearer ",
    lambda key: key,
    lambda key: b"Bearer" + key,
    lambda key: b"Bearer\t" + key,
    lambda key: b"Bearer " + key + b" ",
    lambda key: b"Bearer " + key + b"\n",
    lambda key: b"Bearer " + key + b",Bearer " + key,
    lambda key: b"Bearer " + key[:-1],
    lambda key: b"Bearer " + key + b"a",
    lambda key: b"Bearer " + key.upper(),
    lambda key: b"Bearer \xff" + key[1:],
    lambda key: b'Bearer "' + key + b'"',
    lambda key: b"Basic " + key,
    lambda key: b"Token " + key,
    lambda key: b" Bearer " + key,
    lambda key: b"\x00Bearer " + key,
    lambda key: b"Bearer " + b" " * 300 + key,
    lambda key: b"Bearer " + key * 10_000,
]


@pytest.mark.parametrize("said", MALFORMED)
def test_a_malformed_header_is_refused_and_not_repeated(
    guard: Guard, sent: dict[str, str], caplog: pytest.LogCaptureFixture, said: Callable[[bytes], bytes]
) -> None:
    with caplog.at_level(logging.DEBUG):
        refusal = refused(guard, [(b"authorization", said(sent["admin"].encode()))])
    assert (refusal.status, refusal.headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert "not of the form `Bearer recsys_<id>_<secret>`" in refusal.detail
    assert caplog.records == []


def test_two_keys_are_none(guard: Guard, sent: dict[str, str]) -> None:
    one = (b"authorization", f"Bearer {sent['read']}".encode())
    for headers in ([one, one], [one, (b"host", b"x"), (b"authorization", b"")]):
        assert "more than one Authorization header; send one" in refused(guard, headers).detail


@given(value=st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(b"Bearer recsys_".__add__)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_get_through_or_break_anything(guard: Guard, clock: Clock, value: bytes) -> None:
    clock.seconds += 100  # so that what is tested is not the slowing down
    said = refused(guard, [(b"authorization", value)])
    assert said.status == 401
    assert said.detail.isprintable()


def test_a_refused_key_leaves_its_id_in_the_log_and_not_its_secret(
    guard: Guard, sent: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        refused(guard, [(b"authorization", f"Bearer {STRANGERS}".encode())])
    assert caplog.messages == ["a key with id aaaaaaaa was refused: it is unknown or was revoked"]


# Keys that change


def test_a_revoked_key_ends_and_a_new_one_begins_without_a_restart(
    file: Path, guard: Guard, sent: dict[str, str], clock: Clock
) -> None:
    allow(guard, sent["read"])
    with changing(file) as keys:
        revoke(keys, "read")
        _, new = add(keys, "new", "read", now=datetime.now(UTC))
    clock.seconds += 1
    assert "revoked" in refused(guard, [(b"authorization", f"Bearer {sent['read']}".encode())]).detail
    assert allow(guard, new).name == "new"
    assert allow(guard, sent["write"]).name == "write"


def test_a_scope_and_limits_that_change_count_at_once(
    file: Path, guard: Guard, sent: dict[str, str], clock: Clock
) -> None:
    allow(guard, sent["write"], "POST", WRITE)
    with changing(file) as keys:
        keys[1] = keys[1].model_copy(update={"scope": "read", "limits": KeyLimits(max_k=2)})
    clock.seconds += 1
    assert allow(guard, sent["write"]).limits.max_k == 2
    assert refused(guard, [(b"authorization", f"Bearer {sent['write']}".encode())], "POST", WRITE).status == 403


def test_a_rotated_key_and_its_successor_are_both_good_until_the_grace_ends(
    file: Path, guard: Guard, sent: dict[str, str], clock: Clock, now: Clock
) -> None:
    allow(guard, sent["read"])
    moment = datetime.fromtimestamp(now.seconds, UTC)
    with changing(file) as keys:
        _, new = rotate(keys, "read", now=moment, grace=timedelta(hours=1))
    clock.seconds += 1
    now.seconds += 3599
    assert (allow(guard, sent["read"]).name, allow(guard, new).name) == ("read", "read")
    now.seconds += 1  # the file does not change: the guard must remember when
    said = refused(guard, [(b"authorization", f"Bearer {sent['read']}".encode())])
    assert said.status == 401
    assert f"it expired at {moment + timedelta(hours=1):%Y-%m-%d %H:%M:%S} UTC" in said.detail
    assert guard.refused == {"expired": 1}
    assert allow(guard, new).name == "read"


def test_a_broken_file_neither_opens_nor_closes(file: Path, guard: Guard, sent: dict[str, str], clock: Clock) -> None:
    file.write_text("{", encoding="utf-8")
    clock.seconds += 1
    assert allow(guard, sent["read"]).name == "read"
    assert refused(guard).status == 401
    file.unlink()
    clock.seconds += 1
    assert allow(guard, sent["read"]).name == "read"
    assert refused(guard).status == 401


def test_no_keys_in_the_file_let_nobody_through(file: Path, guard: Guard, sent: dict[str, str], clock: Clock) -> None:
    with changing(file) as keys:
        keys.clear()
    clock.seconds += 1
    for holder in HOLDERS:
        headers = [(name.lower().encode(), value.encode()) for name, value in bearer(sent[holder]).items()]
        assert refused(guard, headers).status == 401


# Rates


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=0.25, burst=2)
    guard = Guard(Keys(file, clock=clock), LIMITS, clock=clock)
    app = guarded(guard)
    statuses = [ask(app, "GET", READ, headers=bearer(sent["read"])).status for _ in range(3)]
    assert statuses == [404, 404, 429]
    reply = ask(app, "GET", READ, headers=bearer(sent["read"]))
    assert (reply.headers["retry-after"], reply.headers["content-type"]) == ("4", PROBLEM_TYPE)
    assert reply.json["detail"] == "key 'read' may ask 0.25 times a second; try again in 4 s"
    assert guard.refused == {"rate": 2}
    allow(guard, sent["write"])  # others are not held up
    assert ask(app, "GET", "/healthz", headers=bearer(sent["read"])).status == 404  # nor is what is open
    clock.seconds += 4
    allow(guard, sent["read"])


def test_the_service_can_set_a_rate_for_all_and_each_key_has_its_own(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=100.0)
    guard = Guard(Keys(file, clock=clock), LIMITS, rate=Rate(1, 2), clock=clock)
    for name in ("read", "write"):
        for _ in range(2):
            allow(guard, sent[name])
        assert refused(guard, [(b"authorization", f"Bearer {sent[name]}".encode())]).status == 429


def test_a_replica_gives_its_share(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=10.0, burst=40)
    guard = Guard(Keys(file, clock=clock), LIMITS, share=0.25, clock=clock)
    header = [(b"authorization", f"Bearer {sent['read']}".encode())]
    for _ in range(10):
        guard.allow("GET", READ, header)
    assert "may ask 10 times a second" in refused(guard, header).detail  # what was agreed, not this replica's part
    clock.seconds += 0.4
    guard.allow("GET", READ, header)
    assert refused(guard, header).status == 429
    for share in (0, -1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="1 / replicas"):
            Guard(None, LIMITS, share=share)


def test_a_batch_costs_what_its_requests_would(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=10.0, burst=3)
    guard = Guard(Keys(file, clock=clock), LIMITS, clock=clock)
    guard.charge(allow(guard, sent["read"]), 7)  # eight requests, of which three are a burst
    clock.seconds += 0.59
    assert refused(guard, [(b"authorization", f"Bearer {sent['read']}".encode())]).status == 429
    clock.seconds += 0.01
    allow(guard, sent["read"])
    Guard(None, LIMITS).charge(Guard(None, LIMITS).allow("GET", READ, []), 7)  # whoever has no rate owes nothing


def test_neither_a_changed_file_nor_a_successor_is_a_new_start_for_a_rate(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=0.01, burst=2)
    guard = Guard(Keys(file, clock=clock), LIMITS, clock=clock)
    for _ in range(2):
        allow(guard, sent["read"])
    with changing(file) as keys:
        _, new = rotate(keys, "read", now=datetime.now(UTC), grace=timedelta(hours=1))
    clock.seconds += 1
    for key in (sent["read"], new):
        assert refused(guard, [(b"authorization", f"Bearer {key}".encode())]).status == 429


def test_a_rate_that_changes_counts_at_once(file: Path, clock: Clock) -> None:
    sent = key_file(file, requests_per_second=0.01, burst=1)
    guard = Guard(Keys(file, clock=clock), LIMITS, clock=clock)
    allow(guard, sent["read"])
    for limits, granted in ((KeyLimits(requests_per_second=3.0), 3), (KeyLimits(), 100)):
        with changing(file) as keys:
            keys[0] = keys[0].model_copy(update={"limits": limits})
        clock.seconds += 1
        allow(guard, sent["read"])  # from now on the new rate counts
        clock.seconds += 1
        for _ in range(granted):
            allow(guard, sent["read"])
    guard.charge(allow(guard, sent["read"]), 10**6)  # the rate is gone, and nothing is owed
    allow(guard, sent["read"])


def test_wrong_keys_are_slowed_and_good_ones_are_not(
    file: Path, guard: Guard, sent: dict[str, str], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [(b"authorization", f"Bearer {STRANGERS}".encode())]
    malformed = [(b"authorization", b"Bearer x")]
    with caplog.at_level(logging.WARNING):
        statuses = [refused(guard, wrong).status for _ in range(100)]
        assert statuses == [401] * 100
        said = refused(guard, wrong)
        assert (said.status, said.headers) == (429, {"Retry-After": "1"})
        assert refused(guard, malformed).status == 429
    assert len(caplog.records) == 100  # what is slowed is counted, not logged
    assert guard.refused == {"unknown": 100, "slowed": 2}
    assert refused(guard).status == 401  # who has none yet is told how to send one
    for name in ("read", "write", "admin"):  # neither of them was seen before
        assert allow(guard, sent[name]).name == name
    clock.seconds += 0.1
    assert [refused(guard, wrong).status for _ in range(2)] == [401, 429]
