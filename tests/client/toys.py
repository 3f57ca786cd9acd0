"""What a service would say, and what the client makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recsys.client import Answer, Item

Make = Callable[..., Any]

ITEM: dict[str, Any] = {"item_id": "i1", "score": 2.5, "rank": 1, "attributes": {"title": "One"}}
ANSWER: dict[str, Any] = {"bundle": "b1", "strategy": "personalised", "items": [ITEM]}
READ = Answer("b1", "personalised", (Item("i1", 2.5, 1, {"title": "One"}),))
PROBLEM: dict[str, Any] = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "k: must be 1 or more, got 0",
    "request_id": "r-1",
    "errors": [{"at": "k", "change": "must be 1 or more, got 0"}],
}
BUSY: dict[str, Any] = {
    "type": "about:blank",
    "title": "Service Unavailable",
    "status": 503,
    "detail": "no bundle is loaded yet",
}
