"""Who may ask for what: every request is let through, or refused, before anything of it is read but its head."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from .key_file import Key, KeyLimits, Scope
from .keys import Keys, holder, is_key
from .limits import Bucket, Rate, limits_of, rate_of
from .page import addresses
from .printable import printable
from .problems import Refusal
from .schemas import Limits

OPEN = frozenset(("/healthz", "/readyz", "/docs", "/openapi.json")) | addresses()
METRICS = "/metrics"
# What is asked by POST and changes nothing.
ASKING = frozenset(
    ("/v1/recommendations", "/v1/recommendations:batch", "/v1/similar", "/v1/why-not", "/v1/items:lookup")
)
READING = frozenset(("GET", "HEAD", "OPTIONS"))
WRONG_KEYS = Rate(requests_per_second=10, burst=100)

_BEARER = re.compile(rb"bearer +(\S+)", re.IGNORECASE)
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_LENGTH = len("Bearer recsys_") + 8 + 1 + 43  # of a header as it is mostly written, in bytes
_LONGEST = 256  # of one that is looked at

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks.

    Args:
        name: of their key, fit for logs and metrics; empty where no key was asked for.
        key_id: of their key; empty as above.
        scope: what they may do.
        limits: how much one request of theirs may ask for.
    """

    name: str
    key_id: str
    scope: Scope
    limits: Limits


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    until: float
    bucket: Bucket | None


def scope_needed(method: str, path: str) -> Scope | None:
    """The scope that a route needs; None if it is open to all.

    Whatever is not listed needs a key, and a method that may change something needs `write`: so a route that somebody
    adds and forgets here is not open to those who may only read.
    """
    if path in OPEN:
        return None
    if path == METRICS or path.startswith(METRICS + "/"):
        return Scope.ADMIN
    if method in READING or (method == "POST" and path in ASKING):
        return Scope.READ
    return Scope.WRITE


