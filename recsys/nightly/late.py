"""The gates of a sealed candidate: what the newest interactions, the live bundle and its own answers say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.evaluate.metrics import Mean
from recsys.evaluate.ranking import SLICE_K, Result
from recsys.nightly import measures
from recsys.nightly.gates import Gates, Outcome, off, percent, signed, unmeasured
from recsys.nightly.measures import Shift

_NDCG = f"ndcg@{SLICE_K}"
_COVERAGE = f"coverage@{SLICE_K}"


@dataclass(frozen=True)
class Sealed:
    """What is measured of a bundle as a whole.

    Attributes:
        size: bytes of all its files.
        recall: share of the true ten nearest that its index finds; None if nobody has a history to ask for.
        seconds: what opening and checking it took.
        violations: what `recsys.nightly.rules.rules` found; None if they were not looked for.
    """

    size: int
    recall: float | None = None
    seconds: float | None = None
    violations: Sequence[str] | None = None


def quality(
    gates: Gates,
    candidate: Result,
    live: Result | None,
    popular: Mapping[str, Result],
    *,
    incomparable: str | None = None,
) -> list[Outcome]:
    """What the newest held-out interactions say.

    Args:
        gates: the limits.
        candidate: tonight's model.
        live: the live bundle under the same conditions; None if there is none.
        popular: the popularity baselines under the same conditions, by name.
        incomparable: why live's figures mean nothing here, such as that it learnt what is asked.
    """
    beside = None if incomparable else live
    return [
        _popularity(gates.min_gain, candidate, popular),
        _live(gates.tolerance, candidate, live, incomparable),
        _slices(gates.max_slice_loss, candidate, beside),
        _coverage(gates, candidate, beside),
    ]


def sealed(gates: Gates, candidate: Sealed, live: Sealed | None, shift: Shift | None) -> list[Outcome]:
    """What the sealed bundle says: its index, its answers, its size.

    Args:
        gates: the limits.
        candidate: the bundle that would go live.
        live: the one that is; None if there is none.
        shift: how far their answers are apart.
    """
    return [
        _recall(gates.min_recall, candidate, live),
        _overlap(gates.min_overlap, shift),
        _score_shift(gates.max_score_shift, shift),
        _rules(gates.max_violations, candidate),
        _size(gates.max_size, candidate, live),
        _load_time(gates.max_load_seconds, candidate),
    ]


def _popularity(limit: float | None, candidate: Result, popular: Mapping[str, Result]) -> Outcome:
    gate = "popularity"
    if limit is None:
        return off(gate)
    if not popular:
        return Outcome(gate, False, None, limit, "no popularity baseline was measured: add one to the evaluation")
    name = max(popular, key=lambda one: float(np.mean(popular[one].each)))
    difference = measures.paired(candidate, popular[name])
    said = f"NDCG@10 {np.mean(candidate.each):.4f}, {name!r} {np.mean(popular[name].each):.4f}: {_interval(difference)}"
    low = _low(difference)
    passed = low is not None and low > limit
    if low is None:
        said += ": with one user nothing can be told; lengthen the test span"
    elif difference.value <= limit:
        said += ": it knows no more than what is popular; are the labels right, did the training converge?"
    elif not passed:
        said += ": not beyond chance; lengthen the test span, or train better"
    return Outcome(gate, passed, low, limit, said, sense=">")


def _live(limit: float | None, candidate: Result, live: Result | None, incomparable: str | None) -> Outcome:
    gate = "live"
    if limit is None:
        return off(gate)
    if incomparable:
        said = f"candidate and live cannot be compared: {incomparable}"
        return Outcome(gate, False, None, -limit, said, unit="share", sense="≥")
    if live is None:
        return unmeasured(gate, "there is no live bundle; the popularity baselines decide alone")
    theirs = float(np.mean(live.each))
    difference = measures.paired(candidate, live)
    said = (
        f"NDCG@10 {np.mean(candidate.each):.4f}, live {theirs:.4f}: {_interval(difference)}, over the same "
        f"{len(live.each):,} queries"
    )
    low, high = _low(difference), difference.value + (difference.half_width or 0)
    passed = low is not None and low >= -limit * theirs
    if low is not None and low < 0 < theirs:
        said += f"; at worst {percent(-low / theirs)} below live, {percent(limit)} is let through"
    if low is None:
        said += ": with one user nothing can be told; lengthen the test span"
    elif high < -limit * theirs:
        said += ": it is worse beyond chance; look at the slices and the curves"
    elif not passed:
        said += ": too few queries to rule out a larger loss; lengthen the test span"
    figure = None if low is None else low / theirs if theirs else 0.0
    return Outcome(gate, passed, figure, -limit, said, unit="share", sense="≥")


def _slices(limit: float | None, candidate: Result, live: Result | None) -> Outcome:
    gate = "slices"
    if limit is None:
        return off(gate)
    if live is None:
        return unmeasured(gate, "there is no live bundle to compare slices with")
    judged: list[tuple[float, float, str]] = []
    for name, part in candidate.slices.items():
        ours, theirs = part.metrics.get(_NDCG), (live.slices[name].metrics if name in live.slices else {}).get(_NDCG)
        if ours is None or theirs is None or not theirs.value or ours.half_width is None or theirs.half_width is None:
            continue
        # As if the two were independent; they rise and fall together, so the interval is wider than it need be.
        half = math.hypot(ours.half_width, theirs.half_width)
        low, high = ((ours.value - theirs.value + side * half) / theirs.value for side in (-1, 1))
        judged.append((high, low, name))
    if not judged:
        return unmeasured(gate, "no slice has enough users in the test span")
    highest, lowest, worst = min(judged)
    refused = [name for high, _, name in judged if high < -limit]
    figures = [result.slices[worst].metrics[_NDCG].value for result in (candidate, live)]
    said = f"worst of {len(judged)} is {worst!r} with NDCG@10 {figures[0]:.4f}, live {figures[1]:.4f}"
    said += f": {percent(lowest)} to {percent(highest)}"
    if refused:
        others = f", and {len(refused) - 1} more are" if len(refused) > 1 else ""
        said += f", worse beyond chance{others}: look at that part of the log and of the catalogue"
    return Outcome(gate, not refused, highest, -limit, said, unit="share", sense="≥")


def _coverage(gates: Gates, candidate: Result, live: Result | None) -> Outcome:
    gate, least, of_live = "coverage", gates.min_coverage, gates.min_live_coverage
    if least is None and of_live is None:
        return off(gate)
    asked = candidate.conditions
    possible = min(1.0, SLICE_K * asked.num_queries / asked.num_candidates)
    ours = (candidate.catalogue[_COVERAGE] or 0.0) / possible
    theirs = None if live is None else (live.catalogue[_COVERAGE] or 0.0) / possible
    limit = max(least or 0.0, (of_live or 0.0) * (theirs or 0.0))
    said = f"{percent(ours)} of the items that the test queries' top 10 have room for"
    said += "" if theirs is None else f", live {percent(theirs)}"
    if not (passed := ours >= limit):
        said += ": the same few items for everyone; look at the vectors, and at who gained exposure"
    return Outcome(gate, passed, ours, limit, said, live=theirs, unit="share", sense="≥")


def _recall(limit: float | None, candidate: Sealed, live: Sealed | None) -> Outcome:
    gate = "ANN recall"
    if limit is None:
        return off(gate)
    if candidate.recall is None:
        return unmeasured(gate, "nobody has a history to ask the index for")
    said = f"the index finds {percent(candidate.recall)} of the ten that exact search finds"
    if not (passed := candidate.recall >= limit):
        said += ": choose another kind with `recsys index advise`"
    return Outcome(gate, passed, candidate.recall, limit, said, live.recall if live else None, "share", "≥")


def _overlap(limit: float | None, shift: Shift | None) -> Outcome:
    gate = "overlap"
    if limit is None:
        return off(gate)
    if shift is None or shift.overlap is None:
        return unmeasured(gate, "there is no live bundle with users in common")
    said = f"{percent(shift.overlap)} of the top 10 stays, the mean of {shift.users:,} users"
    if not (passed := shift.overlap >= limit):
        said += ": nearly everything changes at once; were ids or users mixed up? Look at the examples"
    return Outcome(gate, passed, shift.overlap, limit, said, unit="share", sense="≥")


def _score_shift(limit: float | None, shift: Shift | None) -> Outcome:
    gate = "score shift"
    if limit is None:
        return off(gate)
    if shift is None or shift.score_ratio is None or shift.ks_distance is None:
        return unmeasured(gate, "there is no live bundle with scores to compare")
    ratio = shift.score_ratio
    factor = max(ratio, 1 / ratio if ratio else math.inf)
    said = f"the median top-10 score is {ratio:.2f} times live's; their distributions differ by {shift.ks_distance:.2f}"
    said += " (Kolmogorov–Smirnov, 0 to 1)"
    if not (passed := factor <= limit):
        said += ": whoever thresholds scores must know; did the training diverge?"
    return Outcome(gate, passed, factor, limit, said, unit="×")


def _rules(limit: int | None, candidate: Sealed) -> Outcome:
    gate = "rules"
    if limit is None:
        return off(gate)
    if candidate.violations is None:
        return Outcome(gate, False, None, limit, "the rules were not checked: a bundle never goes live without")
    number = len(candidate.violations)
    said = "seen items stay out, filters hold, k is filled, scores descend in every answer of the sample"
    if number:
        said = f"broken in {number:,} of the sample's answers, first {candidate.violations[0]}"
    return Outcome(gate, number <= limit, number, limit, said)


def _size(limit: float | None, candidate: Sealed, live: Sealed | None) -> Outcome:
    gate = "size"
    if limit is None:
        return off(gate)
    if live is None:
        return unmeasured(gate, f"there is no live bundle; this one has {candidate.size:,} bytes")
    allowed = limit * live.size
    said = f"{candidate.size:,} bytes, {candidate.size / live.size:.2f} times live's {live.size:,}"
    if not (passed := candidate.size <= allowed):
        said += ": has the kind of index changed, or a table doubled? Is there memory for it?"
    return Outcome(gate, passed, candidate.size, allowed, said, live.size, "bytes")


def _load_time(limit: float | None, candidate: Sealed) -> Outcome:
    gate = "load time"
    if limit is None:
        return off(gate)
    if candidate.seconds is None:
        return unmeasured(gate, "it was not opened")
    said = f"opening and checking the bundle took {candidate.seconds:.1f} s"
    if not (passed := candidate.seconds <= limit):
        said += ": servers would take as long to change over; is the disk slow, or the machine busy?"
    return Outcome(gate, passed, candidate.seconds, limit, said, unit="s")


def _low(difference: Mean) -> float | None:
    return None if difference.half_width is None else difference.value - difference.half_width


def _interval(difference: Mean) -> str:
    """A difference and its 95 % interval."""
    said = signed(difference.value, "+.4f")
    if difference.half_width is None:
        return said
    low, high = (signed(difference.value + side * difference.half_width, "+.4f") for side in (-1, 1))
    return f"{said} ({low} to {high})"
