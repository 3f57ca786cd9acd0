"""Which request asks what: methods' arguments turned into HTTP calls, and nothing sent.

Every call may be sent twice: what asks changes nothing, an event is known by its id, and an item that is put or deleted
twice is as it was after once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

from . import answers
from .answers import (
    Accepted,
    Answer,
    Attribute,
    Id,
    ItemMap,
    ItemState,
    KnownItem,
    LiveBundle,
    Reader,
    RecommendationError,
    WhyNot,
)

T = TypeVar("T")
Moment = datetime | float  # a datetime with its zone, or seconds since 1970


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did, for a history: the item, when, and what (view, cart, buy …)."""

    item_id: Id
    timestamp: Moment | None = None
    event: str | None = None


@dataclass(frozen=True, slots=True)
class UserEvent:
    """One thing that a user did, for the service to keep.

    Its id is made with it, so sending the same object again, even hours later, counts once.
    """

    user_id: Id
    item_id: Id
    timestamp: Moment | None = None
    event: str | None = None
    event_id: str = field(default_factory=lambda: uuid4().hex)


class Quota(TypedDict):
    """At least this many items that pass the filter."""

    filter: Mapping[str, Any]
    at_least: int


class Freshness(TypedDict):
    """How much newer items are lifted, by an attribute that holds a time."""

    attribute: str
    half_life_days: float
    weight: float


class SimilarQuery(TypedDict, total=False):
    """What may be said of a list of items: `k`, what not to return, a filter, and rules.

    `filter` is attribute → clause, `caps` attribute → most items of one value, `diversity` 0 to 1.
    """

    k: int
    exclude: Sequence[Id]
    filter: Mapping[str, Any] | None
    caps: Mapping[str, int] | None
    quotas: Sequence[Quota] | None
    diversity: float | None
    freshness: Freshness | None


