"""How often, how patiently and until when a call is tried: one logic for the blocking and the asynchronous client.

`attempts` is a generator that neither sends nor waits: it says what to do next, and is told what came of it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from uuid import uuid4

from .answers import RecommendationError, Unavailable, Unreadable, problem
from .calls import Call

T = TypeVar("T")
RETRIED = frozenset({429, 502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take.

    Args:
        timeout_s: one try, from the connection to the last byte.
        deadline_s: all tries and the waits between them.
        retries: how many tries may follow the first.
    """

    timeout_s: float
    deadline_s: float
    retries: int

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give seconds above 0")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; give 0 or more")


class Budget:
    """What keeps retries from hammering a server that is down: each call earns a tenth of one, and each one costs one.

    Args:
        share: retries that a call earns.
        reserve: retries that can be saved up, and that there are at first.
    """

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = self._left = reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Counts a call."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._share)

    def spend(self) -> bool:
        """Takes one retry, if there is one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


@dataclass(frozen=True, slots=True)
class Send:
    """Do this now: send the request, and give up after so many seconds."""

    timeout_s: float
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Wait:
    """Do this now: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it: an HTTP answer, whole; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """What came of it: no answer, or not all of one."""

    detail: str
    retry: bool = True


def attempts(call: Call[T], patience: Patience, budget: Budget) -> Generator[Send | Wait, Reply | Lost | None, T]:
    """Says what to do until the call has an answer.

    Waits are drawn evenly between nothing and a most that doubles, so that many clients do not come back at once. One
    that the server asks for is kept, or the call given up if there is no time for it.

    Args:
        call: what is asked; it may be sent several times.
        patience: how long it may take.
        budget: shared by all calls of a client.

    Yields:
        Send, to be answered with Reply or Lost, and Wait, with None.

    Returns:
        The answer.

    Raises:
        RecommendationError: the service refused, or said what cannot be read.
        Unavailable: it could not be reached, or had no room, until patience or budget ended.
    """
    until = time.monotonic() + patience.deadline_s
    request_id = uuid4().hex  # one for all tries, so that the service's log shows them together
    budget.earn()
    tried = 0
    while True:
        tried += 1
        left = until - time.monotonic()
        outcome = yield Send(min(patience.timeout_s, left), {"X-Request-ID": request_id})
        if isinstance(outcome, Reply) and outcome.status not in RETRIED and not _of_the_proxy(outcome):
            return _read(call, outcome, request_id)
        if outcome is None:
            raise RuntimeError("a Send must be answered with a Reply or a Lost")
        asked = _retry_after(outcome) if isinstance(outcome, Reply) else None
        wait = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)) + (asked or 0)
        end = _end(call, outcome, tried, wait, until, patience, budget)
        if end:
            raise _unavailable(call, outcome, end, tried, asked, request_id)
        yield Wait(wait)


def _of_the_proxy(reply: Reply) -> bool:
    """Whether nobody but Ray's proxy has answered: it says 404 in plain text until the service has started."""
    return reply.status == 404 and reply.headers.get("content-type", "").startswith("text/plain")


def _end(
    call: Call[T], outcome: Reply | Lost, tried: int, wait: float, until: float, patience: Patience, budget: Budget
) -> str | None:
    """Why there is no further try, or None if there is one."""
    if isinstance(outcome, Lost) and not outcome.retry:
        return "a further try would not help"
    times = f"tried {tried} {'time' if tried == 1 else 'times'}"
    if tried > (0 if call.once else patience.retries):
        return times
    if time.monotonic() + wait >= until:
        return f"{times}; no time is left of {patience.deadline_s:g} s"
    if not budget.spend():
        return f"{times}; too many calls have failed lately for another"
    return None


def _unavailable(
    call: Call[T], outcome: Reply | Lost, end: str, tried: int, asked: float | None, request_id: str
) -> Unavailable:
    where = f"{call.method} {call.path}"
    if isinstance(outcome, Lost):
        return Unavailable(f"{where}: {outcome.detail} ({end})", tries=tried, request_id=request_id)
    error = _refused(outcome, request_id)
    return Unavailable(
        f"{where}: {error.detail} ({end})",
        tries=tried,
        retry_after_s=asked,
        status=outcome.status,
        faults=error.faults,
        request_id=error.request_id,
    )


def _read(call: Call[T], reply: Reply, request_id: str) -> T:
    if not 200 <= reply.status < 300:
        raise _refused(reply, request_id)
    try:
        return call.read(_json(reply))
    except ValueError as error:  # Unreadable is one
        raise RecommendationError(
            f"{call.method} {call.path} gave no answer that can be read ({error}): {_shown(reply)}; "
            "check that the address is that of the service",
            status=reply.status,
            request_id=reply.headers.get("x-request-id", request_id),
        ) from None


def _refused(reply: Reply, request_id: str) -> RecommendationError:
    """The error of an answer that is none, whether or not it is a problem document."""
    request_id = reply.headers.get("x-request-id", request_id)
    try:
        said = _json(reply)
        if isinstance(said, dict) and "detail" in said:
            return problem({**said, "status": reply.status}, request_id)
    except ValueError:
        pass
    location = reply.headers.get("location")
    detail = f"goes on at {location}; use that address" if location else _shown(reply)
    return RecommendationError(detail, status=reply.status, request_id=request_id)


def _json(reply: Reply) -> object:
    try:
        return json.loads(reply.body)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None


def _shown(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "no type")
    return f"{len(reply.body)} bytes of {kind:.60}, {reply.body[:80].decode('utf-8', 'replace')!r}"


def _retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks to wait, given as such or as a date."""
    said = reply.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said[:9])
    try:
        moment = parsedate_to_datetime(said)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
