"""What a Recommender can be asked and what it answers, as plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys.ids import Id
from recsys.rules import Rules

Strategy = Literal["personalised", "history", "popular", "similar"]
NO_RULES = Rules()


class RequestError(ValueError):
    """A request that cannot be answered as it stands; the message names the value and what to change."""


class UnknownItem(LookupError):
    """The item asked about is not in the live bundle, nor was it PUT since."""


class Effort(enum.Enum):
    """How much an answer may cost; each does what those before it do.

    FULL: everything.
    FEWER: an approximate index is searched half as thoroughly, and diversity chooses among k candidates, so it only
        orders them.
    PREFIX: scores are those of the shortest prefix of the vectors that training trained, where that is cheaper (see
        `Derived.prefix`).
    POPULAR: popular items whoever asks; no tower runs, nothing is searched.
    """

    FULL = "full"
    FEWER = "fewer"
    PREFIX = "prefix"
    POPULAR = "popular"


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction of a history: the item, when (milliseconds since 1970, if known) and what happened."""

    item_id: Id
    timestamp: int | None = None
    event: str | None = None


@dataclass(slots=True)
class Query:
    """What `Recommender.recommend` is asked, as one value; see there."""

    user_id: Id | None = None
    history: Sequence[Event] = ()
    k: int = 10
    exclude: Sequence[Id] = ()
    include_seen: bool = False
    filter: Mapping[str, Any] | None = None
    rules: Rules = NO_RULES
    explain: bool = False
    effort: Effort = Effort.FULL
    now_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Pull:
    """An item of the history, and its share of what pulled an item of the answer up; see `recsys.explain.pulls`."""

    item_id: Id
    share: float


@dataclass(frozen=True, slots=True)
class Reason:
    """One of the reasons why an item is not in a list, in a word and in a sentence.

    `unknown` (nobody knows the item), `unavailable`, `seen`, `excluded`, `filtered` (once for each clause that it
    fails), `ranked` (k others score higher), `rules`, or `missed` (an approximate index did not find it).
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Why an item is not in a list.

    Attributes:
        item_id: as it was asked for.
        in_list: whether it is there after all; then there are no reasons.
        rank: its place among all items that may be recommended to anybody, by exact search; None if it is unknown. An
            item that may not be recommended gets the place that it would have.
        rank_among_eligible: likewise, among those that this request may return: neither seen nor excluded, and passing
            its filter.
        reasons: all that apply, each of which would do. Of an item that may not be returned at all it is not said
            which rules it would meet.
    """

    item_id: Id
    in_list: bool
    rank: int | None
    rank_among_eligible: int | None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One returned item: its score is the inner product of query and item vector, its rank starts at 1.

    Where an explanation was asked for, `because` says which items of the history pulled it up, and
    `rank_before_rules` where it stood among all that may be recommended, before filter, seen items and rules.
    """

    item_id: Id
    score: float
    rank: int
    attributes: dict[str, Any] = field(default_factory=dict)
    because: list[Pull] | None = None
    rank_before_rules: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets: the bundle that gave it, how it was found, and the items, best first.

    Attributes:
        unknown_items: ids of the request's history, or of its seeds, that nobody knows, and that could not be used.
        relaxed: rules that could not be kept without returning fewer items; see `recsys.rules.arrange`.
        degraded: what was done more cheaply than it could have been: "fewer candidates", "cheaper dimension",
            "popular".
        stages: seconds spent by stage ("tower", "search", "rules", which search, too, and "read"), for whoever
            measures; two answers are equal whatever they took.
    """

    bundle: str
    strategy: Strategy
    items: list[Recommendation]
    unknown_items: list[Id] = field(default_factory=list)
    relaxed: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    stages: tuple[tuple[str, float], ...] = field(default=(), compare=False)
