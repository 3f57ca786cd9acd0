"""What the service can be asked, as plain methods around a Recommender: no HTTP, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from recsys.live import FeatureError
from recsys.online.store import LiveItem, StoredEvent
from recsys.recommender import Answer, Event, Query, Recommender, RequestError, UnknownItem
from recsys.rules import RuleError, Rules

from .answers import Batch
from .load import Load
from .online import Online
from .pace import Pace
from .problems import Refusal, refusal_of
from .schemas import (
    BatchBody,
    EventsBody,
    ItemBody,
    Limits,
    RecommendBody,
    SimilarBody,
    SimilarQuery,
    UserQuery,
    WhyNotBody,
)

_T = TypeVar("_T")


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

    async def for_user(self, user_id: str, query: UserQuery) -> Answer:
        """The top k for a user the bundle knows, or of whom events tell; for others the popular items."""
        recommender = self._ready()
        since, without = await self._since(recommender, user_id)
        effort = self.load.effort()

        def work() -> Answer:
            return recommender.recommend(
                user_id=user_id,
                history=since,
                k=query.k,
                include_seen=query.include_seen,
                rules=self._rules,
                explain=query.explain,
                effort=effort,
            )

        kind = ("user", bool(since), bool(self._rules), query.explain)
        return _marked(await self._answered(work, kind), without)

    async def for_request(self, body: RecommendBody) -> Answer:
        """The top k for a user, a history, or both, with items left out, filters and rules."""
        recommender = self._ready()
        query, without = await self._query(recommender, body)
        kind = ("asked", len(query.history) >> 4, bool(query.filter), bool(query.rules), query.explain)
        return _marked(await self._answered(lambda: recommender.recommend(**_told(query)), kind), without)

    async def for_batch(self, body: BatchBody) -> Batch:
        """An answer to each of several requests, or the problem with it, in their order."""
        recommender = self._ready()
        asked = [await self._query(recommender, one) for one in body.requests]
        given = await self._answered(lambda: recommender.recommend_many([query for query, _ in asked]), None)
        return Batch(
            recommender.bundle.id,
            [
                _marked(one, without) if isinstance(one, Answer) else refusal_of(_meant(one), "")
                for one, (_, without) in zip(given, asked, strict=True)
            ],
        )

    async def similar_to(self, item_id: str, query: SimilarQuery) -> Answer:
        """The k items nearest to an item."""
        recommender = self._ready()
        return await self._answered(
            lambda: recommender.similar([item_id], k=query.k, rules=self._rules), ("similar", bool(self._rules))
        )

    async def similar_to_these(self, body: SimilarBody) -> Answer:
        """The k items nearest to several, or to one that does not exist, by its features."""
        recommender = self._ready()
        rules = body.rules(self._rules)

        def work() -> Answer:
            return recommender.similar(
                body.items, features=body.features, k=body.k, exclude=body.exclude, filter=body.filter, rules=rules
            )

        kind = ("similar", body.features is not None, bool(body.filter), bool(rules))
        return await self._answered(work, kind)

    async def why_not(self, body: WhyNotBody) -> dict[str, Any]:
        """Everything that keeps an item out of the answer to a request."""
        recommender = self._ready()
        query, _ = await self._query(recommender, body)
        told = _told(query, without=("explain", "effort"))
        said = await self._answered(lambda: recommender.why_not(body.item_id, **told), None)
        return {"bundle": recommender.bundle.id} | dataclasses.asdict(said)

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
        with _refused():
            if body.features is not None:
                features = recommender.live.checked(body.features)
            elif recommender.live.row(item_id) is None:
                raise UnknownItem(f"there is no item {item_id!r} in bundle {recommender.bundle.id}; send its features")
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
            history=[*since, *(Event(entry.item_id, entry.timestamp, entry.event) for entry in body.history)],
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

    async def _answered(self, work: Callable[[], _T], kind: Hashable | None) -> _T:
        """Does work of a kind that is known to be quick at once, and all other, such as of no kind, on a thread."""
        with _refused():
            if kind is None:
                return await self._on_thread(work)
            if self._pace.is_quick(kind):
                return self._pace.timed(kind, work)
            return await self._on_thread(lambda: self._pace.timed(kind, work))

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        with self.load.waiting():
            try:
                async with asyncio.timeout(self.timeout_s):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, work)
            except TimeoutError:
                raise Refusal(
                    503,
                    f"no answer within {self.timeout_s:g} s; try again, or send a shorter history",
                    headers={"Retry-After": "1"},
                ) from None


def _told(query: Query, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A query as the arguments of a method that takes them one by one."""
    return {each.name: getattr(query, each.name) for each in dataclasses.fields(query) if each.name not in without}


def _marked(answer: Answer, without: tuple[str, ...]) -> Answer:
    return dataclasses.replace(answer, degraded=(*answer.degraded, *without)) if without else answer


async def _at_once() -> bool:
    return True


def _now() -> int:
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (LookupError, ValueError) as error:
        meant = _meant(error)
        if meant is error:
            raise
        raise meant from None


def _meant(error: Exception) -> Exception:
    """What a caller is to be told of an error that is theirs; any other as it is."""
    if isinstance(error, UnknownItem):
        return Refusal(404, str(error))
    if isinstance(error, (RequestError, RuleError, FeatureError)):
        return Refusal(422, str(error))
    return error
