"""The live follower: what was said of items anywhere is taken in by every replica, several times a second."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .swap import Current

if TYPE_CHECKING:
    from recsys.online.store import OnlineStore

INTERVAL_S = 0.25
MOST_INTERVALS = 10  # between two questions to a store that does not answer
TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Following:
    """How a replica stands to the online store: the number of the newest change taken in, and what fails, since when.

    `failing_since` is milliseconds since 1970; it and `error` are None if all is well.
    """

    sequence: int = 0
    error: str | None = None
    failing_since: int | None = None


class Follower:
    """Asks an online store what changed, and tells `Current` of it. Its methods belong to one event loop.

    Args:
        store: where changes to items are kept.
        current: is told of them, on a thread of the follower's own.
        interval_s: between two questions.
    """

    def __init__(self, store: OnlineStore, current: Current, *, interval_s: float = INTERVAL_S) -> None:
        self._store = store
        self._current = current
        self._interval_s = interval_s
        self._thread = ThreadPoolExecutor(1, "follow-items")
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[bool]] = []
        self._following: asyncio.Task[None] | None = None
        self.standing = Following()

    async def first(self) -> None:
        """Takes in all that was said so far, so that the first bundle already knows it.

        A store that does not answer is reported and asked again later: a replica without it answers better than none.
        """
        await self._round()

    def start(self) -> None:
        """Begins to follow."""
        self._following = asyncio.get_running_loop().create_task(self._run(), name="follow-items")

    async def caught_up(self, timeout_s: float = 1.0) -> bool:
        """Waits until this replica answers with all that the store held when this was called; whether it does.

        Who has just written to the store thereby reads it back. The store is asked at once, and once for all who wait.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._asked.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await done
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Follows no longer; the store is not closed."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for waiting in self._waiting:
            waiting.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        wait_s = self._interval_s
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            wait_s = self._interval_s if await self._round() else min(2 * wait_s, MOST_INTERVALS * self._interval_s)

    async def _round(self) -> bool:
        """Takes in what is new; whether the store answered."""
        waiting, self._waiting = self._waiting, []  # those who come from now on may have written after the store said
        try:
            async with asyncio.timeout(TIMEOUT_S):
                items, newest = await self._store.items_changed(self.standing.sequence)
            if newest < self.standing.sequence:
                # What the lost store said stays: what was taken off sale must not come back by an accident.
                log.warning("%s has lost what it kept, and counts from %d again", self._store.address, newest)
            if items:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._current.tell, items)
        except Exception as error:  # whatever fails in the store or with an item, following goes on
            if self.standing.error is None:
                log.error("changes of items are not followed (%s)", error)
            since = self.standing.failing_since or time.time_ns() // 1_000_000
            self.standing = Following(self.standing.sequence, str(error) or type(error).__name__, since)
            good = False
        else:
            if self.standing.error is not None:
                log.info("changes of items are followed again")
            self.standing = Following(newest)
            good = True
        for future in waiting:
            if not future.done():
                future.set_result(good)
        return good
