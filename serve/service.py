"""What the service can be asked, as plain methods around a Recommender: no HTTP, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recsys.recommender import Answer, Event, Recommender, RequestError, UnknownItem

from .problems import Refusal
from .schemas import Limits, RecommendBody, SimilarQuery, UserQuery


class Service:
    """Answers requests, quick ones at once and slow ones on a thread, so that one never makes the others wait.

    Args:
        limits: how much one request may ask for.
        recommender: what answers; None until it is loaded. Replace it by assignment: each request reads it once.
        threads: how many slow requests are worked on at a time.
        max_waiting: how many slow requests may be under way or waiting before more are turned away.
        timeout_s: how long a slow request may take, its wait included.
    """

    def __init__(
        self,
        limits: Limits,
        recommender: Recommender | None = None,
        *,
        threads: int = 1,
        max_waiting: int = 128,
        timeout_s: float = 10.0,
    ) -> None:
        self.limits = limits
        self.recommender = recommender
        self.timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._waiting = 0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="recommend")

    async def for_user(self, user_id: str, query: UserQuery) -> Answer:
        """The top k for a user the bundle knows; for others the popular items."""
        recommender = self._ready()
        with _refused():
            return recommender.recommend(user_id=user_id, k=query.k, include_seen=query.include_seen)

    async def for_request(self, body: RecommendBody) -> Answer:
        """The top k for a user, a history, or both, with items left out and filters."""
        recommender = self._ready()

        def work() -> Answer:
            return recommender.recommend(
                user_id=body.user_id,
                history=[Event(entry.item_id, entry.timestamp, entry.event) for entry in body.history],
                k=body.k,
                exclude=body.exclude,
                include_seen=body.include_seen,
                filter=body.filter,
            )

        with _refused():
            # A history runs the user tower and a filter scans the catalogue: milliseconds, so not on the event loop.
            return await self._on_thread(work) if body.history or body.filter else work()

    async def similar_to(self, item_id: str, query: SimilarQuery) -> Answer:
        """The k items nearest to an item."""
        recommender = self._ready()
        with _refused():
            return recommender.similar(item_id, k=query.k)

    async def about_bundle(self) -> dict[str, Any]:
        """What the bundle in use says of itself."""
        bundle = self._ready().bundle
        return {"bundle": bundle.id, "about": bundle.about}

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

    async def _on_thread(self, work: Callable[[], Answer]) -> Answer:
        if self._waiting >= self._max_waiting:
            raise Refusal(503, f"{self._waiting} slow requests are waiting; try again", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise Refusal(
                503,
                f"no answer within {self.timeout_s:g} s; try again, or send a shorter history",
                headers={"Retry-After": "1"},
            ) from None
        finally:
            self._waiting -= 1


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except UnknownItem as error:
        raise Refusal(404, str(error)) from None
    except RequestError as error:
        raise Refusal(422, str(error)) from None
