"""How much a replica has to do, and what it leaves out before it turns anybody away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from recsys.recommender import Effort

from .problems import Refusal
from .settings import Shed

_EFFORTS = (Effort.FULL, Effort.FEWER, Effort.PREFIX, Effort.POPULAR)
_LOOKED_S = 0.05  # between two looks at the event loop's delay
_FORGETS = 0.8  # of the delay, a look: half after a sixth of a second


class Load:
    """Counts what waits, watches the event loop's delay, and says how much effort the next request may take.

    Args:
        max_waiting: how many slow requests may be under way or waiting before more are turned away.
        shed: when to do with less.
    """

    def __init__(self, max_waiting: int = 128, shed: Shed | None = None) -> None:
        self._max_waiting = max_waiting
        self._shed = shed or Shed()
        self._steps = (self._shed.fewer, self._shed.cheaper, self._shed.popular)
        self._waiting = 0
        self.delay_s = 0.0

    def effort(self) -> Effort:
        """What the next request may cost.

        Raises:
            Refusal: 503, the event loop is later than it may be.
        """
        share = max(self._waiting / self._max_waiting, self.delay_s / self._shed.delay_s)
        if share < self._steps[0]:
            return Effort.FULL
        if self.delay_s > self._shed.delay_s:
            raise Refusal(503, f"requests are {self.delay_s:.1f} s late; try again", headers={"Retry-After": "1"})
        return _EFFORTS[sum(share >= step for step in self._steps)]

    @property
    def is_full(self) -> bool:
        """Whether as many slow requests wait as may."""
        return self._waiting >= self._max_waiting

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts a slow request, from when it begins to wait to its end.

        Raises:
            Refusal: 503, too many wait already.
        """
        if self.is_full:
            raise Refusal(503, f"{self._waiting} slow requests are waiting; try again", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def watch(self) -> None:
        """Looks at the event loop's delay for as long as it is not cancelled."""
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(_LOOKED_S)
            late = time.perf_counter() - asleep - _LOOKED_S
            self.delay_s = max(late, self.delay_s * _FORGETS)
