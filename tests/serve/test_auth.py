"""The application as it is served, asked by every kind of caller on every route, and held to each key's own limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve.asgi import Application
from serve.guard import Guard
from serve.keys import Keys
from serve.service import Service
from tests.serve.asking import ask
from tests.serve.conftest import LIMITS
from tests.serve.scopes import NEEDS, assert_guarded, bearer, key_file


def guarded(service: Service, path: Path, **limits: Any) -> tuple[Application, dict[str, str]]:
    sent = key_file(path, **limits)
    return Application(service, guard=Guard(Keys(path), LIMITS)), sent


@pytest.mark.parametrize(("method", "template"), NEEDS, ids=" ".join)
def test_every_caller_gets_what_the_table_says_on_every_route(
    service: Service, tmp_path: Path, method: str, template: str
) -> None:
    app, sent = guarded(service, tmp_path / "keys.json")
    assert_guarded(app, method, template, sent)


def test_a_refused_caller_changes_nothing(service: Service, tmp_path: Path) -> None:
    app, sent = guarded(service, tmp_path / "keys.json")
    event = {"event_id": "1", "user_id": "u1", "item_id": "i/0"}
    for holder in ("nobody", "stranger", "read"):
        assert ask(app, "POST", "/v1/events", event, headers=bearer(sent[holder])).status in (401, 403)
        assert ask(app, "DELETE", "/v1/items/i%2F0", headers=bearer(sent[holder])).status in (401, 403)
    store: Any = service.online.store
    assert not store.events
    assert not store.items
    assert ask(app, "POST", "/v1/events", event, headers=bearer(sent["write"])).json == {"accepted": 1, "duplicates": 0}
    assert list(store.events) == ["1"]


def test_a_key_is_held_to_its_own_limits_and_the_answer_names_them(service: Service, tmp_path: Path) -> None:
    app, sent = guarded(service, tmp_path / "keys.json", max_k=3, max_history=1, max_batch=1, max_body_bytes=200)
    headers = bearer(sent["read"])
    assert ask(app, "GET", "/v1/users/u1/recommendations?k=3", headers=headers).status == 200
    assert len(ask(app, "GET", "/v1/users/u1/recommendations", headers=headers).json["items"]) == 3, "k is 3 by default"
    reply = ask(app, "GET", "/v1/users/u1/recommendations?k=4", headers=headers)
    assert (reply.status, "3" in reply.json["detail"]) == (422, True)
    assert ask(app, "POST", "/v1/recommendations", {"history": ["i 1", "i/0"]}, headers=headers).status == 422
    assert ask(app, "POST", "/v1/recommendations:batch", {"requests": [{}, {}]}, headers=headers).status == 422
    assert ask(app, "POST", "/v1/recommendations", {"exclude": ["x" * 300]}, headers=headers).status == 413


def test_a_key_that_asks_too_often_waits_and_a_batch_counts_as_its_requests(service: Service, tmp_path: Path) -> None:
    app, sent = guarded(service, tmp_path / "keys.json", requests_per_second=0.01, burst=4)
    headers = bearer(sent["read"])
    assert ask(app, "POST", "/v1/recommendations:batch", {"requests": [{}] * 4}, headers=headers).status == 200
    reply = ask(app, "GET", "/v1/bundle", headers=headers)
    assert (reply.status, int(reply.headers["retry-after"]) > 0) == (429, True)
    assert ask(app, "GET", "/v1/bundle", headers=bearer(sent["write"])).status == 200, "another key has its own rate"
