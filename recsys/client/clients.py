"""The two clients: one blocks, one is awaited; what they ask, and how patiently, is the same code."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from . import calls
from .answers import (
    Accepted,
    Answer,
    Attribute,
    Id,
    ItemMap,
    ItemState,
    KnownItem,
    LiveBundle,
    RecommendationError,
    Unavailable,
    WhyNot,
)
from .attempts import Lost, Reply, Send, attempts
from .calls import Call, Query, SimilarQuery, UserEvent
from .connection import Settings, busy, late, lost, reply_of

T = TypeVar("T")


class Client:
    """A client that blocks. Any number of threads may share one; make it once, not for each question.

    Args:
        address: where the service is, such as https://recommend.example.com, with whatever path stands before /v1.
        key: the key that the service asks for; sent with every request, never shown.
        timeout_s: how long one try may wait: to connect, for the answer to begin, and for it to end.
        retries: how often a call that failed on the way, or met a service without room, is tried again.
        deadline_s: how long a call may take with its retries and the waits between; None lets each try take timeout_s.
        connections: most connections at once; further calls wait for one.
        transport: in place of httpx's own, for an application in this process, or one's own TLS.

    Raises:
        ValueError: one of them cannot be. Every method raises RecommendationError, or Unavailable, which is one.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        timeout_s: float = 2.0,
        retries: int = 2,
        deadline_s: float | None = None,
        connections: int = 100,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settings = Settings(
            address,
            key=key,
            timeout_s=timeout_s,
            retries=retries,
            deadline_s=deadline_s,
            connections=connections,
            transport=transport,
        )
        self._http = httpx.Client(**self._settings.http)
        # Threads wait here, not in httpx's pool: where they do, it can close a connection that one of them works with.
        self._free = threading.BoundedSemaphore(connections)

    def recommend(self, **query: Unpack[Query]) -> Answer:
        """The top k for a user, a history, both, or neither; see `Query` for what may be said."""
        return self._call(calls.recommend(query))

    def recommend_many(self, queries: Sequence[Query]) -> list[Answer | RecommendationError]:
        """The answers of several queries in their order; one that was refused has its error in its place."""
        return self._call(calls.recommend_many(queries))

    def similar(
        self,
        items: Id | Sequence[Id] = (),
        *,
        features: Mapping[str, Any] | None = None,
        **query: Unpack[SimilarQuery],
    ) -> Answer:
        """What is like one item, several together, or one that is only described by its features."""
        return self._call(calls.similar(items, features, query))

    def why_not(self, item_id: Id, **query: Unpack[Query]) -> WhyNot:
        """Where an item stands in what `recommend` would answer, and what keeps it out."""
        return self._call(calls.why_not(item_id, query))

    def send_events(self, events: Sequence[UserEvent]) -> Accepted:
        """Tells what users did; safe to repeat with the same objects, since each has its id."""
        return self._call(calls.send_events(events))

    def put_item(
        self, item_id: Id, *, features: Mapping[str, Any] | None = None, available: bool | None = None
    ) -> ItemState:
        """Adds an item or says anew what it is; features None leaves them as they are."""
        return self._call(calls.put_item(item_id, features, available))

    def delete_item(self, item_id: Id) -> ItemState:
        """Takes an item out of all answers."""
        return self._call(calls.delete_item(item_id))

    def search_items(self, text: str = "", *, limit: int | None = None) -> list[KnownItem]:
        """Items that may be recommended by their id or words, best first; the most popular ones for an empty text."""
        return self._call(calls.search_items(text, limit))

    def look_up(self, items: Sequence[Id]) -> list[KnownItem]:
        """What is shown of items, in their order; those that nobody knows are left out."""
        return self._call(calls.look_up(items))

    def attributes(self, *, values: int | None = None) -> list[Attribute]:
        """What is declared of items, with up to so many common values of each."""
        return self._call(calls.attributes(values))

    def item_map(self, *, limit: int | None = None, attribute: str | None = None) -> ItemMap:
        """Where the most popular items stand on a plane, and which value of an attribute of words each has."""
        return self._call(calls.item_map(limit, attribute))

    def bundle(self) -> LiveBundle:
        """The bundle in use."""
        return self._call(calls.bundle())

    def ready(self) -> bool:
        """Whether recommendations can be asked for; asks once, and takes no answer for no."""
        try:
            return self._call(calls.ready())
        except Unavailable:
            return False

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, call: Call[T]) -> T:
        steps = attempts(call, self._settings.patience, self._settings.budget)
        outcome: Reply | Lost | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(step, Send):
                outcome = self._sent(call, step)
            else:
                time.sleep(step.seconds)
                outcome = None

    def _sent(self, call: Call[T], send: Send) -> Reply | Lost:
        until = time.monotonic() + send.timeout_s
        if not self._free.acquire(timeout=send.timeout_s):
            return busy()
        try:
            with self._http.stream(**self._settings.request(call, send)) as response:
                parts = []
                for part in response.iter_bytes():  # httpx's time-out is for each piece: one that drips would have none
                    parts.append(part)
                    if time.monotonic() > until:
                        return late(send)
                return reply_of(response, parts)
        except httpx.RequestError as error:
            return lost(error, send)
        finally:
            self._free.release()


