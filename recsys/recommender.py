"""A Bundle turned into answers: no HTTP and no Ray, so that tests, notebooks and the service share one path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from recsys.ids import Id

Strategy = Literal["personalised", "history", "popular", "similar"]


class RequestError(ValueError):
    """A request that cannot be answered as it stands; the message names the value and what to change."""


class UnknownItem(LookupError):
    """The item asked about is not in the live bundle."""


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction of a history: the item, when (milliseconds since 1970, if known) and what happened."""

    item_id: Id
    timestamp: int | None = None
    event: str | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One returned item: its score is the inner product of query and item vector, its rank starts at 1."""

    item_id: Id
    score: float
    rank: int
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets: the bundle that gave it, how it was found, and the items, best first.

    `unknown_items` lists ids of the request's history that this bundle does not know, and so could not use.
    """

    bundle: str
    strategy: Strategy
    items: list[Recommendation]
    unknown_items: list[Id] = field(default_factory=list)
