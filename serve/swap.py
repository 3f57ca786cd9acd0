"""Hot swap: what a replica answers from follows its registry, while it answers.

Two bring news, each from a thread of its own: the watcher bundles, the follower what was said of items since. `Current`
is the one place that puts both together, so that neither undoes what the other brought meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recsys.artifacts import ArtifactError
from recsys.registry import Registry

if TYPE_CHECKING:
    from recsys.online.store import LiveItem
    from recsys.recommender import Recommender

MOST_INTERVALS = 10  # between two looks at a registry that does not answer
MOST_RETRY_S = 600.0  # between two attempts at a bundle that does not open

log = logging.getLogger(__name__)


class Current:
    """What answers now: the newest bundle, with everything that was said of items since bundles were sealed.

    Args:
        use: is given each Recommender that is to answer from now on, one after the other, from whichever thread brought
            the news; see `on_loop`.
    """

    def __init__(self, use: Callable[[Recommender], None]) -> None:
        self._use = use
        self._changing = threading.Lock()
        self._recommender: Recommender | None = None
        self._items: dict[str, LiveItem] = {}

    @property
    def recommender(self) -> Recommender | None:
        """What answers now; None before the first bundle."""
        return self._recommender

    def put(self, recommender: Recommender) -> None:
        """Answers from another bundle from now on; what was said of items is carried over before it is used."""
        with self._changing:
            self._become(recommender)

    def tell(self, items: Sequence[LiveItem]) -> None:
        """Takes in what was said of items, the newest word on each; in use when this returns."""
        with self._changing:
            self._items.update((item.item_id, item) for item in items)
            if self._recommender is not None and items:
                self._become(self._recommender)

    def _become(self, recommender: Recommender) -> None:
        if self._items:
            recommender = _with_live(recommender, list(self._items.values()))
        self._recommender = recommender
        self._use(recommender)


def _with_live(recommender: Recommender, items: list[LiveItem]) -> Recommender:
    """A Recommender that knows these items, but for those that its bundle cannot take: one must not keep out others."""
    try:
        return recommender.with_live(items)
    except Exception as error:
        if len(items) > 1:
            usable, waiting = [], [items]
            while waiting:
                some = waiting.pop()
                try:
                    recommender.with_live(some)
                    usable += some
                except Exception as fault:
                    if len(some) == 1:
                        log.error("item %r is left as it was (%s)", some[0].item_id, fault)
                    else:
                        waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
            return recommender.with_live(usable)
        log.error("item %r is left as it was (%s)", items[0].item_id, error)
        return recommender


def on_loop(loop: asyncio.AbstractEventLoop, use: Callable[[Recommender], None]) -> Callable[[Recommender], None]:
    """`use`, called on the event loop's own thread, in order; not at all once the loop is closed."""

    def call(recommender: Recommender) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(use, recommender)

    return call


