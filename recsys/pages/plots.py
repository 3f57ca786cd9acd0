"""Where the marks of a page's plots stand; its template draws them as SVG, where every label is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

WIDTH, HEIGHT = 320.0, 120.0  # of a curve, in its own units

Name = TypeVar("Name")


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, and where they stand on a scale shared by all rows, in per cent of its width."""

    value: float
    half_width: float | None
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A line through `path` (x,y pairs for an SVG polyline), its points, and ticks: (height, label)."""

    path: str
    points: list[tuple[float, float]]
    ticks: list[tuple[float, str]]
    first_epoch: int
    last_epoch: int
    first: float | None
    last: float | None
    broken: list[int]


def intervals(means: Mapping[Name, Mapping[str, Any] | None]) -> dict[Name, Interval]:
    """Means with their half widths, `value` and `half_width`, on one scale from 0 to the highest end."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    top = max((mean["value"] + (mean["half_width"] or 0) for mean in known.values()), default=0) or 1.0

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, value / top)), 2)

    found = {}
    for name, mean in known.items():
        value, half = mean["value"], mean["half_width"] or 0.0
        found[name] = Interval(value, mean["half_width"], place(value), place(value - half), place(value + half))
    return found


def curve(points: Sequence[tuple[int, float | None]]) -> Curve:
    """One curve on its own scale; values of None (not finite) are left out of the line and named.

    Args:
        points: epoch and value, ascending; at least one.
    """
    drawn = [(epoch, value) for epoch, value in points if value is not None]
    low, high = min((v for _, v in drawn), default=0.0), max((v for _, v in drawn), default=1.0)
    levels = ticks(low, high)
    low, high = min(low, levels[0]), max(high, levels[-1])
    first, last = points[0][0], points[-1][0]

    def height(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (high - low)), 1)

    places = [(round(WIDTH * (epoch - first) / max(1, last - first), 1), height(value)) for epoch, value in drawn]
    return Curve(
        path=" ".join(f"{x},{y}" for x, y in places),
        points=places,
        ticks=[(height(level), f"{level:.10g}") for level in levels],
        first_epoch=first,
        last_epoch=last,
        first=points[0][1],
        last=points[-1][1],
        broken=[epoch for epoch, value in points if value is None],
    )


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from at most `low` to at least `high`, a step of 1, 2 or 5 times a power of ten."""
    spread = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= spread / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(at * step, 12 - math.floor(math.log10(step))) for at in range(first, max(last, first + 1) + 1)]
