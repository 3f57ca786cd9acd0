"""A Bundle turned into answers: no HTTP and no Ray, so that tests, notebooks and the service share one path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from recsys.attributes import FilterError
from recsys.bundle import Bundle
from recsys.ids import Id
from recsys.index.exact import best

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


class Recommender:
    """Answers from one bundle. Nothing in it changes, so many threads may ask at once.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        # Popular items are returned again and again; reading them from Arrow is a fifth of a quick request.
        self._said_of = lru_cache(maxsize=1 << 16)(self._read)
        self._event_codes = {name: code for code, name in enumerate(bundle.manifest.content["event_names"])}

    def recommend(
        self,
        *,
        user_id: Id | None = None,
        history: Sequence[Event] = (),
        k: int = 10,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
        filter: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The k items a user most likely wants next; always k where k are eligible.

        Args:
            user_id: whom to recommend to; may be unknown, or None.
            history: what they took, oldest first, after what the bundle knows of them.
            k: how many items.
            exclude: items not to return.
            include_seen: whether items that the user took may be returned.
            filter: attribute to clause; see `Attributes.eligible`.

        Returns:
            Strategy `personalised` for a user whom the bundle knows, `history` for one whom only the request tells of,
            `popular` for one of whom nothing is known.

        Raises:
            RequestError: k, an event or the filter cannot be used.
        """
        bundle = self.bundle
        user = None if user_id is None else bundle.user_ids.row(user_id)
        known = bundle.seen(user) if user is not None else np.empty(0, dtype=np.int32)
        rows = bundle.item_ids.rows([event.item_id for event in history])
        unknown = [event.item_id for event, row in zip(history, rows, strict=True) if row < 0]
        events, used = self._events(history), rows >= 0
        fresh = rows[used]
        banned = [bundle.item_ids.rows(list(exclude))] if exclude else []
        if not include_seen:
            banned += [known, fresh]
        eligible, excluded = self._eligible(filter), np.concatenate(banned) if banned else None
        if user is not None and len(fresh) == 0 and len(known):
            return self._nearest("personalised", bundle.user_vectors[user], k, eligible, excluded, unknown)
        if len(fresh):
            vector = bundle.embed_user(user, fresh, _times(history)[used], events[used])
            strategy: Strategy = "personalised" if len(known) else "history"
            return self._nearest(strategy, vector, k, eligible, excluded, unknown)
        _check_k(k)
        scores = bundle.popularity.copy()
        if eligible is not None:
            scores[~eligible] = -np.inf
        if excluded is not None:
            scores[excluded[excluded >= 0]] = -np.inf
        return self._answer("popular", *best(scores, k), unknown)

    def similar(self, item_id: Id, *, k: int = 10, filter: Mapping[str, Any] | None = None) -> Answer:
        """The k items most similar to one.

        Raises:
            UnknownItem: the bundle does not know it.
            RequestError: k or the filter cannot be used.
        """
        row = self.bundle.item_ids.row(item_id)
        if row is None:
            raise UnknownItem(f"there is no item {item_id!r} in bundle {self.bundle.id}")
        return self._nearest("similar", self.bundle.item_vectors[row], k, self._eligible(filter), np.array([row]), [])

    def warm(self) -> None:
        """Answers a query of every kind once, so that the first real one finds everything loaded."""
        items = self.bundle.item_ids.ids(np.arange(min(2, len(self.bundle.item_ids))))
        if not items:
            return
        self.similar(items[0], k=1)
        self.recommend(history=[Event(item) for item in items], k=1)
        self.recommend(user_id=self.bundle.user_ids.id(0), k=1)

    def _nearest(
        self,
        strategy: Strategy,
        vector: np.ndarray,
        k: int,
        eligible: np.ndarray | None,
        excluded: np.ndarray | None,
        unknown: list[Id],
    ) -> Answer:
        _check_k(k)
        scores, rows = self.bundle.index.search(vector[None], k, eligible=eligible, exclude=excluded)
        found = rows[0] >= 0
        return self._answer(strategy, scores[0][found], rows[0][found], unknown)

    def _answer(self, strategy: Strategy, scores: np.ndarray, rows: np.ndarray, unknown: list[Id]) -> Answer:
        items = [
            Recommendation(item_id, score, rank, attributes)
            for rank, (score, (item_id, attributes)) in enumerate(
                zip(scores.tolist(), map(self._said_of, rows.tolist()), strict=True), 1
            )
        ]
        return Answer(self.bundle.id, strategy, items, unknown)

    def _read(self, row: int) -> tuple[Id, dict[str, Any]]:
        return self.bundle.item_ids.id(row), self.bundle.attributes.shown(row)

    def _eligible(self, filter: Mapping[str, Any] | None) -> np.ndarray | None:
        if not filter:
            return None
        try:
            return self.bundle.attributes.eligible(filter)
        except FilterError as error:
            raise RequestError(str(error)) from None

    def _events(self, events: Sequence[Event]) -> np.ndarray:
        for event in events:
            if event.event is not None and self._event_codes and event.event not in self._event_codes:
                raise RequestError(f"there is no event {event.event!r}; valid: {', '.join(self._event_codes)}")
        return np.array([self._event_codes.get(event.event or "", 0) for event in events], dtype=np.int64)


def _times(events: Sequence[Event]) -> np.ndarray:
    return np.array([-1 if event.timestamp is None else event.timestamp for event in events], dtype=np.int64)


def _check_k(k: int) -> None:
    if k < 1:
        raise RequestError(f"k is {k}; ask for at least 1 item")