class Guard:
    """Lets requests through by their key, its scope and its rate. It is for one thread, the event loop's.

    A good key is found by the SHA-256 of its header, so that no secret stays in memory, in a table that is forgotten as
    soon as the key file changes. Anything else is checked in full each time, and its refusal says little: who guesses
    learns nothing from it, and past `WRONG_KEYS` a second gets a shorter answer and no line in the log. Good keys never
    wait for wrong ones.

    Args:
        keys: those that are good; None lets everybody do everything, which `refuse_public` allows on loopback alone.
        limits: how much one request may ask for; a key may have less.
        rate: how often any one key may ask, over all replicas; a key may have less. None: as often as its own says.
        share: the part of a key's rate that this process gives, 1 / replicas.
        clock: seconds, steady.
        now: seconds since 1970, by which keys expire.
    """

    def __init__(
        self,
        keys: Keys | None,
        limits: Limits,
        *,
        rate: Rate | None = None,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie above 0 and at most at 1 (1 / replicas), got {share:g}")
        self.refused: Counter[str] = Counter()  # by reason, for metrics
        self._keys = keys
        self._limits = limits
        self._rate = rate
        self._share = share
        self._clock = clock
        self._now = now
        self._wrong = Bucket(WRONG_KEYS, clock())
        self._entries: Mapping[str, Key] | None = None
        self._known: dict[bytes, _Known] = {}  # by the sha256 of a whole header
        self._buckets: dict[str, Bucket] = {}  # by name, so that a key and the one that replaces it share one rate
        own = limits_of(KeyLimits(), limits)
        self._nobody = Caller("", "", Scope.READ, own)
        self._anybody = Caller("", "", Scope.ADMIN, own)

    def allow(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Who asks, if they may.

        Args:
            method: of the request, in capitals.
            path: of the request, decoded, as it is routed by.
            headers: of the request, names in lower case.

        Raises:
            Refusal: 401 without a good key, 403 where its scope is too small, 429 where it asks too often.
        """
        keys = self._keys
        if keys is None:
            return self._anybody
        needed = scope_needed(method, path)
        if needed is None:
            return self._nobody
        given = None
        for name, value in headers:
            if name == b"authorization":
                if given is not None:
                    raise self._malformed("there is more than one Authorization header; send one")
                given = value
        if given is None:
            raise self._missing()
        entries = keys.current()
        if entries is not self._entries:
            self._forget(entries)
        known = self._known.get(sha256(given).digest()) if len(given) == _LENGTH else None
        if known is None or known.until <= self._now():
            known = self._check(given, entries)
        if known.bucket is not None and (wait := known.bucket.take(self._clock())):
            raise self._too_often(known.caller, known.bucket.rate, wait)
        if known.caller.scope < needed:
            raise self._too_small(known.caller, needed)
        return known.caller

    def charge(self, caller: Caller, requests: int) -> None:
        """Counts more requests against a caller's rate, such as those of a batch beyond the one that carries it.

        It refuses nothing: what is owed is waited for by the caller's next requests, so a batch larger than a burst can
        be asked for, and costs as much as if it had been asked for one by one.
        """
        if (bucket := self._buckets.get(caller.name)) is not None:
            bucket.owe(requests)

    def _forget(self, entries: Mapping[str, Key]) -> None:
        self._entries = entries
        self._known.clear()
        names = {key.name for key in entries.values()}
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in names}

    def _check(self, given: bytes, entries: Mapping[str, Key]) -> _Known:
        """The holder of a key that is not known yet, or is no longer."""
        said = _BEARER.fullmatch(given) if len(given) <= _LONGEST else None
        if said is None or not is_key(said[1]):
            raise self._malformed("the Authorization header is not of the form `Bearer recsys_<id>_<secret>`")
        key = holder(entries, said[1])
        if key is None:
            raise self._not_good("unknown", said[1], "it is unknown or was revoked")
        if key.until <= self._now():
            # Only who has the secret is told so, and may know it.
            raise self._not_good("expired", said[1], f"it expired at {key.expires:%Y-%m-%d %H:%M:%S} UTC")
        known = _Known(self._caller(key), key.until, self._bucket(key))
        if given == b"Bearer " + said[1]:  # one way of writing only, or a good key could fill the memory
            self._known[sha256(given).digest()] = known
        return known

    def _caller(self, key: Key) -> Caller:
        return Caller(key.name, key.id, key.rank, limits_of(key.limits, self._limits))

    def _bucket(self, key: Key) -> Bucket | None:
        rate = rate_of(key.limits, self._rate)
        if rate is None:
            self._buckets.pop(key.name, None)
            return None
        bucket = self._buckets.get(key.name)
        if bucket is None:
            bucket = self._buckets[key.name] = Bucket(rate.shared(self._share), self._clock())
        bucket.rate = rate.shared(self._share)  # what is left of the old rate stays: a changed file is no new start
        return bucket

    def _missing(self) -> Refusal:
        self.refused["missing"] += 1
        return Refusal(401, "this needs a key; send it as `Authorization: Bearer <key>`", headers=_CHALLENGE)

    def _malformed(self, detail: str) -> Refusal:
        if wait := self._wrong.take(self._clock()):
            return self._slowed(wait)
        self.refused["malformed"] += 1
        return Refusal(401, detail, headers=_CHALLENGE)

    def _not_good(self, reason: str, given: bytes, why: str) -> Refusal:
        if wait := self._wrong.take(self._clock()):
            return self._slowed(wait)
        self.refused[reason] += 1
        log.warning("a key with id %s was refused: %s", printable(given.split(b"_", 2)[1], 8), why)
        return Refusal(
            401, f"this key is not good: {why}; ask whoever runs the service for another", headers=_CHALLENGE
        )

    def _slowed(self, wait: float) -> Refusal:
        self.refused["slowed"] += 1
        return Refusal(429, "too many requests come with wrong keys; correct the key", headers=_retry_after(wait))

    def _too_small(self, caller: Caller, needed: Scope) -> Refusal:
        self.refused["scope"] += 1
        return Refusal(
            403,
            f"key {caller.name!r} may {caller.scope.word} and this needs {needed.word}; use a key with scope "
            f"{needed.word}",
        )

    def _too_often(self, caller: Caller, rate: Rate, wait: float) -> Refusal:
        self.refused["rate"] += 1
        most, headers = rate.requests_per_second / self._share, _retry_after(wait)
        return Refusal(
            429,
            f"key {caller.name!r} may ask {most:g} times a second; try again in {headers['Retry-After']} s",
            headers=headers,
        )


def _retry_after(wait: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(wait)))}
