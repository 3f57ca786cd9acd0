"""The gates that stop a night early: what tonight's rows and the training say before anybody is asked anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recsys.data.dataset import Dataset
from recsys.explore.collapse import effective_rank, mean_cosine
from recsys.nightly import measures
from recsys.nightly.gates import Gates, Outcome, Sense, Unit, off, percent, signed, unmeasured

Curves = Mapping[str, Sequence[tuple[int, float | None]]]
_QUARTER_DAY = 0.25  # less than this of a log says more about the hour than about the day
_FEW = 30  # rows a category should have made: far fewer than these come by chance one night in a hundred million


def data(gates: Gates, added: Mapping[str, Any], base: Dataset | None, dataset: Dataset) -> list[Outcome]:
    """What can be said of tonight's rows, before anything is trained on them.

    Args:
        gates: the limits.
        added: what `prepare` counted of tonight's rows: `added` in the dataset's manifest.
        base: what they were added to; None if there was nothing.
        dataset: both together.
    """
    return [
        _rejected(gates.max_rejected, added),
        _volume(gates, added, base),
        _categories(gates, base, dataset),
        _catalogue(gates.max_features_lost, base, dataset),
    ]


def training(gates: Gates, curves: Curves, vectors: np.ndarray, trained: np.ndarray) -> list[Outcome]:
    """What can be said of a model before it is asked anything.

    Args:
        gates: the limits.
        curves: `train_loss` and whatever else was logged, by epoch; None stands for what is not finite.
        vectors: float32 [N, D], of the items.
        trained: bool [N], the items that training knows.
    """
    return [_training(gates.max_loss_rise, curves, int(trained.sum())), _vectors(gates, vectors, trained)]


def _rejected(limit: float | None, added: Mapping[str, Any]) -> Outcome:
    """Judges the log and the tables of items and users, each by itself, and speaks of the worst."""
    gate = "rejected rows"
    if limit is None:
        return off(gate)
    parts = [("rows", added["interactions_read"], added["rejected"])]
    parts += [(f"rows of the table of {name}", one["read"], one["rejected"]) for name, one in added["tables"].items()]
    shares = [(sum(reasons.values()) / read, what, read, reasons) for what, read, reasons in parts if read]
    if not shares:
        return unmeasured(gate, "no row was read tonight")
    share, what, read, reasons = max(shares, key=lambda part: part[0])
    said = f"{sum(reasons.values()):,} of tonight's {read:,} {what} could not be used ({percent(share)})"
    if reasons:
        reason = max(reasons, key=lambda name: reasons[name])
        said += f", {reasons[reason]:,} of them for {reason!r}"
    if not (passed := share <= limit):
        said += ": look at the rejected rows below and mend the source"
    return Outcome(gate, passed, share, limit, said, unit="share")


def _volume(gates: Gates, added: Mapping[str, Any], base: Dataset | None) -> Outcome:
    gate = "volume"
    if gates.min_volume is None and gates.max_volume is None:
        return off(gate)
    if base is None:
        return unmeasured(gate, "there is no earlier dataset to say how many rows are usual")
    found = measures.volume(added, base)
    if found is None:
        return unmeasured(gate, "without times, or without a row newer than the last, there are no rows a day")
    if min(found.tonight_days, found.usual_days) < _QUARTER_DAY:
        return unmeasured(gate, "less than six hours of log say nothing about a day")
    ratio = found.tonight / found.usual
    few = gates.max_volume is None or (gates.min_volume is not None and ratio < 1)
    limit = gates.min_volume if few else gates.max_volume
    passed = limit is None or (ratio >= limit if few else ratio <= limit)
    said = (
        f"{found.tonight:,.0f} rows a day tonight, {ratio:.2f} times the {found.usual:,.0f} of the "
        f"{found.usual_days:.2g} days before"
    )
    if not passed:
        said += ": is tonight's export whole?" if few else ": was something exported twice, or is a robot at work?"
    return Outcome(gate, passed, ratio, limit, said, unit="×", sense="≥" if few else "≤")


def _categories(gates: Gates, base: Dataset | None, dataset: Dataset) -> Outcome:
    gate, limit = "categories", gates.min_category
    if limit is None:
        return off(gate)
    if base is None:
        return unmeasured(gate, "there is no earlier dataset to say which categories are usual")
    large = [one for one in measures.categories(base, dataset) if one.before >= gates.category_share]
    if not large:
        return unmeasured(gate, "items have no attribute that groups them, or no value of it is large")
    judged = [one for one in large if one.expected >= _FEW]
    if not judged:
        return unmeasured(gate, "too few rows came tonight to miss a category among them")
    worst = min(judged, key=lambda one: one.after / one.before)
    gone = [one for one in judged if one.after < limit * one.before]
    said = (
        f"{worst.attribute} {worst.value!r} made {percent(worst.before)} of the interactions of base's newest "
        f"{measures.RECENT} days and {percent(worst.after)} of tonight's"
    )
    if gone:
        others = f" and {len(gone) - 1} more with it" if len(gone) > 1 else ""
        said += f"; about {worst.expected:,.0f} rows are missing{others}: look at the export and the catalogue"
    else:
        said += f", the largest fall among {len(judged)} categories"
    return Outcome(gate, not gone, worst.after / worst.before, limit, said, unit="×", sense="≥")


def _catalogue(limit: float | None, base: Dataset | None, dataset: Dataset) -> Outcome:
    gate = "catalogue"
    if limit is None:
        return off(gate)
    if base is None:
        return unmeasured(gate, "there is no earlier catalogue to compare with")
    lost = measures.features_lost(base, dataset)
    if not lost:
        return unmeasured(gate, "items had no features before")
    name = max(lost, key=lambda one: lost[one])
    said = f"{percent(lost[name])} of the items that had a {name!r} have none tonight"
    passed = lost[name] <= limit
    if not any(lost.values()):
        said = "no item lost a feature that it had"
    else:
        said += ", the most of any feature" if passed else ": look at the catalogue's export"
    return Outcome(gate, passed, lost[name], limit, said, unit="share")


def _training(limit: float | None, curves: Curves, num_items: int) -> Outcome:
    gate = "training"
    if limit is None:
        return off(gate)
    for name, points in curves.items():
        for epoch, value in points:
            if value is None or not math.isfinite(value):
                said = f"{name} is not finite in epoch {epoch}: the training diverged; lower the learning rate"
                return Outcome(gate, False, None, limit, said, unit="share")
    if not (losses := [value for _, value in curves.get("train_loss", ()) if value is not None]):
        return unmeasured(gate, "the training left no losses")
    guessing = math.log(max(2, num_items))  # the cross-entropy of giving every item the same chance
    against = min(losses[0], guessing)
    rise = losses[-1] / against - 1 if against > 0 else 0.0
    said = f"the training loss went from {losses[0]:.3f} to {losses[-1]:.3f}; guessing costs {guessing:.3f}"
    if not (passed := rise <= limit):
        said += ": the training diverged or learnt nothing; look at the curves and lower the learning rate"
    return Outcome(gate, passed, rise, limit, said, unit="share")


def _vectors(gates: Gates, vectors: np.ndarray, trained: np.ndarray) -> Outcome:
    gate = "vectors"
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        said = f"{int((~finite).sum()):,} item vectors are not finite, the first at row {row}: the training diverged"
        return Outcome(gate, False, None, None, said)
    known = vectors[trained]
    possible = min(known.shape[1], len(known) - 1)
    if possible < 1:
        return unmeasured(gate, "training knows fewer than two items")
    rank, cosine = effective_rank(known), mean_cosine(known)
    equal, spread = measures.duplicates(known), measures.length_spread(known)
    said = (
        f"effective rank {rank:.1f} of {possible}, mean cosine {signed(cosine, '.2f')}, {percent(equal)} equal to "
        f"another, longest {spread:.1f} times the median"
    )
    checks: list[tuple[float | None, float, Sense, Unit, str]] = [
        (gates.min_effective_rank, rank / possible, "≥", "share", "they lie in too few directions: collapsed"),
        (gates.max_cosine, cosine, "≤", "", "all items point the same way: collapsed"),
        (gates.max_duplicates, equal, "≤", "share", "items that training should have told apart are equal"),
        (gates.max_length_spread, spread, "≤", "×", "single items are far too long and would be shown to everyone"),
    ]
    asked = [
        Outcome(gate, figure >= limit if sense == "≥" else figure <= limit, figure, limit, meaning, None, unit, sense)
        for limit, figure, sense, unit, meaning in checks
        if limit is not None
    ]
    if not asked:
        return off(gate)
    failed = [one for one in asked if not one.passed]
    if not failed:
        return replace(asked[0], said=said)
    return replace(failed[0], said=f"{said}: {'; '.join(one.said for one in failed)}; look at the curves")
