"""How much one key may ask for: how often, and how much at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .key_file import KeyLimits
from .schemas import Limits


@dataclass(frozen=True, slots=True)
class Rate:
    """How often somebody may ask.

    Args:
        requests_per_second: for as long as they like.
        burst: how many at once after a pause.
    """

    requests_per_second: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.requests_per_second < math.inf and 1 <= self.burst < math.inf):
            raise ValueError(
                f"a rate needs more than 0 requests per second and a burst of 1 or more, "
                f"got {self.requests_per_second:g} and {self.burst:g}"
            )

    def shared(self, share: float) -> Rate:
        """A part of it; a burst of one always stays, or nothing could be asked."""
        return Rate(self.requests_per_second * share, max(1.0, self.burst * share))


def rate_of(key: KeyLimits, service: Rate | None) -> Rate | None:
    """The rate of one key, at most the service's; None if neither sets one."""
    if key.requests_per_second is None:
        return service
    burst = float(key.burst or max(1, math.ceil(key.requests_per_second)))
    if service is None:
        return Rate(key.requests_per_second, burst)
    return Rate(min(key.requests_per_second, service.requests_per_second), min(burst, service.burst))


def limits_of(key: KeyLimits, service: Limits) -> Limits:
    """How much one request of a key may ask for, at most the service's own; equal limits compare and hash as equal."""
    least = {}
    for name in Limits.model_fields:
        own, said = getattr(service, name), getattr(key, name, None)
        least[name] = own if said is None else min(own, said)
    return Limits(**least)


class Bucket:
    """A token bucket: tokens come at a steady rate up to a burst, and each request takes one.

    It is for one thread, the event loop's.

    Args:
        rate: how fast tokens come and how many it holds; it starts full.
        now: the moment, in seconds of a steady clock.
    """

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._tokens = rate.burst
        self._at = now

    def take(self, now: float) -> float:
        """Takes a token; 0.0 if there was one, else how many seconds until there is."""
        rate = self.rate
        tokens = self._tokens + (now - self._at) * rate.requests_per_second
        if tokens > rate.burst:
            tokens = rate.burst
        self._at = now
        if tokens >= 1 - 1e-9:  # who waits as long as told must not miss by a rounding
            self._tokens = tokens - 1
            return 0.0
        self._tokens = tokens
        return (1 - tokens) / rate.requests_per_second

    def owe(self, tokens: float) -> None:
        """Takes tokens that may not be there yet: later requests wait until they have come."""
        self._tokens -= tokens
