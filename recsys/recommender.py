"""A bundle, and what was said of items since, turned into answers: no HTTP and no Ray, so that all share one path."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from recsys.answers import (
    NO_RULES,
    Answer,
    Effort,
    Event,
    Query,
    Recommendation,
    RequestError,
    Strategy,
    UnknownItem,
    WhyNot,
)
from recsys.attributes import FilterError
from recsys.browse import Browse
from recsys.bundle import Bundle
from recsys.explain import Asked, why_not
from recsys.finding import POPULAR, Finder, Request, economies
from recsys.ids import Id
from recsys.live import FeatureError, LiveCatalogue
from recsys.online.store import LiveItem, StoredEvent
from recsys.rules import Cap, Freshness, Quota, Rules
from recsys.users_now import taken, user_vectors

__all__ = [
    "Answer",
    "Effort",
    "Event",
    "Query",
    "Recommendation",
    "Recommender",
    "RequestError",
    "Strategy",
    "UnknownItem",
]

_NONE = np.empty(0, dtype=np.int64)


class Recommender:
    """Answers from one bundle and one state of its items. Nothing in it changes, so many threads may ask at once.

    Args:
        bundle: an opened bundle.
        live: its items as they are now; as they were sealed if left out.
    """

    def __init__(self, bundle: Bundle, live: LiveCatalogue | None = None) -> None:
        self.bundle = bundle
        self.live = LiveCatalogue(bundle) if live is None else live
        if self.live.bundle is not bundle:
            raise ValueError(f"the live catalogue is of bundle {self.live.bundle.id}, not {bundle.id}; make it anew")
        self.finder = Finder(self.live)
        self.browse = Browse(self.live)
        self._event_codes = {name: code for code, name in enumerate(bundle.manifest.content["event_names"])}
        self._told_when = bundle.towers.user.query_time  # then a vector that was stored is of another moment

    def with_live(self, items: Sequence[LiveItem]) -> Recommender:
        """The same bundle with what was said of items since: all of it, not only what is new.

        What is computed from the bundle alone is shared, and so are the rows of items that did not change.
        """
        return Recommender(self.bundle, self.live.updated(items))

    def recommend(
        self,
        *,
        user_id: Id | None = None,
        history: Sequence[Event] = (),
        k: int = 10,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
        filter: Mapping[str, Any] | None = None,
        rules: Rules = NO_RULES,
        explain: bool = False,
        effort: Effort = Effort.FULL,
        now_ms: int | None = None,
    ) -> Answer:
        """The k items a user most likely wants next; always k where k are eligible.

        Args:
            user_id: whom to recommend to; may be unknown, or None.
            history: what they took, oldest first, after what the bundle knows of them.
            k: how many items.
            exclude: items not to return.
            include_seen: whether items that the user took may be returned.
            filter: attribute to clause; see `Attributes.eligible`.
            rules: what the list as a whole has to be like. Where nothing is known of the user they arrange popular
                items: freshness is then weighed against the spread of popularity, diversity still between vectors.
            explain: whether to say, of each item, what pulled it up and where it stood before filter, seen and rules.
            effort: how much the answer may cost.
            now_ms: when it is asked, milliseconds since 1970, from which freshness counts an item's age, and which
                towers made with `query_time` are told; now if left out.

        Returns:
            Strategy `personalised` for a user whom the bundle knows, `history` for one whom only the request tells of,
            `popular` for one of whom nothing is known.

        Raises:
            RequestError: k, an event, the filter or a rule cannot be used.
        """
        return self.answer(Query(user_id, history, k, exclude, include_seen, filter, rules, explain, effort, now_ms))

    def answer(self, query: Query) -> Answer:
        """As `recommend`, asked by one value.

        Raises:
            RequestError: as `recommend` would.
        """
        request = self.understood(query)
        if request.taken is not None:
            self._embed([request])
        return self.finder.answer(request, self.finder.find(request))

    def recommend_many(self, requests: Sequence[Query]) -> list[Answer | Exception]:
        """As `recommend` for each request, with one pass of the user tower and as few searches as there can be.

        Returns:
            An answer each, or the RequestError that `recommend` would have raised. What was done for several at once
            counts as a share of it in each one's stages.
        """
        answers: dict[int, Answer | Exception] = {}
        understood: dict[int, Request] = {}
        for number, query in enumerate(requests):
            try:
                understood[number] = self.understood(query)
            except RequestError as error:
                answers[number] = error
        self._embed(list(understood.values()))
        for numbers in self.finder.alike(understood.items()):
            alike = [understood[number] for number in numbers]
            try:
                found = self.finder.find_together(alike) if len(alike) > 1 else [self.finder.find(alike[0])]
            except RequestError as error:  # of one alone: what is searched together has no rules
                answers[numbers[0]] = error
                continue
            for number, request, rows in zip(numbers, alike, found, strict=True):
                answers[number] = self.finder.answer(request, rows)
        return [answers[number] for number in range(len(requests))]

    def why_not(
        self,
        item_id: Id,
        *,
        user_id: Id | None = None,
        history: Sequence[Event] = (),
        k: int = 10,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
        filter: Mapping[str, Any] | None = None,
        rules: Rules = NO_RULES,
        now_ms: int | None = None,
    ) -> WhyNot:
        """Why an item is not in the answer that `recommend` gives to the same request; see `recsys.explain.why_not`.

        Raises:
            RequestError: as `recommend` would.
        """
        now_ms = _now_ms() if now_ms is None else now_ms  # one for every list that is compared
        query = Query(user_id, history, k, exclude, include_seen, filter, rules, now_ms=now_ms)
        request = self.understood(query)
        self._embed([request])

        def listed_by(others: Rules) -> np.ndarray:
            return self.finder.find(replace(request, query=replace(query, rules=others), stages=[])).rows

        seen = seen_at = _NONE
        if not include_seen:
            seen, seen_at = self._seen(request)
        asked = Asked(
            listed=self.finder.find(request).rows,
            k=k,
            query=request.vector,
            listed_by=listed_by,
            seen=seen,
            seen_at=seen_at,
            excluded=self.live.rows(list(exclude)),
            filter=filter or {},
            rules=rules,
        )
        return why_not(self.live, item_id, asked)

    def similar(
        self,
        items: Id | Sequence[Id] = (),
        *,
        features: Mapping[str, Any] | None = None,
        k: int = 10,
        exclude: Sequence[Id] = (),
        filter: Mapping[str, Any] | None = None,
        rules: Rules = NO_RULES,
        explain: bool = False,
        effort: Effort = Effort.FULL,
        now_ms: int | None = None,
    ) -> Answer:
        """The k items most similar to an item, to several, or to one that does not exist.

        The query is the item's vector, that of the item tower on features alone, or the mean of several items' vectors,
        each scaled to length 1 first, so that all count the same. The items asked about are not returned.

        Args:
            items: one or several; those that nobody knows are named in the answer.
            features: instead of items, the features of one that does not exist; see `checked_features`.
            k: how many items.
            exclude: further items not to return.
            filter: as in `recommend`, and so are rules, effort and now_ms.
            rules: likewise.
            explain: whether to say of each item where it stood before filter and rules.
            effort: likewise.
            now_ms: likewise.

        Raises:
            UnknownItem: nobody knows any of the items.
            RequestError: k, the filter, a rule or a feature cannot be used, or both or neither of items and features
                are given.
        """
        seeds = list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]
        if (features is None) == (not seeds):
            raise RequestError("give either the items to be similar to, or the features of one")
        query = Query(None, (), k, exclude, True, filter, rules, explain, effort, now_ms)
        request, rows, begun = Request(query, "similar"), _NONE, perf_counter()
        if features is not None:
            try:
                request.vector = self.live.embedded(features)
            except FeatureError as error:
                raise RequestError(str(error)) from None
            request.stages.append(("tower", perf_counter() - begun))
        else:
            rows = self.live.rows(seeds)
            if not (known := rows >= 0).all():
                request.unknown = [seeds[at] for at in (~known).nonzero()[0].tolist()]
                rows = rows[known]
            if not len(rows):
                raise UnknownItem(f"there is no item {' or '.join(map(repr, seeds[:8]))} in bundle {self.bundle.id}")
            request.vector = _mean(self.live.vectors(rows))
        self._narrow(request, [rows])
        return self.finder.answer(request, self.finder.find(request))

    def fresh(self, user_id: Id | None, events: Sequence[StoredEvent]) -> list[Event]:
        """What a user did that the bundle does not know of yet, as `recommend` takes it for a history.

        An event that the bundle's history of that user holds, the same item at the same time, is left out: the log that
        the bundle was made of had it, too. In a log of whole seconds the same time is less than a second apart; in a
        log without times the same item is enough. An item that nobody knows says nothing and is left out, and so is
        what happened where the bundle's log never names it.

        Args:
            user_id: who; None or somebody unknown has no history to compare with.
            events: oldest first.
        """
        if not events:
            return []
        bundle = self.bundle
        user = None if user_id is None else bundle.user_ids.row(user_id)
        rows = self.live.rows([event.item_id for event in events])
        kept = rows >= 0
        if user is not None and len(seen := bundle.seen(user)):
            own = self.live.own(np.maximum(rows, 0))
            if bundle.history_times is None:
                kept &= ~np.isin(own, seen)
            else:
                times = bundle.history_times[bundle.user_offsets[user] : bundle.user_offsets[user + 1]]
                whole = bundle.schema.interactions.unit == "s" and not (times % 1000).any()
                apart = np.abs(np.array([event.timestamp for event in events])[:, None] - times)
                kept &= ~((own[:, None] == seen) & (apart < (1000 if whole else 1))).any(axis=1)
        return [
            Event(event.item_id, event.timestamp, event.event if event.event in self._event_codes else None)
            for event, is_new in zip(events, kept.tolist(), strict=True)
            if is_new
        ]

    def understood(self, query: Query) -> Request:
        """A request in terms of rows; its vector is still to be made where that takes the user tower.

        Raises:
            RequestError: k, an event or the filter cannot be used.
        """
        bundle, live = self.bundle, self.live
        user = None if query.user_id is None else bundle.user_ids.row(query.user_id)
        known = _NONE if user is None else bundle.seen(user)
        request, since = Request(query, "popular", user=user), _NONE
        asked = (_now_ms() if query.now_ms is None else query.now_ms) if self._told_when else None
        if query.history:
            since, times, codes = live.rows([event.item_id for event in query.history]), None, None
            if _is_told(query.history):
                times, codes = _times(query.history), self._codes(query.history)
            if not (used := since >= 0).all():
                request.unknown = [query.history[at].item_id for at in (~used).nonzero()[0].tolist()]
                since, (times, codes) = since[used], (None if part is None else part[used] for part in (times, codes))
            if len(since):
                request.strategy = "personalised" if len(known) else "history"
                request.taken = taken(live, user, since, times, codes, asked)
        if request.taken is None and len(known):
            request.strategy = "personalised"
            if asked is None:
                request.vector = bundle.user_vectors[user]
            else:
                request.taken = taken(live, user, asked=asked)
        self._narrow(request, [] if query.include_seen else [live.now(known), since])
        return request

    def _narrow(self, request: Request, excluded: list[np.ndarray]) -> None:
        """Adds filter and effort, and what not to return: rows, and what the request excludes."""
        query = request.query
        if query.k < 1:
            raise RequestError(f"k is {query.k}; ask for at least 1 item")
        if len(query.exclude):
            excluded.append(self.live.rows(list(query.exclude)))
        excluded = [rows for rows in excluded if len(rows)]
        if excluded:
            request.excluded = excluded[0] if len(excluded) == 1 else np.concatenate(excluded)
        if query.filter:
            try:
                request.eligible = self.live.eligible(query.filter)
            except FilterError as error:
                raise RequestError(str(error)) from None
        if query.effort is not Effort.FULL:
            request.degraded = economies(query, self.live, popular=request.strategy == "popular")
            if POPULAR in request.degraded:
                request.strategy, request.vector, request.taken = "popular", None, None

    def _embed(self, requests: Sequence[Request]) -> None:
        """Makes the vectors that take the user tower, together."""
        waiting = [(request, request.taken) for request in requests if request.taken is not None]
        if not waiting:
            return
        begun = perf_counter()
        vectors = user_vectors(self.live, [history for _, history in waiting])
        share = (perf_counter() - begun) / len(waiting)
        for (request, _), vector in zip(waiting, vectors, strict=True):
            request.vector = vector
            request.stages.append(("tower", share))

    def _seen(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all that the user took, int64 [n], and when, −1 where that is unknown."""
        bundle, history = self.bundle, request.query.history
        rows = self.live.rows([event.item_id for event in history])
        since, since_at = rows[rows >= 0], _times(history)[rows >= 0]
        if request.user is None:
            return since, since_at
        known = bundle.seen(request.user).astype(np.int64)
        start = int(bundle.user_offsets[request.user])
        when = bundle.history_times
        known_at = np.full(len(known), -1, dtype=np.int64) if when is None else when[start : start + len(known)]
        return np.concatenate([known, since]), np.concatenate([known_at, since_at])

    def _codes(self, events: Sequence[Event]) -> np.ndarray:
        for event in events:
            if event.event is not None and self._event_codes and event.event not in self._event_codes:
                raise RequestError(f"there is no event {event.event!r}; valid: {', '.join(self._event_codes)}")
        return np.array([self._event_codes.get(event.event or "", 0) for event in events], dtype=np.int64)

    def warm(self) -> None:
        """Answers a query of every kind once, so that the first real one finds everything loaded."""
        items = self.bundle.item_ids.ids(np.arange(min(2, len(self.bundle.item_ids))))
        if not items:
            return
        history = [Event(item) for item in items]
        asked: list[dict[str, Any]] = [{}, {"history": history}]
        if len(self.bundle.user_ids):
            asked.append({"user_id": self.bundle.user_ids.id(0)})
        for rules in self._every_rule():
            asked.append({"history": history, "rules": rules})
            self.recommend(k=1, rules=rules)
        for one in asked:
            self.recommend(k=1, **one)
            for effort in Effort:
                self.recommend(k=1, effort=effort, **one)
            self.recommend(k=1, explain=True, **one)
            self.why_not(items[0], k=1, **one)
        self.recommend_many([Query(k=1, **one) for one in (*asked, *asked)])
        self.similar(items[0], k=1)
        self.similar(items, k=1)
        self.similar(features={}, k=1)
        for name in self._attributes("numeric", "timestamp"):
            self.recommend(k=1, filter={name: {"gte": 0}})
        for name in self._attributes("categorical", "multi"):
            self.recommend(k=1, filter={name: ""})

    def _every_rule(self) -> list[Rules]:
        words, moments = self._attributes("categorical", "multi"), self._attributes("timestamp")
        return [
            Rules(diversity=0.5),
            *(Rules(caps=(Cap(name, 1),), quotas=(Quota({name: ""}, 1),)) for name in words[:1]),
            *(Rules(freshness=Freshness(name, 1.0, 1.0)) for name in moments[:1]),
        ]

    def _attributes(self, *kinds: str) -> list[str]:
        declared = self.bundle.schema.items.features if self.bundle.schema.items else ()
        return [feature.name for feature in declared if feature.kind in kinds]


def _mean(vectors: np.ndarray) -> np.ndarray:
    """The mean of vectors [n, D], each scaled to length 1 first; of a single one, itself."""
    if len(vectors) == 1:
        return vectors[0]
    mean: np.ndarray = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).mean(axis=0)
    return mean


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _is_told(events: Sequence[Event]) -> bool:
    """Whether of any it is said when it happened, or what."""
    return any(event.timestamp is not None or event.event is not None for event in events)


def _times(events: Sequence[Event]) -> np.ndarray:
    return np.array([-1 if event.timestamp is None else event.timestamp for event in events], dtype=np.int64)
