"""The online store as requests meet it: while it is away, they go on without it and do not each wait for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from recsys.online.store import LiveItem, OnlineStore, OnlineStoreError, StoredEvent

from .problems import Refusal

_T = TypeVar("_T")
Observe = Callable[[str, float, bool], None]  # operation, seconds, whether it failed

log = logging.getLogger(__name__)


class Online:
    """Reads that may fail, and writes that are refused when they cannot be kept.

    Args:
        store: what keeps events and items.
        pause_s: how long nobody asks for events after the store did not answer.
        observe: told of every operation.
    """

    def __init__(self, store: OnlineStore, *, pause_s: float = 1.0, observe: Observe = lambda *_: None) -> None:
        self.store = store
        self._pause_s = pause_s
        self._observe = observe
        self._away_until = 0.0
        self._failing = False

    async def events_of(self, user_id: str, limit: int) -> list[StoredEvent] | None:
        """The newest events of a user, oldest first; None while the store is away."""
        if self._away_until and time.monotonic() < self._away_until:
            return None
        try:
            events = await self._timed("events_of", self.store.events_of(user_id, limit))
        except OnlineStoreError:
            self._away_until = time.monotonic() + self._pause_s
            return None
        self._away_until = 0.0
        return events

    async def add_events(self, events: Sequence[StoredEvent]) -> list[bool]:
        """Keeps events; which of them were new.

        Raises:
            Refusal: 503, the store cannot keep them now; 422, it never could.
        """
        return await self._kept("add_events", self.store.add_events(events))

    async def put_item(self, item: LiveItem) -> None:
        """Keeps what is new of an item.

        Raises:
            Refusal: 503, the store cannot keep it now; 422, it never could.
        """
        await self._kept("put_item", self.store.put_item(item))

    async def _kept(self, operation: str, work: Awaitable[_T]) -> _T:
        try:
            return await self._timed(operation, work)
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        except OnlineStoreError:
            raise Refusal(
                503, "what you sent could not be kept, and was not; send it again", headers={"Retry-After": "1"}
            ) from None

    async def _timed(self, operation: str, work: Awaitable[_T]) -> _T:
        began, failed = time.perf_counter(), True
        try:
            result = await work
            failed = False
        except OnlineStoreError as error:
            if not self._failing:  # once, not once a request
                log.error("requests go on without the online store: %s", error)
            self._failing = True
            raise
        finally:
            self._observe(operation, time.perf_counter() - began, failed)
        if self._failing:
            log.warning("%s answers again", self.store.address)
        self._failing = False
        return result