class AsyncClient:
    """A client that is awaited, on asyncio, and else as `Client`. Make it once in each event loop, not a question."""

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        timeout_s: float = 2.0,
        retries: int = 2,
        deadline_s: float | None = None,
        connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = Settings(
            address,
            key=key,
            timeout_s=timeout_s,
            retries=retries,
            deadline_s=deadline_s,
            connections=connections,
            transport=transport,
        )
        self._http = httpx.AsyncClient(**self._settings.http)

    async def recommend(self, **query: Unpack[Query]) -> Answer:
        """The top k for a user, a history, both, or neither; see `Query` for what may be said."""
        return await self._call(calls.recommend(query))

    async def recommend_many(self, queries: Sequence[Query]) -> list[Answer | RecommendationError]:
        """The answers of several queries in their order; one that was refused has its error in its place."""
        return await self._call(calls.recommend_many(queries))

    async def similar(
        self,
        items: Id | Sequence[Id] = (),
        *,
        features: Mapping[str, Any] | None = None,
        **query: Unpack[SimilarQuery],
    ) -> Answer:
        """What is like one item, several together, or one that is only described by its features."""
        return await self._call(calls.similar(items, features, query))

    async def why_not(self, item_id: Id, **query: Unpack[Query]) -> WhyNot:
        """Where an item stands in what `recommend` would answer, and what keeps it out."""
        return await self._call(calls.why_not(item_id, query))

    async def send_events(self, events: Sequence[UserEvent]) -> Accepted:
        """Tells what users did; safe to repeat with the same objects, since each has its id."""
        return await self._call(calls.send_events(events))

    async def put_item(
        self, item_id: Id, *, features: Mapping[str, Any] | None = None, available: bool | None = None
    ) -> ItemState:
        """Adds an item or says anew what it is; features None leaves them as they are."""
        return await self._call(calls.put_item(item_id, features, available))

    async def delete_item(self, item_id: Id) -> ItemState:
        """Takes an item out of all answers."""
        return await self._call(calls.delete_item(item_id))

    async def search_items(self, text: str = "", *, limit: int | None = None) -> list[KnownItem]:
        """Items that may be recommended by their id or words, best first; the most popular ones for an empty text."""
        return await self._call(calls.search_items(text, limit))

    async def look_up(self, items: Sequence[Id]) -> list[KnownItem]:
        """What is shown of items, in their order; those that nobody knows are left out."""
        return await self._call(calls.look_up(items))

    async def attributes(self, *, values: int | None = None) -> list[Attribute]:
        """What is declared of items, with up to so many common values of each."""
        return await self._call(calls.attributes(values))

    async def item_map(self, *, limit: int | None = None, attribute: str | None = None) -> ItemMap:
        """Where the most popular items stand on a plane, and which value of an attribute of words each has."""
        return await self._call(calls.item_map(limit, attribute))

    async def bundle(self) -> LiveBundle:
        """The bundle in use."""
        return await self._call(calls.bundle())

    async def ready(self) -> bool:
        """Whether recommendations can be asked for; asks once, and takes no answer for no."""
        try:
            return await self._call(calls.ready())
        except Unavailable:
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, call: Call[T]) -> T:
        steps = attempts(call, self._settings.patience, self._settings.budget)
        outcome: Reply | Lost | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            if isinstance(step, Send):
                outcome = await self._sent(call, step)
            else:
                await asyncio.sleep(step.seconds)
                outcome = None

    async def _sent(self, call: Call[T], send: Send) -> Reply | Lost:
        try:
            async with (
                asyncio.timeout(send.timeout_s),
                self._http.stream(**self._settings.request(call, send)) as response,
            ):
                return reply_of(response, [part async for part in response.aiter_bytes()])
        except TimeoutError:
            return late(send)
        except httpx.RequestError as error:
            return lost(error, send)
