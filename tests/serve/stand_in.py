"""A Recommender of known answers, so that the HTTP layer is tested without a trained bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from recsys.answers import NO_RULES, Pull, Reason, WhyNot
from recsys.attributes import FilterError
from recsys.browse import MAP_SIDE, Declared, ItemMap, Known
from recsys.ids import Id, IdMap
from recsys.live import FeatureError
from recsys.online.store import LiveItem, StoredEvent
from recsys.recommender import Answer, Effort, Event, Query, Recommendation, RequestError, UnknownItem
from recsys.rules import Rules


class StandIn:
    """The best items of a user are those whose row is nearest to the user's; ids are `i/0`, `i 1`, `ï2`, …

    The only feature of items is `title`. Of what is live it knows what is not available.
    """

    def __init__(self, num_items: int = 50, num_users: int = 20, dim: int = 16) -> None:
        rng = np.random.default_rng(7)
        architecture = SimpleNamespace(max_length=dim)
        towers = SimpleNamespace(architecture=architecture)
        self.bundle = SimpleNamespace(id="toy-1", about={"items": num_items}, towers=towers)
        self.items = IdMap.of([("i/{}", "i {}", "ï{}")[row % 3].format(row) for row in range(num_items)])
        self.users = IdMap.of([f"u{row}" for row in range(num_users)])
        self.vectors = rng.normal(size=(num_items, dim)).astype(np.float32)
        self.queries = rng.normal(size=(num_users, dim)).astype(np.float32)
        self.calls: list[dict[str, Any]] = []
        self.live = SimpleNamespace(checked=_checked, row=self.items.row, ignored=())
        self.gone: tuple[Id, ...] = ()
        self.browse = StandInBrowse(self)

    def warm(self) -> None:
        pass

    def with_live(self, items: Sequence[LiveItem]) -> StandIn:
        other = StandIn(len(self.items), len(self.users), self.vectors.shape[1])
        other.bundle, other.calls = self.bundle, self.calls
        other.gone = tuple(item.item_id for item in items if not item.available)
        return other

    def fresh(self, user_id: Id | None, events: Sequence[StoredEvent]) -> list[Event]:
        return [Event(event.item_id, event.timestamp, event.event) for event in events]

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
        said = {
            "user_id": user_id,
            "history": list(history),
            "k": k,
            "exclude": list(exclude),
            "include_seen": include_seen,
        }
        more = {"rules": (rules, NO_RULES), "explain": (explain, False), "effort": (effort, Effort.FULL)}
        self.calls.append(said | {name: value for name, (value, usual) in more.items() if value != usual})
        if filter:
            raise RequestError(f"cannot filter by {next(iter(filter))!r}; valid: none")
        if user_id == "boom":
            raise RuntimeError("secret inside")
        rows = self.items.rows([event.item_id for event in history])
        unknown = [event.item_id for event, row in zip(history, rows, strict=True) if row < 0]
        user = None if user_id is None else self.users.row(user_id)
        if effort is Effort.POPULAR and (user is not None or (rows >= 0).any()):
            answer = self._best(np.ones(self.vectors.shape[1], np.float32), k, "popular", exclude, unknown)
            answer = replace(answer, degraded=("popular",))
        elif (rows >= 0).any():
            answer = self._best(self.vectors[rows[rows >= 0]].mean(0), k, "history", exclude, unknown)
        elif user is None:
            answer = self._best(np.ones(self.vectors.shape[1], np.float32), k, "popular", exclude, unknown)
        else:
            answer = self._best(self.queries[user], k, "personalised", exclude, unknown)
        if rules.quotas:
            answer = replace(answer, relaxed=("quotas[0]",))
        if explain:
            because = None if answer.strategy == "popular" else [Pull("i/0", 0.75), Pull("i 1", 0.25)]
            told = [replace(item, because=because, rank_before_rules=item.rank) for item in answer.items]
            answer = replace(answer, items=told)
        return answer

    def answer(self, query: Query) -> Answer:
        return self.recommend(**{name: getattr(query, name) for name in Query.__slots__})

    def recommend_many(self, requests: Sequence[Query]) -> list[Answer | Exception]:
        answers: list[Answer | Exception] = []
        for query in requests:
            try:
                answers.append(self.answer(query))
            except RequestError as error:
                answers.append(error)
        return answers

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
        seeds = [items] if isinstance(items, (str, int)) else list(items)
        if (features is None) == (not seeds):
            raise RequestError("give either the items to be similar to, or the features of one")
        if features is not None:
            try:
                _checked(features)
            except FeatureError as error:
                raise RequestError(str(error)) from None
            return self._best(self.vectors[0], k, "similar", exclude, [])
        rows = self.items.rows(seeds)
        if not (rows >= 0).any():
            raise UnknownItem(f"item {seeds[0]!r} is not in bundle {self.bundle.id}; check the id")
        unknown = [item_id for item_id, row in zip(seeds, rows, strict=True) if row < 0]
        return self._best(self.vectors[rows[rows >= 0]].mean(0), k, "similar", [*seeds, *exclude], unknown)

    def why_not(self, item_id: Id, **asked: Any) -> WhyNot:
        answer = self.recommend(**asked)
        if self.items.row(item_id) is None:
            return WhyNot(item_id, False, None, None, (Reason("unknown", f"there is no item {item_id!r}"),))
        ranks = [item.rank for item in answer.items if item.item_id == item_id]
        if ranks:
            return WhyNot(item_id, True, ranks[0], ranks[0])
        return WhyNot(item_id, False, len(answer.items) + 1, len(answer.items) + 1, (Reason("ranked", "too low"),))

    def _best(self, query: np.ndarray, k: int, strategy: Any, exclude: Sequence[Id], unknown: list[Id]) -> Answer:
        scores = self.vectors @ query
        order = np.argsort(-scores)
        left_out = set(self.items.rows([*exclude, *self.gone]))
        order = np.array([row for row in order if row not in left_out][:k], dtype=np.int64)
        found = zip(self.items.ids(order), scores[order].tolist(), strict=True)
        items = [
            Recommendation(item_id, score, rank, {"title": f"Item {item_id}", "genres": ["Drama", "War"]})
            for rank, (item_id, score) in enumerate(found, start=1)
        ]
        return Answer(self.bundle.id, strategy, items, unknown)


class StandInBrowse:
    """Looks at a stand-in's items; a text is found in titles, and the only attribute to tell apart by is genres."""

    def __init__(self, of: StandIn) -> None:
        self._of = of

    def search(self, text: str = "", *, limit: int = 10) -> list[Known]:
        ids = self._of.items.array.to_pylist()
        return [self._known(item_id) for item_id in ids if text in f"Item {item_id}"][:limit]

    def look_up(self, ids: Sequence[Id]) -> tuple[list[Known], list[Id]]:
        known = [item_id for item_id in ids if self._of.items.row(item_id) is not None]
        return [self._known(item_id) for item_id in known], [item_id for item_id in ids if item_id not in known]

    def attributes(self, *, values: int = 20) -> list[Declared]:
        count = len(self._of.items)
        return [
            Declared("title", "text", True, False),
            Declared("genres", "multi", True, True, 2, (("Drama", count), ("War", count))[:values]),
            Declared("year", "numeric", False, True, least=1990, most=2000.5),
        ]

    def map(self, *, limit: int = 50_000, attribute: str | None = None) -> ItemMap:
        if attribute not in (None, "genres"):
            raise FilterError(f"there is no attribute {attribute!r} to filter by; valid: genres")
        ids = self._of.items.array.to_pylist()[:limit]
        rows = np.arange(len(ids), dtype=np.int32)
        x, y = 7919 * rows % (MAP_SIDE + 1), 6007 * rows % (MAP_SIDE + 1)
        if attribute is None:
            return ItemMap(ids, x, y, (0.5, 0.25))
        return ItemMap(ids, x, y, (0.5, 0.25), ("Drama", "War"), rows % 3 - 1)

    def _known(self, item_id: Id) -> Known:
        return Known(item_id, {"title": f"Item {item_id}", "genres": ["Drama", "War"]}, item_id not in self._of.gone)


class StandInStore:
    """An online store that forgets when the process ends."""

    address = "nowhere"

    def __init__(self) -> None:
        self.events: dict[str, StoredEvent] = {}
        self.items: dict[str, LiveItem] = {}

    async def add_events(self, events: Sequence[StoredEvent]) -> list[bool]:
        return [self.events.setdefault(event.event_id, event) is event for event in events]

    async def events_of(self, user_id: str, limit: int) -> list[StoredEvent]:
        own = [event for event in self.events.values() if event.user_id == user_id]
        return sorted(own, key=lambda event: event.timestamp)[-limit:]

    async def put_item(self, item: LiveItem) -> None:
        self.items[item.item_id] = item

    async def items_changed(self, after: int) -> tuple[list[LiveItem], int]:
        return list(self.items.values()), len(self.items)

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        pass


def _checked(features: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in features.items():
        if name != "title":
            raise FeatureError(f"there is no feature {name!r}; valid: title")
        if not isinstance(value, str):
            raise FeatureError(f"feature 'title' is text: give text, got {value!r}")
    return dict(features)
