"""Who may ask what, written by hand, and a check of an application against it: every route × every kind of caller."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.key_changes import add
from serve.key_file import KeyLimits, changing
from tests.serve.asking import ask

# What each route needs; None: open to all. A route that the application documents and this table lacks fails a test.
NEEDS: dict[tuple[str, str], str | None] = {
    ("GET", "/v1/users/{user_id}/recommendations"): "read",
    ("POST", "/v1/recommendations"): "read",
    ("POST", "/v1/recommendations:batch"): "read",
    ("GET", "/v1/items/{item_id}/similar"): "read",
    ("POST", "/v1/similar"): "read",
    ("POST", "/v1/why-not"): "read",
    ("GET", "/v1/items"): "read",
    ("POST", "/v1/items:lookup"): "read",
    ("GET", "/v1/attributes"): "read",
    ("GET", "/v1/map"): "read",
    ("GET", "/v1/bundle"): "read",
    ("POST", "/v1/events"): "write",
    ("PUT", "/v1/items/{item_id}"): "write",
    ("DELETE", "/v1/items/{item_id}"): "write",
    ("GET", "/metrics"): "admin",
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/docs"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/"): None,
    ("GET", "/ui/app.js"): None,
}
HOLDERS = ("nobody", "stranger", "read", "write", "admin")
STRANGERS = "recsys_aaaaaaaa_" + "x" * 43

# By hand: the status that refuses each holder, 0 where the request goes on to the application.
REFUSED: dict[str | None, dict[str, int]] = {
    None: {"nobody": 0, "stranger": 0, "read": 0, "write": 0, "admin": 0},
    "read": {"nobody": 401, "stranger": 401, "read": 0, "write": 0, "admin": 0},
    "write": {"nobody": 401, "stranger": 401, "read": 403, "write": 0, "admin": 0},
    "admin": {"nobody": 401, "stranger": 401, "read": 403, "write": 403, "admin": 0},
}


def key_file(path: Path, **limits: Any) -> dict[str, str]:
    """Writes a file with a key of each scope, named like it, and returns what each kind of caller sends; "" is none."""
    sent = {"nobody": "", "stranger": STRANGERS}
    with changing(path) as keys:
        for scope in ("read", "write", "admin"):
            _, sent[scope] = add(keys, scope, scope, now=datetime.now(UTC), limits=KeyLimits(**limits))
    return sent


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def documented_routes(openapi: dict[str, Any]) -> list[tuple[str, str]]:
    """The methods and path templates of an OpenAPI document."""
    return [(method.upper(), path) for path, operations in openapi["paths"].items() for method in operations]


def target_of(template: str) -> str:
    """An address of a route, its parameters filled in."""
    return re.sub(r"\{[^}]*\}", "x", template)


def assert_guarded(app: Any, method: str, template: str, sent: dict[str, str]) -> None:
    """Asks one route as every kind of caller, and compares who is let through with the table.

    Args:
        app: an application guarded by a key file of `key_file`.
        method: of the route.
        template: of the route, as OpenAPI writes it.
        sent: what `key_file` returned.
    """
    needs = NEEDS[method, template]
    for holder in HOLDERS:
        reply = ask(app, method, target_of(template), headers=bearer(sent[holder]))
        refused = REFUSED[needs][holder]
        if not refused:
            assert reply.status not in (401, 403, 429), (holder, reply.body)
            continue
        said = reply.json
        assert (reply.status, said["status"]) == (refused, refused), (holder, reply.body)
        assert reply.headers["content-type"] == "application/problem+json"
        assert (reply.headers.get("www-authenticate") == "Bearer") == (refused == 401)
        if refused == 403:
            assert f"needs {needs}" in said["detail"], said["detail"]
            assert f"'{holder}'" in said["detail"], said["detail"]
        assert sent[holder] not in reply.body.decode() or not sent[holder]