@dataclass(frozen=True, slots=True)
class Swap:
    """One attempt to follow the registry.

    Attributes:
        bundle: what the registry wants; None if it cannot be asked.
        instead_of: what was in use before, and still is if there is an error.
        seconds: from when it was wanted here to its use, or to giving up.
        error: why not; None if it is in use.
    """

    bundle: str | None
    instead_of: str | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a replica stands to its registry, for health; moments are milliseconds since 1970.

    Attributes:
        live: the bundle in use, `since` when.
        wanted: the one that the registry named when it last answered.
        error: why they differ, or why the registry cannot be asked; None if all is well.
        failing_since: since when there has been an error.
    """

    live: str | None = None
    since: int | None = None
    wanted: str | None = None
    error: str | None = None
    failing_since: int | None = None


@dataclass(frozen=True, slots=True)
class _Failed:
    bundle: str
    wait_s: float
    retry_at: float


class Watcher:
    """Looks which bundle a registry has live, and brings it into use; nothing that fails here touches the one in use.

    At most two bundles are in memory: a third is not opened before the last request has let go of the first.

    Args:
        registry: its folder or address.
        opened: opens a bundle by id, whole, checked and warm; see `recsys`' `serve.opening.opener`.
        use: takes each opened bundle into use; `Current.put`.
        report: is told of each attempt, and once when the registry stops answering.
        interval_s: between two looks at a folder.
        remote_interval_s: between two looks at an address, each of which is a request to it.
        retry_s: when a bundle that did not open is tried again; twice as long each time, to ten minutes.

    Raises:
        ArtifactError: no file system is known for the address.
    """

    def __init__(
        self,
        registry: str,
        *,
        opened: Callable[[str], Recommender],
        use: Callable[[Recommender], None],
        report: Callable[[Swap], None],
        interval_s: float = 1.0,
        remote_interval_s: float = 5.0,
        retry_s: float = 60.0,
    ) -> None:
        self._registry = Registry(registry)
        self._opened = opened
        self._use = use
        self._report = report
        self._interval_s = max(interval_s, remote_interval_s) if "://" in registry else interval_s
        self._retry_s = retry_s
        self._failed: _Failed | None = None
        self._unasked_s = 0.0  # the wait after the last look that failed; 0 if it did not
        self._live: Callable[[], Any] = _nothing
        self._before: Callable[[], Any] = _nothing  # the bundle that was in use before, while somebody holds it
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch-registry", daemon=True)
        self.standing = Standing()

    def first(self) -> None:
        """Brings the live bundle into use; if it cannot be opened, the one before it, so that a restart still answers.

        Raises:
            ArtifactError: no bundle is live, or neither can be opened.
        """
        wanted = self._wanted()
        if not self._try(wanted):
            error, before = self.standing.error, self._registry.previous
            if before is None or not self._try(before, instead=True):
                raise ArtifactError(error)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self, patience_s: float = 5.0) -> None:
        """Ends the watch; a bundle that is just being opened is not waited for beyond `patience_s`."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopped.wait(wait_s):
            wait_s = self._look()

    def _look(self) -> float:
        """Follows the registry by at most one bundle; returns the seconds until the next look."""
        if self._before() is not None:
            gc.collect()  # requests let go of it by themselves, unless it is held by a cycle
        elif self._before is not _nothing:
            self._before = _nothing
            _give_back()
        try:
            wanted = self._wanted()
        except Exception as error:  # stores fail in their libraries' own ways; none of them may end the watch
            return self._not_asked(f"{type(error).__name__}: {error}")
        if self._unasked_s:
            log.info("the registry %s answers again", self._registry.address)
        self._unasked_s = 0.0
        if self._failed is not None and self._failed.bundle != wanted:
            self._failed = None
        if wanted == self.standing.live:
            self.standing = replace(self.standing, wanted=wanted, error=None, failing_since=None)
        elif self._failed is not None and time.monotonic() < self._failed.retry_at:
            pass
        elif self._before() is not None:
            self._fail(f"bundle {wanted} waits until the last request to the one before {self.standing.live} ends")
        else:
            self._try(wanted)
        return self._interval_s

    def _wanted(self) -> str:
        wanted = self._registry.current
        if wanted is None:
            address = self._registry.address
            raise ArtifactError(f"no bundle is live in {address}; is it still there? else run `recsys bundle promote`")
        return wanted

    def _not_asked(self, error: str) -> float:
        if not self._unasked_s:
            log.error("%s; bundle %s stays in use", error, self.standing.live)
            self._report(Swap(None, self.standing.live, 0.0, error))
        self._fail(error)
        self._unasked_s = min(2 * self._unasked_s or self._interval_s, MOST_INTERVALS * self._interval_s)
        return self._unasked_s

    def _try(self, wanted: str, *, instead: bool = False) -> bool:
        """Opens a bundle and brings it into use; whether that went well.

        Args:
            wanted: the bundle.
            instead: whether it stands in for the wanted one, whose failure is then kept.
        """
        started = time.monotonic()
        live = self.standing.live
        try:
            recommender = self._opened(wanted)
            bundle = weakref.ref(recommender.bundle)
            self._use(recommender)
        except Exception as error:  # whatever is wrong with a bundle, the one in use is not touched by it
            seconds, said = time.monotonic() - started, f"bundle {wanted} cannot be used: {error}"
            wait_s = self._retry_s
            if self._failed is not None and self._failed.bundle == wanted:
                wait_s = min(2 * self._failed.wait_s, MOST_RETRY_S)
            self._failed = _Failed(wanted, wait_s, time.monotonic() + wait_s)
            if not instead:
                self.standing = replace(self.standing, wanted=wanted)
                self._fail(said)
            log.exception("bundle %s cannot be used; %s stays in use", wanted, live)
            self._report(Swap(wanted, live, seconds, said))
            return False
        self._before, self._live = self._live, bundle
        now = _now_ms()
        if instead:
            self.standing = replace(self.standing, live=wanted, since=now)
        else:
            self.standing = Standing(live=wanted, since=now, wanted=wanted)
            self._failed = None
        seconds = time.monotonic() - started
        log.info("bundle %s is in use instead of %s, opened in %.2f s", wanted, live, seconds)
        self._report(Swap(wanted, live, seconds))
        return True

    def _fail(self, error: str) -> None:
        self.standing = replace(self.standing, error=error, failing_since=self.standing.failing_since or _now_ms())


def _nothing() -> None:
    return None


def _give_back() -> None:
    """Hands what a bundle took back to the system: glibc would keep it in pieces, more of them after each swap."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
