"""The doctor's report for people: a table for terminals, and one self-contained page with plots."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recsys.explore.doctor import Report
from recsys.explore.findings import Finding
from recsys.explore.space import spread
from recsys.pages import environment, plots

MARKS = {"fine": "✓", "note": "·", "warning": "!", "serious": "✗"}
_WIDE = 110  # characters of a line
_POINTS = 4000  # of the map, evenly spaced over the rows: more make a page heavy and no clearer
_COLOURS = 12  # clusters with a colour of their own, the largest; the others are grey
_BARS = 40


@dataclass(frozen=True)
class Histogram:
    """Bars of a histogram, in units of the plot, and its axis.

    Attributes:
        bars: x, y, width, height and whether it is beyond the threshold.
        ticks: x and label.
        mark: where the threshold stands; None if outside.
    """

    bars: list[tuple[float, float, float, float, bool]]
    ticks: list[tuple[float, str]]
    mark: float | None


def text(report: Report) -> str:
    """Findings, the worst first, wrapped, with their fixes; then what each part took."""
    about = report.about
    unit = "of length 1" if about["unit"] else "of any length"
    lines = [
        f"{report.name}: {about['items']:,} items, {about['users']:,} users, {about['dimension']} dimensions, {unit}"
    ]
    lines.append(", ".join(f"{number} {name}" for name, number in report.counts().items() if number))
    for one in report.findings:
        lines += ["", *_wrapped(f"{MARKS[one.severity]} {one.severity:<8}{one.check}: {one.what}")]
        if one.evidence and one.severity != "fine":
            lines += [_short(f"             {_told(row)}") for row in one.evidence[:3]]
        if one.fix:
            lines += _wrapped(f"           → {one.fix}")
    lines += ["", f"{'part':<12}{'seconds':>9}" + (f"{'of the floor':>14}" if report.floor else "")]
    for name, seconds in [*report.seconds.items(), ("together", sum(report.seconds.values()))]:
        times = f"{seconds / report.floor:>14.1f}" if report.floor else ""
        lines.append(f"{name:<12}{seconds:>9.1f}{times}")
    return "\n".join(lines)


def page(report: Report) -> str:
    """One self-contained HTML page: nothing is fetched and nothing runs; equal reports give equal bytes.

    Whatever a catalogue says is escaped by the template.
    """
    templates = environment("recsys.explore")
    templates.filters.update(percent=_percent, number=_number, told=_told)
    longest = max(report.seconds.values())
    return templates.get_template("doctor.html.j2").render(
        report=report,
        marks=MARKS,
        groups=_by_check(report.findings),
        points=_points(report),
        names=report.clusters.table.head(_COLOURS)["name"].to_list(),
        clusters=report.clusters.table.reset_index().to_dict(orient="records"),
        ratios=_histogram(report.duplicates.ratios, report.duplicates.ratio, below=True),
        factors=_histogram(report.outliers.factor, report.outliers.threshold, below=False),
        occurrences=_histogram(report.exposure.items["neighbour_of"].to_numpy(), None, below=False),
        directions=plots.curve([(at + 1, float(share)) for at, share in enumerate(report.collapse.directions)]),
        trials=[] if report.dial is None else report.dial.to_dict(orient="records"),
        dial=None if report.dial is None else _dial(report.dial),
        moved=[] if report.drift is None else report.drift.items.head(12).to_dict(orient="records"),
        users=[] if report.drift is None else report.drift.users.head(6).to_dict(orient="records"),
        longest=longest,
    )


def _by_check(findings: tuple[Finding, ...]) -> list[tuple[str, list[Finding]]]:
    """Findings that want something done, then those that do not, as the page shows them."""
    bad = [one for one in findings if one.severity in ("warning", "serious")]
    notes = [one for one in findings if one.severity == "note"]
    fine = [one for one in findings if one.severity == "fine"]
    return [(name, some) for name, some in (("To mend", bad), ("Worth knowing", notes), ("Fine", fine)) if some]


def _points(report: Report) -> list[tuple[float, float, int, str]]:
    """x and y in units of the map, the colour (−1 is grey) and the title."""
    rows = spread(np.arange(len(report.map)), _POINTS)
    some = report.map.iloc[rows]
    low, high = (some[["x", "y"]].quantile(share).to_numpy() for share in (0.002, 0.998))
    places = (some[["x", "y"]].to_numpy() - low) / np.maximum(high - low, 1e-12)
    return [
        (
            round(float(640 * x), 1),
            round(float(420 * (1 - y)), 1),
            int(cluster) if cluster < _COLOURS else -1,
            str(title),
        )
        for (x, y), cluster, title in zip(places.clip(0, 1), some["cluster"], some["title"], strict=True)
    ]


def _histogram(values: np.ndarray, threshold: float | None, *, below: bool) -> Histogram:
    """Bars over the values up to their 99.9 % quantile, on a square-root scale, so that a few still show."""
    values = np.asarray(values, dtype=np.float64)
    low = float(min(values.min(initial=0.0), 0.0))
    high = float(max(np.quantile(values, 0.999) if len(values) else 1.0, threshold or 0.0))
    levels = plots.ticks(low, high)
    high = levels[-1]
    counts, edges = np.histogram(values.clip(low, high), bins=_BARS, range=(low, high))
    top = float(np.sqrt(counts.max(initial=1))) or 1.0
    wide = plots.WIDTH / _BARS
    bars = []
    for at, count in enumerate(counts.tolist()):
        height = round(plots.HEIGHT * math.sqrt(count) / top, 1)
        middle = (edges[at] + edges[at + 1]) / 2
        hit = threshold is not None and (middle <= threshold if below else middle > threshold)
        bars.append((round(at * wide, 1), round(plots.HEIGHT - height, 1), round(wide - 1, 1), height, hit))

    def place(value: float) -> float:
        return round(plots.WIDTH * (value - low) / (high - low), 1)

    mark = None if threshold is None else place(threshold)
    return Histogram(bars, [(place(level), f"{level:.6g}") for level in levels if low <= level <= high], mark)


def _dial(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A line of the plot for each kind of index: recall over dimensions, on one scale; and NDCG, if it was measured."""
    sizes = sorted(table["dimension"].unique())
    place = {size: plots.WIDTH * at / max(1, len(sizes) - 1) for at, size in enumerate(sizes)}
    lines = []
    measured = [
        (name, table[table["index"] == name], "recall@10") for name in table["index"].unique() if name != "X @ q"
    ]
    flat = table[table["index"] == "Flat"]
    if len(flat) and flat["ndcg@10"].notna().all():
        best = max(float(flat["ndcg@10"].max()), 1e-12)
        measured.append(("NDCG@10, of the best", flat.assign(share=flat["ndcg@10"] / best), "share"))
    for name, rows, column in measured:
        rows = rows.sort_values("dimension")
        points = [
            (round(place[size], 1), round(plots.HEIGHT * (1 - share), 1))
            for size, share in zip(rows["dimension"], rows[column], strict=True)
        ]
        lines.append({"name": name, "points": points, "path": " ".join(f"{x},{y}" for x, y in points)})
    lines.append({"name": "", "points": [(round(place[size], 1), size) for size in sizes], "path": ""})
    return lines


def _told(row: dict[str, Any]) -> str:
    """An example in a line: what it is called, then the rest by name."""
    left = {name: value for name, value in row.items() if value is not None}
    first = [str(left.pop(name)) for name in ("title", "name", "user_id") if name in left][:1]
    for name in ("other_title", "twin_title"):
        if name in left:
            first = [f"{first[0]} ≈ {left.pop(name)}"]
    for name in ("item_id", "other_id", "twin_id"):
        left.pop(name, None)
    rest = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in left.items())
    return f"{first[0]}: {rest}" if first and rest else (first[0] if first else rest)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDE, subsequent_indent=" " * 13)


def _short(line: str) -> str:
    return line if len(line) <= _WIDE else f"{line[: _WIDE - 1]}…"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