class Query(SimilarQuery, total=False):
    """What may be said of recommendations: a user, a history (item ids or Events, oldest first), both, or neither."""

    user_id: Id | None
    history: Sequence[Id | Event]
    include_seen: bool
    explain: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Args:
        method: GET, POST, PUT or DELETE.
        path: below the service's address, percent-encoded.
        read: turns the JSON of a 200 into an answer; raises Unreadable.
        body: what is sent, as JSON; None for nothing.
        once: whether a failure is an answer, too, so that no retry follows.
    """

    method: str
    path: str
    read: Reader[T]
    body: bytes | None = None
    once: bool = False


def recommend(query: Query) -> Call[Answer]:
    """Asks for recommendations; by POST, so that no id stands in an address, where it would be logged and mangled."""
    return Call("POST", "/v1/recommendations", answers.answer, _json(_said(Query, query)))


def recommend_many(queries: Sequence[Query]) -> Call[list[Answer | RecommendationError]]:
    """Asks several queries at once."""
    body = _json({"requests": [_said(Query, query) for query in queries]})

    def read(said: Any) -> list[Answer | RecommendationError]:
        found = answers.answers(said)
        if len(found) != len(queries):
            raise answers.Unreadable(f"{len(found)} answers came for {len(queries)} queries")
        return found

    return Call("POST", "/v1/recommendations:batch", read, body)


def similar(items: Id | Sequence[Id], features: Mapping[str, Any] | None, query: SimilarQuery) -> Call[Answer]:
    """Asks what is like one item, several, or one that exists by its features alone."""
    seeds = list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]
    if not seeds and features is None:
        raise ValueError("similar needs items or features; give at least one of them")
    body: dict[str, Any] = {"items": seeds} if seeds else {}
    if features is not None:
        body["features"] = features
    return Call("POST", "/v1/similar", answers.answer, _json({**body, **_said(SimilarQuery, query)}))


def why_not(item_id: Id, query: Query) -> Call[WhyNot]:
    """Asks why an item is not in the list that the query gets."""
    return Call("POST", "/v1/why-not", answers.why_not, _json({"item_id": item_id, **_said(Query, query)}))


def send_events(events: Sequence[UserEvent]) -> Call[Accepted]:
    """Tells the service what users did."""
    said = [{"event_id": each.event_id, "user_id": each.user_id, **_event(each)} for each in events]
    return Call("POST", "/v1/events", answers.accepted, _json({"events": said}))


def put_item(item_id: Id, features: Mapping[str, Any] | None, available: bool | None) -> Call[ItemState]:
    """Adds an item, or changes what is said of it."""
    said = {name: value for name, value in (("features", features), ("available", available)) if value is not None}
    return Call("PUT", _item_path(item_id), answers.item_state, _json(said))


def delete_item(item_id: Id) -> Call[ItemState]:
    """Takes an item out of all answers."""
    return Call("DELETE", _item_path(item_id), answers.item_state)


def search_items(text: str, limit: int | None) -> Call[list[KnownItem]]:
    """Asks for items by what is written of them."""
    return Call("GET", _with("/v1/items", q=text or None, limit=limit), answers.known_items)


def look_up(items: Sequence[Id]) -> Call[list[KnownItem]]:
    """Asks what is shown of items."""
    return Call("POST", "/v1/items:lookup", answers.known_items, _json({"items": list(items)}))


def attributes(values: int | None) -> Call[list[Attribute]]:
    """Asks what is declared of items."""
    return Call("GET", _with("/v1/attributes", values=values), answers.attributes)


def item_map(limit: int | None, attribute: str | None) -> Call[ItemMap]:
    """Asks where items stand."""
    return Call("GET", _with("/v1/map", limit=limit, attribute=attribute), answers.item_map)


def bundle() -> Call[LiveBundle]:
    """Asks for the bundle in use."""
    return Call("GET", "/v1/bundle", answers.bundle)


def ready() -> Call[bool]:
    """Asks whether recommendations can be asked for."""
    return Call("GET", "/readyz", lambda said: True, once=True)


def _with(path: str, **parameters: Any) -> str:
    said = urlencode({name: value for name, value in parameters.items() if value is not None})
    return f"{path}?{said}" if said else path


def _item_path(item_id: Id) -> str:
    name = quote(str(item_id), safe="")
    if not name:
        raise ValueError("the item's id is empty; give the id that the catalogue has for it")
    if set(name) == {"."}:  # `.` and `..` would be resolved away, and the request would be another one
        name = name.replace(".", "%2E")
    return f"/v1/items/{name}"


def _said(kind: Any, query: Mapping[str, Any]) -> dict[str, Any]:
    """What of a query is said, checked by name; None says nothing."""
    valid = kind.__annotations__
    for name in query:
        if name not in valid:
            raise TypeError(f"there is no {name!r} (valid: {', '.join(valid)})")
    said = {name: value for name, value in query.items() if value is not None}
    if "history" in said:
        said["history"] = [_event(each) if isinstance(each, Event) else each for each in said["history"]]
    return said


def _event(event: Event | UserEvent) -> dict[str, Any]:
    said: dict[str, Any] = {"item_id": event.item_id}
    if event.timestamp is not None:
        said["timestamp"] = _moment(event.timestamp)
    if event.event is not None:
        said["event"] = event.event
    return said


def _moment(moment: Moment) -> str | float:
    if not isinstance(moment, datetime):
        return moment
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} names no time zone; give it one, such as tzinfo=datetime.UTC")
    return moment.isoformat()


def _json(said: dict[str, Any]) -> bytes:
    try:
        return json.dumps(said, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except ValueError as error:
        raise ValueError(f"a request holds what JSON cannot: {error}") from None


def _plain(value: Any) -> Any:
    """What JSON does not know by itself: moments, and the scalars and arrays of numpy, of which ids often are."""
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, Mapping):
        return dict(value)
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"a request cannot hold {value!r:.60} of type {type(value).__name__}; send text, numbers or lists")
