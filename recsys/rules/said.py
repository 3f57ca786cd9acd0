"""What may be asked of a list besides its relevance: caps, quotas, diversity, freshness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class RuleError(ValueError):
    """A rule that cannot be; the message names it, the value, and what to say instead."""


@dataclass(frozen=True, slots=True)
class Cap:
    """At most so many items of one value of an attribute, such as two a brand.

    Args:
        attribute: categorical or multi; an item that has several values counts for each, one that has none for none.
        most: how many, at least 0.
    """

    attribute: str
    most: int

    def __post_init__(self) -> None:
        if not _is_integer(self.most) or self.most < 0:
            raise RuleError(f"caps.{self.attribute}: at most {self.most!r} cannot be held; give an integer from 0 on")


@dataclass(frozen=True, slots=True)
class Quota:
    """At least so many items that pass a filter, such as three that are promoted.

    Args:
        filter: attribute to clause, as a request's filter; see `Attributes.eligible`.
        least: how many, at least 1.
    """

    filter: Mapping[str, Any]
    least: int

    def __post_init__(self) -> None:
        if not isinstance(self.filter, Mapping):
            raise RuleError(f"a quota's filter maps attributes to clauses, got {self.filter!r}")
        if not _is_integer(self.least) or self.least < 1:
            raise RuleError(f"a quota of at least {self.least!r} says nothing; give an integer from 1 on")


@dataclass(frozen=True, slots=True)
class Freshness:
    """New items rise: a score gains `weight` standard deviations of the query's scores, halved every half life of age.

    Args:
        attribute: a timestamp. An item without it gains nothing; one whose moment is yet to come gains all.
        half_life_days: after how many days half of the gain is left.
        weight: the gain of an item of now, in standard deviations of the query's scores over the catalogue.
    """

    attribute: str
    half_life_days: float
    weight: float

    def __post_init__(self) -> None:
        if not _is_finite(self.half_life_days) or self.half_life_days <= 0:
            raise RuleError(f"freshness.half_life_days is {self.half_life_days!r}; give a number of days above 0")
        if not _is_finite(self.weight) or self.weight < 0:
            raise RuleError(f"freshness.weight is {self.weight!r}; give a finite number from 0 on")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for one list; falsy if that is nothing, so that relevance alone decides.

    Args:
        caps: what there may not be too much of.
        quotas: what there must be enough of.
        diversity: from 0, where relevance alone counts, to 1, where only unlikeness to what was picked before does.
        freshness: what lifts new items.
    """

    caps: tuple[Cap, ...] = ()
    quotas: tuple[Quota, ...] = ()
    diversity: float = 0.0
    freshness: Freshness | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "caps", tuple(self.caps))
        object.__setattr__(self, "quotas", tuple(self.quotas))
        if not _is_finite(self.diversity) or not 0 <= self.diversity <= 1:
            raise RuleError(f"diversity is {self.diversity!r}; give a number from 0 to 1")

    def __bool__(self) -> bool:
        lifts = self.freshness is not None and self.freshness.weight > 0
        return bool(self.caps or self.quotas or self.diversity or lifts)


def _is_integer(said: Any) -> bool:
    return isinstance(said, int) and not isinstance(said, bool)


def _is_finite(said: Any) -> bool:
    return isinstance(said, (int, float)) and not isinstance(said, bool) and math.isfinite(said)
