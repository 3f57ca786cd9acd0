"""Which work is quick enough to be done at once, on the event loop: as measured, not as guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

AT_ONCE_S = 0.002  # others wait for what is done at once; handing it to a thread costs some tenths of a millisecond
_NEWEST = 0.1  # weight of the newest measurement
_MOST = 4.0  # times the limit that one measurement counts at most: it may have been something else's doing

_T = TypeVar("_T")


class Pace:
    """Keeps how long each kind of work takes lately.

    A history of twenty takes a third of a millisecond, and twice that on a thread whose core was asleep; a search of
    millions of items takes ten. So the same request is best answered at once by one service and on a thread by another.
    """

    def __init__(self, at_once_s: float = AT_ONCE_S) -> None:
        self._at_once_s = at_once_s
        self._seconds: dict[Hashable, float] = {}

    def is_quick(self, kind: Hashable) -> bool:
        """Whether this kind of work is to be done at once; not if it has never been done."""
        return self._seconds.get(kind, self._at_once_s) < self._at_once_s

    def timed(self, kind: Hashable, work: Callable[[], _T]) -> _T:
        """Does some work, on whatever thread, and notes how long it took."""
        began = time.perf_counter()
        try:
            return work()
        finally:
            seconds = min(time.perf_counter() - began, _MOST * self._at_once_s)
            before = self._seconds.get(kind, seconds)
            self._seconds[kind] = before + _NEWEST * (seconds - before)
