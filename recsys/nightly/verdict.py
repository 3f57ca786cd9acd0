"""The verdict of a night: what was measured and decided, as JSON, as a page for people, as a table for terminals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

from recsys.evaluate.ranking import SLICE_K
from recsys.nightly.gates import Outcome, percent, signed
from recsys.nightly.measured import CANDIDATE, LIVE
from recsys.pages import environment, plots


@dataclass(frozen=True)
class Verdict:
    """What there is to say of a night; what was not reached is left empty.

    Figures that are not finite are None in it, since JSON knows no others.

    Attributes:
        night: its name.
        outcomes: what the gates said, in the order they were asked.
        mode: whether training began anew or from the live weights.
        mode_why: why that.
        candidate: the candidate bundle's id; None if the night was refused before there was one.
        live: the live bundle's id.
        results: of the evaluation, as `recsys.evaluate.report.to_json` has them: `conditions` and `results` by name.
        curves: what training logged, by name: (epoch, value).
        data: what `prepare` counted of tonight's rows.
        rejected: an example of a rejected row for each reason.
        exposure: what changes for users, of `recsys.nightly.exposure.exposure`.
        seconds: what each step took.
        versions: of the code and what it stands on.
    """

    night: str
    outcomes: tuple[Outcome, ...]
    mode: Literal["full", "warm"] = "full"
    mode_why: str = ""
    candidate: str | None = None
    live: str | None = None
    results: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float | None]]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    exposure: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        curves = {name: [(int(at), _finite(value)) for at, value in points] for name, points in self.curves.items()}
        object.__setattr__(self, "curves", curves)
        object.__setattr__(self, "outcomes", tuple(_plain(outcome) for outcome in self.outcomes))

    @property
    def passed(self) -> bool:
        """Whether the candidate may go live: it got as far as being sealed, and no gate refused it."""
        return self.candidate is not None and not self.refusals

    @property
    def refusals(self) -> list[Outcome]:
        """The gates that refused."""
        return [outcome for outcome in self.outcomes if not outcome.passed]

    @property
    def why(self) -> str:
        """One sentence."""
        if self.refusals:
            first, *others = self.refusals
            more = f" (and {', '.join(one.gate for one in others)})" if others else ""
            return f"{first.gate}{more}: {first.said}"
        if self.candidate is None:
            return "no bundle was sealed"
        measured = sum(outcome.measured for outcome in self.outcomes)
        skipped = len(self.outcomes) - measured
        return f"all {measured} gates passed" + (f", {skipped} off or without anything to measure" if skipped else "")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        said = json.loads(text)
        for key in ("passed", "why"):
            del said[key]
        outcomes = tuple(Outcome(**outcome) for outcome in said.pop("outcomes"))
        return cls(outcomes=outcomes, **said)


def to_json(verdict: Verdict) -> str:
    """All of it, with `passed` and `why` for who only wants these."""
    said = {"night": verdict.night, "passed": verdict.passed, "why": verdict.why} | asdict(verdict)
    return json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False)


def text(verdict: Verdict) -> str:
    """The gates as an aligned table, after the verdict in one line."""
    rows = [["", "gate", "candidate", "live", "limit", ""]]
    rows += [
        [mark(one), one.gate, amount(one.figure, one), amount(one.live, one), limit(one), one.said]
        for one in verdict.outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:5], widths[2:]), row[5]])
        for row in rows
    ]
    return "\n".join([f"{'passed' if verdict.passed else 'refused'}: {verdict.why}", "", *map(str.rstrip, lines)])


def page(verdict: Verdict) -> str:
    """One self-contained HTML page: nothing is fetched and nothing runs; equal verdicts give equal bytes.

    Whatever a catalogue or a log may say is escaped by the template.
    """
    templates = environment("recsys.nightly")
    templates.filters |= {"percent": percent, "moment": _moment, "duration": _duration, "title": _title}
    results = verdict.results.get("results", {})
    return templates.get_template("verdict.html.j2").render(
        verdict=verdict,
        gates=[
            (one, mark(one), amount(one.figure, one), amount(one.live, one), limit(one)) for one in verdict.outcomes
        ],
        conditions=verdict.results.get("conditions"),
        quality=plots.intervals({name: one["accuracy"].get(_NDCG) for name, one in results.items()}),
        results=results,
        names={CANDIDATE: "candidate", LIVE: "live"},
        slices=_slices(results),
        curves={name: plots.curve(points) for name, points in verdict.curves.items() if points},
        k=SLICE_K,
    )


def mark(outcome: Outcome) -> str:
    """✓, ✗, or – where nothing was measured."""
    return "✗" if not outcome.passed else "✓" if outcome.measured else "–"


def amount(value: float | None, outcome: Outcome) -> str:
    """A figure in its gate's unit."""
    if value is None:
        return "–"
    if outcome.unit == "share":
        return percent(value)
    if outcome.unit == "bytes":
        power = min(4, int(math.log(value, 1000))) if value >= 1 else 0
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
    number = signed(value, ".4f" if outcome.sense == ">" else ".3g")
    return f"{number} {outcome.unit}".rstrip()


def limit(outcome: Outcome) -> str:
    """The limit, with how the figure must stand to it."""
    return "–" if outcome.limit is None else f"{outcome.sense} {amount(outcome.limit, outcome)}"


_NDCG = f"ndcg@{SLICE_K}"


def _slices(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Slices that somebody asks in, with candidate's and live's interval on one scale."""
    named = {"candidate": results.get(CANDIDATE), "live": results.get(LIVE)}
    of = {name: one["slices"] for name, one in named.items() if one is not None}
    found = []
    for name, part in of.get("candidate", {}).items():
        if part["num_queries"]:
            means = {who: slices.get(name, {}).get("metrics", {}).get(_NDCG) for who, slices in of.items()}
            found.append({"name": name, "queries": part["num_queries"], "users": part["num_users"], "means": means})
    drawn = plots.intervals({(at, who): mean for at, one in enumerate(found) for who, mean in one["means"].items()})
    for at, one in enumerate(found):
        one["drawn"] = {who: drawn[at, who] for who in one["means"] if (at, who) in drawn}
    return found


def _plain(outcome: Outcome) -> Outcome:
    said = vars(outcome)
    return Outcome(**said | {name: _finite(said[name]) for name in ("figure", "limit", "live")})


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(" ", "minutes")[:16]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _title(item: dict[str, Any]) -> str:
    """What to call an item: the first text that an answer shows of it, or its id."""
    return next((value for value in item["shown"].values() if isinstance(value, str)), str(item["id"]))
