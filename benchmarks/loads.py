"""Load on an HTTP server, from a process of its own: keep-alive connections whose every answer is read and noted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

HOST = "127.0.0.1"
AGAIN_S = 0.05  # from a connection that was lost to the next attempt
PATIENCE_S = 15.0  # for an answer; then the request has failed
MOST_REQUESTS = 5_000_000  # a load ends at the latest here

Ask = Callable[[], tuple[bytes, float] | None]
"""Gives the next request and when it is due, by time.perf_counter; None if there is none."""
Answered = Callable[[bytes, int, bytes, float], None]
"""Is told of a request, its answer's status and body, and the seconds it took from when it was due."""


class Connection(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has its answer and the next request is due.

    `closed` is done when the connection is; with an exception if that left a request without an answer.
    """

    def __init__(self, ask: Ask, answered: Answered) -> None:
        self._ask = ask
        self._answered = answered
        self._received = b""
        self._asked: bytes | None = None
        self._due = 0.0
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def waited_s(self) -> float:
        """How long the request that is under way has been; 0 if none is."""
        return 0.0 if self._asked is None else time.perf_counter() - self._due

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._asked is None:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        asked, self._asked, self._received = self._asked, None, b""
        try:
            self._answered(asked, int(head[9:12]), body, time.perf_counter() - self._due)
        except Exception as error:
            self.fail(error)
            return
        if b"\r\nconnection: close" in fields:
            self._transport.close()
        else:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or (RuntimeError("the server closed the connection") if self._asked else None))

    def close(self) -> None:
        """Asks no more."""
        self._transport.close()

    def fail(self, error: Exception) -> None:
        """Gives the connection up."""
        self._end(error)
        self._transport.abort()

    def _next(self) -> None:
        following = self._ask()
        if following is None:
            self._transport.close()
            return
        request, self._due = following
        if (early_s := self._due - time.perf_counter()) > 0.001:
            self._loop.call_later(early_s, self._send, request)
        else:
            self._send(request)

    def _send(self, request: bytes) -> None:
        if not self._transport.is_closing():
            self._asked = request
            self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        if not self.closed.done():
            if error is None:
                self.closed.set_result(None)
            else:
                self.closed.set_exception(error)


def get(path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    """A POST request of a JSON value."""
    said = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(said)}"
    return f"{head}\r\n\r\n".encode() + said


@dataclass(frozen=True)
class Plan:
    """What to ask of the server on a port.

    Attributes:
        port: the server's.
        paths: asked by GET, in turn.
        connections: how many ask at once.
        rate: requests a second in all; 0 for as many as are answered. A request's time counts from when it was due.
        events: the share of requests that are new events, of users of their own.
        items: what those events are about.
        expected: by bundle, the item ids that each path gives; answers are compared if it is given.
        name: makes the events of two loads differ.
    """

    port: int
    paths: Sequence[str]
    connections: int = 16
    rate: float = 0.0
    events: float = 0.0
    items: Sequence[str] = ()
    expected: Mapping[str, Sequence[Sequence[str]]] | None = None
    name: str = "load"


@dataclass
class Noted:
    """Every request of a load, in the order of their ends.

    Attributes:
        at: float64 [n], when it ended, seconds since 1970.
        seconds: float64 [n], how long it took; of failed ones, how long until that was known.
        status: int [n]; 0 if there was no answer.
        bundle: int [n], a place in `bundles`; −1 if the answer names none.
        bundles: ids.
        mixed: answers whose items are not those of the bundle that they name.
        degraded: answers that say they are of less than full effort.
        accepted: user and event id of each event that was accepted.
        faults: what failed, in words, and how often.
    """

    at: Any = field(default_factory=list)
    seconds: Any = field(default_factory=list)
    status: Any = field(default_factory=list)
    bundle: Any = field(default_factory=list)
    bundles: list[str] = field(default_factory=list)
    mixed: int = 0
    degraded: int = 0
    accepted: list[tuple[str, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> np.ndarray:
        """bool [n]."""
        return np.asarray(self.status) != 200

    def frozen(self) -> Self:
        """With arrays in place of lists."""
        for name in ("at", "seconds", "status", "bundle"):
            setattr(self, name, np.array(getattr(self, name)))
        return self


class _Running:
    def __init__(self, plan: Plan, count: Any, stop: Any) -> None:
        self._plan, self._count, self._stop = plan, count, stop
        self._noted = Noted()
        self._gets = [get(path) for path in plan.paths]
        self._places = {request: place for place, request in enumerate(self._gets)}
        self._numbers = itertools.count()
        self._started = time.perf_counter()
        self._known: dict[tuple[int, bytes], tuple[int, bool, bool]] = {}

    async def run(self) -> Noted:
        await asyncio.gather(*(self._keep() for _ in range(self._plan.connections)))
        return self._noted.frozen()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set() and len(self._noted.at) < MOST_REQUESTS:
            begun = time.perf_counter()
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self._ask, self._answered), HOST, self._plan.port
                )
                while not connection.closed.done():
                    await asyncio.wait([connection.closed], timeout=1)
                    if connection.waited_s > PATIENCE_S:
                        connection.fail(TimeoutError(f"no answer within {PATIENCE_S:g} s"))
                    elif self._stop.is_set() and not connection.waited_s:
                        connection.close()  # it waits for a request that is not due any more
                begun = time.perf_counter() - connection.waited_s
                connection.closed.result()
            except (OSError, RuntimeError, ValueError) as error:
                self._note(0, time.perf_counter() - begun, -1)
                self._noted.faults[f"{type(error).__name__}: {error}"[:80]] += 1
                await asyncio.sleep(AGAIN_S)

    def _ask(self) -> tuple[bytes, float] | None:
        if self._stop.is_set():
            return None
        number, now = next(self._numbers), time.perf_counter()
        due = self._started + number / self._plan.rate if self._plan.rate else now
        share = self._plan.events
        if share and int(number * share) != int((number + 1) * share):
            event_id, item = f"{self._plan.name}-{number}", self._plan.items[number % len(self._plan.items)]
            event = {"event_id": event_id, "user_id": f"{self._plan.name}-user-{number % 97}", "item_id": item}
            return post("/v1/events", event), due
        return self._gets[number % len(self._gets)], due

    def _answered(self, request: bytes, status: int, body: bytes, seconds: float) -> None:
        bundle = -1
        if status != 200:
            with contextlib.suppress(ValueError):
                body = str(json.loads(body).get("detail", "")).encode()
            said = re.sub(
                r"\d{3,}|/v1/\S+", "…", body.decode(errors="replace")
            )  # else each request is a fault of its own
            self._noted.faults[f"{status}: {said}"[:80]] += 1
        elif (place := self._places.get(request)) is None:
            event = json.loads(request.partition(b"\r\n\r\n")[2])
            self._noted.accepted.append((event["user_id"], event["event_id"]))
        else:
            if (known := self._known.get((place, body))) is None:
                if len(self._known) > 20_000:
                    self._known.clear()
                known = self._known[place, body] = self._read(place, json.loads(body))
            bundle, mixed, degraded = known
            self._noted.mixed += mixed
            self._noted.degraded += degraded
        self._note(status, seconds, bundle)

    def _read(self, place: int, said: Any) -> tuple[int, bool, bool]:
        if (name := said["bundle"]) not in self._noted.bundles:
            self._noted.bundles.append(name)
        degraded, mixed = bool(said.get("degraded")), False
        if self._plan.expected is not None and not degraded:
            own = self._plan.expected.get(name)
            mixed = own is None or [str(item["item_id"]) for item in said["items"]] != list(own[place])
        return self._noted.bundles.index(name), mixed, degraded

    def _note(self, status: int, seconds: float, bundle: int) -> None:
        noted = self._noted
        noted.at.append(time.time())
        noted.seconds.append(seconds)
        noted.status.append(status)
        noted.bundle.append(bundle)
        self._count.value = len(noted.at)


def _work(plan: Plan, count: Any, stop: Any, results: Any) -> None:
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    results.send(asyncio.run(_Running(plan, count, stop).run()))


class Load:
    """A load that runs from the start of the block until `stop`, or the end of the block.

    Args:
        plan: what is asked.
    """

    def __init__(self, plan: Plan) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._count: Any = spawn.Value("q", 0)
        self._stop = spawn.Event()
        self._results, theirs = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_work, args=(plan, self._count, self._stop, theirs), daemon=True)

    @property
    def count(self) -> int:
        """How many requests have ended, well or not."""
        return int(self._count.value)

    def wait_for(self, count: int, patience_s: float) -> None:
        """Waits until that many requests have ended.

        Raises:
            RuntimeError: they do not, within the time.
        """
        deadline = time.monotonic() + patience_s
        while self.count < count:
            if time.monotonic() > deadline or not self._process.is_alive():
                raise RuntimeError(f"{self.count} of {count} requests ended within {patience_s:g} s; is the server up?")
            time.sleep(0.05)

    def stop(self) -> Noted:
        """Ends the load and gives what it noted."""
        self._stop.set()
        if not self._results.poll(PATIENCE_S + 30):
            raise RuntimeError("the load does not end; is its process gone?")
        noted: Noted = self._results.recv()
        self._process.join(10)
        return noted

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(10)
