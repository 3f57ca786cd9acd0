"""What the service can be asked, as plain methods around a Recommender: no HTTP, no Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import orjson

from recsys.attributes import FilterError
from recsys.browse import ItemMap, Known
from recsys.live import FeatureError
from recsys.online.store import LiveItem, StoredEvent
from recsys.recommender import Answer, Effort, Event, Query, Recommender, RequestError, UnknownItem
from recsys.rules import RuleError, Rules

from .answers import Batch
from .load import Load
from .online import Online
from .pace import Pace
from .problems import Refusal
from .schemas import (
    AttributesQuery,
    BatchBody,
    EventsBody,
    ItemBody,
    ItemsQuery,
    Limits,
    LookUpBody,
    MapQuery,
    RecommendBody,
    SimilarBody,
    SimilarQuery,
    UserQuery,
    WhyNotBody,
)

_T = TypeVar("_T")
_LOOKING = 16  # people who look at the catalogue wait behind each other, not before recommendations
_THEIRS = (UnknownItem, RequestError, RuleError, FeatureError)  # mistakes that a caller can mend


class Service:
    """Answers requests, quick ones at once and slow ones on a thread, so that one never makes the others wait.

    Args:
        limits: how much one request may ask for; a caller's own may be less.
        recommender: what answers; None until it is loaded. Replace it by assignment: each request reads it once.
        online: what happened since bundles were sealed; None where nothing is kept.
        rules: how lists are put together where a request says nothing.
        load: how much is under way, and what is done about it.
        threads: how many slow requests are worked on at a time.
        timeout_s: how long a slow request may take, its wait included.
    """

    def __init__(
        self,
        limits: Limits,
        recommender: Recommender | None = None,
        *,
        online: Online | None = None,
        rules: Rules | None = None,
        load: Load | None = None,
        threads: int = 1,
        timeout_s: float = 10.0,
    ) -> None:
        self.limits = limits
        self.recommender = recommender
        self.online = online
        self.load = load or Load()
        self.timeout_s = timeout_s
        self.standing: Callable[[], dict[str, Any]] = dict  # how this replica stands to what it follows
        self.caught_up: Callable[[], Awaitable[bool]] = _at_once  # waits until what was just kept is in use here
        self._rules = rules or Rules()
        self._pace = Pace()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="recommend")
        self._looking = Load(_LOOKING)
        self._look_threads = ThreadPoolExecutor(1, thread_name_prefix="look")

    async def for_user(self, user_id: str, query: UserQuery) -> Answer:
        """The top k for a user the bundle knows, or of whom events tell; for others the popular items."""
        recommender = self._ready()
        since, without = await self._since(recommender, user_id)
        asked = Query(
            user_id=user_id,
            history=since,
            k=query.k,
            include_seen=query.include_seen,
            rules=self._rules,
            explain=query.explain,
            effort=self.load.effort(),
        )
        kind = ("user", bool(since), query.explain)
        return _marked(await self._answered(partial(recommender.answer, asked), kind, asked.effort), without)

    async def for_request(self, body: RecommendBody) -> Answer:
        """The top k for a user, a history, or both, with items left out, filters and rules."""
        recommender = self._ready()
        asked, without = await self._query(recommender, body)
        kind = ("asked", len(asked.history) >> 4, bool(asked.filter), bool(asked.rules), asked.explain)
        return _marked(await self._answered(partial(recommender.answer, asked), kind, asked.effort), without)

    async def for_batch(self, body: BatchBody) -> Batch:
        """An answer to each of several requests, or the problem with it, in their order."""
        recommender = self._ready()
        asked = [await self._query(recommender, one) for one in body.requests]
        given = await self._on_thread(partial(recommender.recommend_many, [query for query, _ in asked]))
        return Batch(
            recommender.bundle.id,
            [
                _marked(one, without) if isinstance(one, Answer) else _refusal(one)
                for one, (_, without) in zip(given, asked, strict=True)
            ],
        )

    async def similar_to(self, item_id: str, query: SimilarQuery) -> Answer:
        """The k items nearest to an item."""
        recommender, effort = self._ready(), self.load.effort()
        work = partial(recommender.similar, [item_id], k=query.k, rules=self._rules, effort=effort)
        return await self._answered(work, ("similar",), effort)

    async def similar_to_these(self, body: SimilarBody) -> Answer:
        """The k items nearest to several, or to one that does not exist, by its features."""
        recommender, effort = self._ready(), self.load.effort()
        rules = body.rules(self._rules)
        work = partial(
            recommender.similar,
            body.items,
            features=body.features,
            k=body.k,
            exclude=body.exclude,
            filter=body.filter,
            rules=rules,
            effort=effort,
        )
        kind = ("similar", body.features is not None, bool(body.filter), bool(rules))
        return await self._answered(work, kind, effort)

    async def why_not(self, body: WhyNotBody) -> dict[str, Any]:
        """Everything that keeps an item out of the answer to a request."""
        recommender = self._ready()
        asked, _ = await self._query(recommender, body)
        work = partial(
            recommender.why_not,
            body.item_id,
            user_id=asked.user_id,
            history=asked.history,
            k=asked.k,
            exclude=asked.exclude,
            include_seen=asked.include_seen,
            filter=asked.filter,
            rules=asked.rules,
        )
        return {"bundle": recommender.bundle.id} | dataclasses.asdict(await self._on_thread(work))

    async def search_items(self, query: ItemsQuery) -> dict[str, Any]:
        """The items that may be recommended in whose id or shown words a text occurs, best first."""
        recommender = self._ready()
        found = await self._looked(partial(recommender.browse.search, query.q, limit=query.limit))
        return {"bundle": recommender.bundle.id, "items": _known(found)}

    async def look_up(self, body: LookUpBody) -> dict[str, Any]:
        """What answers show of items, by their ids; those that nobody knows are named."""
        recommender = self._ready()
        found, unknown = await self._looked(partial(recommender.browse.look_up, body.items))
        said = {"bundle": recommender.bundle.id, "items": _known(found)}
        return said | {"unknown_items": unknown} if unknown else said

    async def attributes(self, query: AttributesQuery) -> dict[str, Any]:
        """What is declared of items: what answers show and filters may name, with common values and ranges."""
        recommender = self._ready()
        declared = await self._looked(partial(recommender.browse.attributes, values=query.values))
        said = []
        for one in declared:
            told = {"name": one.name, "kind": one.kind, "shown": one.shown, "filterable": one.filterable}
            if one.distinct is not None:
                told["distinct"] = one.distinct
                told["values"] = [{"value": value, "items": items} for value, items in one.values]
            if one.least is not None:
                told |= {"least": one.least, "most": one.most}
            said.append(told)
        return {"bundle": recommender.bundle.id, "attributes": said}

    async def item_map(self, query: MapQuery) -> dict[str, Any]:
        """Where items stand on the plane that shows most of how their vectors differ, for a picture."""
        recommender = self._ready()

        def drawn() -> dict[str, Any]:
            return _drawn(recommender.browse.map(limit=query.limit, attribute=query.attribute))

        try:
            return {"bundle": recommender.bundle.id} | await self._looked(drawn)
        except FilterError as error:
            raise Refusal(404, str(error)) from None

    async def take_events(self, body: EventsBody) -> dict[str, int]:
        """Keeps events; they count in the next request of their user."""
        now = _now()
        events = [
            StoredEvent(
                str(one.event_id),
                str(one.user_id),
                str(one.item_id),
                now if one.timestamp is None else one.timestamp,
                one.event,
            )
            for one in body.events
        ]
        new = sum(await self._kept().add_events(events))
        return {"accepted": new, "duplicates": len(events) - new}

    async def put_item(self, item_id: str, body: ItemBody) -> dict[str, Any]:
        """Makes an item recommendable with these features, or says whether a known one is available."""
        recommender = self._ready()
        features = None
        if body.features is not None:
            try:
                features = recommender.live.checked(body.features)
            except FeatureError as error:
                raise _refusal(error) from None
        elif recommender.live.row(item_id) is None:
            raise Refusal(404, f"there is no item {item_id!r} in bundle {recommender.bundle.id}; send its features")
        await self._kept().put_item(LiveItem(item_id, features, body.available, _now()))
        await self.caught_up()
        return {"item_id": item_id, "available": body.available}

    async def delete_item(self, item_id: str) -> dict[str, Any]:
        """Takes an item out, until it is put again."""
        self._ready()
        await self._kept().put_item(LiveItem(item_id, None, False, _now()))
        await self.caught_up()
        return {"item_id": item_id, "available": False}

    async def about_bundle(self) -> dict[str, Any]:
        """What the bundle in use says of itself, and how this replica stands to what it follows."""
        bundle = self._ready().bundle
        return {"bundle": bundle.id, "about": bundle.about, "standing": self.standing()}

    async def up(self) -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Whether a bundle is loaded, so that recommendations can be asked for."""
        self._ready()
        return {"status": "ok"}

    def close(self) -> None:
        """Lets slow requests under way finish and takes no more."""
        self._threads.shutdown(cancel_futures=True)
        self._look_threads.shutdown(cancel_futures=True)

    def _ready(self) -> Recommender:
        recommender = self.recommender
        if recommender is None:
            raise Refusal(503, "no bundle is loaded yet; try again in a few seconds", headers={"Retry-After": "2"})
        return recommender

    def _kept(self) -> Online:
        if self.online is None:
            raise Refusal(404, "this service keeps neither events nor live items; start it with an online store")
        return self.online

    async def _query(self, recommender: Recommender, body: RecommendBody) -> tuple[Query, tuple[str, ...]]:
        since, without = await self._since(recommender, body.user_id)
        query = Query(
            user_id=body.user_id,
            # Both tell what came after the bundle; what the request brings is the newest.
            history=[*since, *body.history],
            k=body.k,
            exclude=body.exclude,
            include_seen=body.include_seen,
            filter=body.filter,
            rules=body.rules(self._rules),
            explain=body.explain,
            effort=self.load.effort(),
        )
        return query, without

    async def _since(self, recommender: Recommender, user_id: str | int | None) -> tuple[list[Event], tuple[str, ...]]:
        """What a user did since the bundle was sealed, and what had to be done without to find out."""
        if user_id is None or self.online is None:
            return [], ()
        events = await self.online.events_of(str(user_id), recommender.bundle.towers.architecture.max_length)
        if events is None:
            return [], ("events",)
        return (recommender.fresh(user_id, events) if events else []), ()

    async def _answered(self, work: Callable[[], _T], kind: Hashable, effort: Effort) -> _T:
        """Does at once what was quick lately, and everything else on a thread.

        What is quick at full effort is done at once however much waits. What is quick only now that less of it is done
        does not wait behind what is slow, but is turned away with it: else a replica that holds as much as it may would
        go on taking more.
        """
        pace = self._pace
        done = kind if effort is Effort.FULL else (kind, effort)
        if not pace.is_quick(kind) and (self.load.is_full or not pace.is_quick(done)):
            return await self._on_thread(partial(pace.timed, done, work))
        try:
            return pace.timed(done, work)
        except _THEIRS as error:
            raise _refusal(error) from None

    async def _looked(self, work: Callable[[], _T]) -> _T:
        """Does something for who looks at the catalogue, on a thread that recommendations do not wait for."""
        return await self._on_thread(work, self._look_threads, self._looking)

    async def _on_thread(
        self, work: Callable[[], _T], threads: ThreadPoolExecutor | None = None, load: Load | None = None
    ) -> _T:
        with (load or self.load).waiting():
            try:
                async with asyncio.timeout(self.timeout_s):
                    return await asyncio.get_running_loop().run_in_executor(threads or self._threads, work)
            except TimeoutError:
                raise Refusal(
                    503,
                    f"no answer within {self.timeout_s:g} s; try again, or send a shorter history",
                    headers={"Retry-After": "1"},
                ) from None
            except _THEIRS as error:
                raise _refusal(error) from None


def _known(items: Sequence[Known]) -> list[dict[str, Any]]:
    return [{"item_id": one.item_id, "attributes": one.attributes, "available": one.available} for one in items]


def _drawn(drawn: ItemMap) -> dict[str, Any]:
    """A map with its long lists as JSON already, so that the event loop need not write them."""
    said: dict[str, Any] = {"explained": drawn.explained}
    long: dict[str, Any] = {"items": drawn.items, "x": drawn.x, "y": drawn.y}
    if drawn.codes is not None:
        said["values"], long["codes"] = drawn.values, drawn.codes
    return said | {
        name: orjson.Fragment(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)) for name, values in long.items()
    }


def _marked(answer: Answer, without: tuple[str, ...]) -> Answer:
    return dataclasses.replace(answer, degraded=(*answer.degraded, *without)) if without else answer


async def _at_once() -> bool:
    return True


def _now() -> int:
    return time.time_ns() // 1_000_000


def _refusal(error: Exception) -> Refusal:
    """What a caller is told of a mistake of theirs."""
    return Refusal(404 if isinstance(error, UnknownItem) else 422, str(error))
