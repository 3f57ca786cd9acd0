"""A finding: what is the matter, how bad it is, what shows it, and what to do; and how bad is bad, for each check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from recsys.explore.attributes import Guessed
from recsys.explore.clusters import Clusters
from recsys.explore.collapse import Collapse
from recsys.explore.drift import Drift
from recsys.explore.duplicates import Duplicates
from recsys.explore.exposure import Exposure
from recsys.explore.leaks import Leaks
from recsys.explore.outliers import Outliers
from recsys.explore.space import Space

Severity = Literal["fine", "note", "warning", "serious"]
SEVERITIES: tuple[Severity, ...] = ("fine", "note", "warning", "serious")
EVIDENCE = 8  # examples of a finding
_SURELY = 3.0  # standard errors


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        check: which finder it is of.
        severity: `fine`; `note`, worth knowing; `warning`, quality is lost; `serious`, do not serve or do not believe.
        what: a sentence or two, with the figures.
        fix: what to do; empty where nothing is to be done.
        figures: by name, as numbers.
        evidence: a few examples, each a row of the finder's DataFrame.
    """

    check: str
    severity: Severity
    what: str
    fix: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)


def of_duplicates(found: Duplicates, space: Space) -> Finding:
    """Items that are there more than once: lists then hold the same thing twice, and its interactions are split."""
    items, groups = len(found.groups), found.groups["group"].nunique()
    share = items / max(1, len(space))
    rule = (
        f"nearer than {found.ratio:.2f} times the {space.k}th neighbour (at the median, cosine {found.cosine:.4f})"
        if found.ratio is not None
        else f"cosine {found.cosine:.4f} or more"
    )
    figures = {
        "items": items,
        "groups": groups,
        "share": share,
        "cosine": found.cosine,
        "ratio": found.ratio,
    }
    if not items:
        return Finding("duplicates", "fine", f"No item is there twice ({rule}).", figures=figures)
    return Finding(
        "duplicates",
        _graded(share, note=0, warning=0.01, serious=0.2),
        f"{items:,} items ({share:.1%}) are near-duplicates, in {groups:,} group{'s' if groups > 1 else ''}: {rule}.",
        "Merge those that are one thing before training, so that they share interactions; or declare an attribute that "
        "names the group, and cap it at one a list (rule `caps`). What is two things wants features that tell them "
        "apart.",
        figures,
        _rows(found.pairs),
    )


def of_clusters(found: Clusters) -> Finding:
    """Whether the items fall into groups at all."""
    number, modularity = len(found.table), found.modularity
    largest = float(found.table["share"].max()) if number else 0.0
    figures = {"clusters": number, "modularity": modularity, "largest": largest}
    what = f"{number} clusters, the largest of {largest:.0%} of the items; modularity {modularity:.2f}."
    if modularity < 0.2 and number > 1:
        return Finding(
            "clusters",
            "note",
            f"The items hardly fall into groups: {what}",
            "Turn --resolution; if no value parts them, the vectors tell items apart by little but popularity.",
            figures,
        )
    table = found.table.reset_index()[["cluster", "name", "size", "tightness", "examples"]]
    return Finding("clusters", "fine", what, figures=figures, evidence=_rows(table))


def of_outliers(found: Outliers, space: Space) -> list[Finding]:
    """Items far from all others, and orphans."""
    far, orphans = len(found.far), len(found.orphans)
    shares = [number / max(1, len(space)) for number in (far, orphans)]
    untaken = int((found.far["taken"] == 0).sum())
    findings = [
        Finding(
            "outliers",
            _graded(shares[0], note=0, warning=0.05, serious=0.5),
            f"{far:,} items ({shares[0]:.1%}) lie far from all others: more than {found.threshold:.2f} times as far "
            f"from their neighbours as those from theirs; nobody took {untaken:,} of them."
            if far
            else f"No item lies far from all others (factor {found.threshold:.2f}).",
            "Look at their attributes: a wrong category, an empty text, or a unit that slipped moves an item away. "
            "Items that nobody took will move when somebody does."
            if far
            else "",
            {"items": far, "share": shares[0], "threshold": found.threshold, "never taken": untaken},
            _rows(found.far),
        )
    ]
    in_lists = " and in no user's list" if len(space.users) else ""
    findings.append(
        Finding(
            "orphans",
            _graded(shares[1], note=0.01, warning=0.4, serious=0.9),
            f"{orphans:,} items ({shares[1]:.1%}) are among no other item's {space.k} nearest{in_lists}.",
            "Nothing leads to them: give them a place by rule (`quotas`, `freshness`), or features that tell what they "
            "are like."
            if shares[1] > 0.01
            else "",
            {"items": orphans, "share": shares[1]},
            _rows(found.orphans),
        )
    )
    return findings


def of_exposure(found: Exposure, space: Space) -> list[Finding]:
    """Hubs, items that are never recommended, dead ones, and popularity in lengths."""
    top = int(found.hubs["neighbour_of"].max()) if len(found.hubs) else 0
    findings = [
        Finding(
            "hubs",
            _graded(found.hubness, note=1.5, warning=4, serious=20),
            f"Skewness of how often items are neighbours: {found.hubness:.1f}; one item is among the {space.k} nearest "
            f"of {top:,}.",
            "A few items are like everything. Where few took them, keep them out of similar lists by filter until more "
            "is known; else train with more negatives, which push apart what has nothing in common."
            if found.hubness > 1.5
            else "",
            {"hubness": found.hubness, "most": top},
            _rows(found.hubs[["item_id", "title", "neighbour_of", "taken"]]),
        )
    ]
    if found.users:
        reached = found.coverage / max(found.reachable, 1e-30)
        findings.append(
            Finding(
                "never recommended",
                _graded(1 - reached, note=0.5, warning=0.9, serious=0.99),
                f"{len(found.never):,} items ({1 - found.coverage:.1%}) are in the list of none of {found.users:,} "
                f"users; Gini's coefficient of how often items are is {found.gini:.2f}.",
                "Train with more negatives drawn evenly (`uniform` of SampledSoftmax), or widen lists by rule "
                "(`diversity`, `freshness`, `quotas`)."
                if reached < 0.5
                else "",
                {"items": len(found.never), "coverage": found.coverage, "gini": found.gini, "users": found.users},
                _rows(found.never[["item_id", "title", "taken", "neighbour_of"]]),
            )
        )
    follows, scores = found.length_follows, found.score_follows
    said = "all alike" if follows is None else f"{follows:.2f} with an item's interactions (Spearman)"
    strongest = max(abs(follows or 0.0), abs(scores or 0.0))
    findings.append(
        Finding(
            "popularity",
            _graded(strongest, note=0.8, warning=0.95, serious=2),
            f"Lengths correlate {said}"
            + (f", mean scores {scores:.2f}" if scores is not None else "")
            + (": the popular wins before anybody is asked." if strongest > 0.8 else "."),
            "Use vectors of length 1 (`architecture.unit`), or arrange lists by rule (`quotas`, `diversity`)."
            if strongest > 0.8
            else "",
            {"length": follows, "score": scores},
        )
    )
    if len(found.dead):
        findings.append(
            Finding(
                "dead items",
                "serious",
                f"{len(found.dead):,} items have a vector of length 0: no search can rank them.",
                "Train again; an item tower that answers 0 has died or was never told these items' features.",
                {"items": len(found.dead)},
                _rows(found.dead[["item_id", "title", "taken"]]),
            )
        )
    return findings


def of_collapse(found: Collapse, space: Space) -> list[Finding]:
    """Whether the vectors use their space, and whether histories and vectors belong together."""
    most = min(found.of, max(1, len(space) - 1))
    share = found.rank / most
    first, dead = float(found.directions[0]), int(found.dimensions["unused"].sum())
    grades = [_graded(-share, note=-0.3, warning=-0.2, serious=-0.1), _graded(found.mean_cosine, 0.4, 0.7, 0.9)]
    unused = max(dead, found.unused - (found.of - most))  # n items lie in n − 1 directions at most: that is no fault
    grades.append(_graded(unused / found.of, note=0, warning=0.2, serious=0.5))
    worst = max(grades, key=SEVERITIES.index)
    dimensions = found.dimensions[found.dimensions["unused"]].reset_index()
    findings = [
        Finding(
            "collapse",
            worst,
            f"Effective rank {found.rank:.1f} of {most}; the first direction holds {first:.0%} of the variance; "
            f"{unused} of {found.of} directions hold next to nothing. Mean cosine {found.mean_cosine:.2f}, uniformity "
            f"{found.uniformity:.2f} ({found.ideal:.2f} if even).",
            "The vectors use a part of their space: train with more negatives, a lower learning rate or another "
            "temperature; if quality is as wanted, take fewer dimensions."
            if worst != "fine"
            else "",
            {
                "effective_rank": found.rank,
                "dimension": found.of,
                "first_direction": first,
                "unused_directions": unused,
                "unused_dimensions": dead,
                "mean_cosine": found.mean_cosine,
                "uniformity": found.uniformity,
            },
            _rows(dimensions) if dead else [],
        )
    ]
    if found.alignment is not None and found.coherence is not None and found.deviations is not None:
        unlike = found.deviations < _SURELY or found.coherence < 0.02
        weak = not unlike and found.coherence < 0.1
        findings.append(
            Finding(
                "coherence",
                "serious" if unlike else "warning" if weak else "fine",
                f"Items that users took one after the other lie {max(found.coherence, 0.0):.0%} nearer together than "
                f"such items paired at random (alignment {found.alignment:.2f} against {found.apart:.2f}, "
                f"{found.deviations:.0f} standard errors)" + (": the histories say nothing." if unlike else "."),
                "Vectors and histories are not of the same items: rows or ids were shuffled between training and "
                "sealing, or the towers are untrained. Prepare, fit and seal again from one dataset."
                if unlike
                else "Train longer, or look at the learning curve: the vectors hardly know the histories."
                if weak
                else "",
                {"alignment": found.alignment, "at_random": found.apart, "coherence": found.coherence},
            )
        )
    return findings


def of_attributes(found: Sequence[Guessed], space: Space) -> list[Finding]:
    """What neighbours say of missing values, and whether they know anything of attributes."""
    findings = []
    for one in found:
        error = math.sqrt(max(one.majority * (1 - one.majority), 1e-4) / max(1, one.held_out))
        knows = one.accuracy > one.majority + _SURELY * error
        measured = f"right for {one.accuracy:.0%} of {one.held_out:,} items held out, the most frequent value for " + (
            f"{one.majority:.0%}"
        )
        how = "" if one.hidden else " (an upper bound: their vectors may hold the value)"
        figures = {
            "accuracy": one.accuracy,
            "majority": one.majority,
            "held_out": one.held_out,
            "missing": len(one.missing),
            "suspects": len(one.suspects),
        }
        missing, suspects = len(one.missing), len(one.suspects)
        what = f"{one.name}: neighbours are {measured}{how}."
        if missing:
            what += f" {missing:,} items have none."
        if suspects and knows:
            what += f" {suspects:,} items have another one than their neighbours agree on."
        findings.append(
            Finding(
                "attributes",
                "note" if missing or (suspects and knows) or not knows else "fine",
                what,
                f"The vectors know nothing of {one.name}: do not guess it from neighbours."
                if not knows
                else "Fill the missing values with the guesses (`explore.attributes.guess`), the surest first."
                if missing
                else "Look at them: either the value is wrong, or the item is alone of its kind."
                if suspects
                else "",
                figures,
                _rows(one.missing if missing and knows else one.suspects if knows else one.missing[:0]),
            )
        )  # fmt: skip
    return findings


def of_drift(found: Drift, space: Space, old: Space) -> list[Finding]:
    """How far a bundle is from an older one."""
    items = found.comparison.items
    figures = {
        "shared_items": found.comparison.shared_items,
        "churn": found.churn,
        "list_churn": found.list_churn,
        "centroid": found.centroid,
        "length": found.length,
        "raw": items.raw,
        "rotated": items.rotated,
        "retitled": found.retitled,
    }
    lists = "" if found.list_churn is None else f", and {found.list_churn:.0%} of a user's list"
    severity = max(
        _graded(found.churn, note=0.2, warning=0.7, serious=0.95),
        _graded(found.list_churn or 0.0, note=0.3, warning=0.8, serious=0.97),
        key=SEVERITIES.index,
    )
    findings = [
        Finding(
            "drift",
            severity,
            f"Since {old.name}, {found.churn:.0%} of an item's nearest changed on average{lists}; {found.added:,} "
            f"items came, {found.removed:,} went. The centre moved by {found.centroid:.2f} of a length, lengths are "
            f"{found.length:.2f} times what they were. {found.comparison.verdict}",
            {
                "the same": "",
                "the same once rotated": "Whoever stored vectors of the older bundle needs `recsys bundle align`.",
                "nothing": "Whoever stored vectors of the older bundle must embed again; if that is not meant, look "
                "for a changed configuration, seed or dataset.",
            }[found.comparison.meaning],
            figures,
            _rows(found.items) + _rows(found.users)[: EVIDENCE // 2],
        )
    ]
    if found.retitled > 0.01:
        findings.append(
            Finding(
                "ids",
                _graded(found.retitled, note=0, warning=0.01, serious=0.1),
                f"{found.retitled:.1%} of the items in both carry another title than in {old.name}.",
                "Ids mean other items than before: they were numbered or shuffled anew. Prepare from ids that stay.",
                {"retitled": found.retitled},
            )
        )
    return findings


def of_leaks(found: Leaks, space: Space) -> list[Finding]:
    """Test rows in training, near-duplicates across the cut, ids that mean other things."""
    table = found.table
    findings = []
    wrong = [name for name in ("renamed items", "unknown items", "other histories") if table.loc[name, "share"] > 0.001]
    said = "; ".join(f"{int(table.loc[n, 'count']):,} of {int(table.loc[n, 'of']):,} {_tail(table, n)}" for n in wrong)
    findings.append(
        Finding(
            "ids",
            "serious" if wrong else "fine",
            f"The bundle and its dataset do not speak of the same things: {said}."
            if wrong
            else "Items, titles and histories are those of the dataset, by id.",
            "Ids were shuffled, or this is another dataset: seal again from the one that the towers were trained on."
            if wrong
            else "",
            {name: float(cast(float, table.loc[name, "share"])) for name in table.index},
            _rows(found.renamed),
        )
    )
    if found.split is None:
        return [*findings, Finding("leaks", "note", "No split is known, so that nothing was asked about test rows.",
                                   "Seal with --evaluation, whose split the bundle then remembers.")]  # fmt: skip
    late = None not in (found.trained_until, found.allowed_until) and found.trained_until > found.allowed_until  # type: ignore[operator]
    early = int(cast(int, table.loc["items known too early", "count"]))
    twins = int(cast(int, table.loc["twins across the cut", "count"]))
    share = float(cast(float, table.loc["twins across the cut", "share"]))
    if late or early:
        reasons = [f"it saw interactions until {_moment(found.trained_until)}, {_later(found)} after the training part "
                   "ends"] if late else []  # fmt: skip
        reasons += [f"it knew {early:,} items that only held-out interactions have"] if early else []
        findings.append(
            Finding(
                "leaks",
                "serious",
                f"Training saw rows of the test part: {' and '.join(reasons)}.",
                "The evaluation's figures are of what was learnt by heart: fit again with the evaluation's split.",
                {"items known too early": early},
                _rows(found.unlawful),
            )
        )
    else:
        what = "Nothing that is held out was trained on"
        end = f": training ended at {_moment(found.trained_until)}" if found.trained_until is not None else ""
        findings.append(Finding("leaks", "fine", f"{what}{end}, as {found.split} says."))
    findings.append(
        Finding(
            "twins",
            _graded(share, note=0, warning=0.01, serious=0.1),
            f"{twins:,} test targets ({share:.1%}) have a near-duplicate in the history that they are predicted from."
            if twins
            else "No test target has a near-duplicate in its own history.",
            "Merge near-duplicates before the split: a copy of what was taken is no prediction." if twins else "",
            {"twins": twins, "share": share},
            _rows(found.twins),
        )
    )
    return findings


def of_dial(table: pd.DataFrame, kept: float = 0.95) -> Finding:
    """Whether fewer dimensions would do."""
    flat = table[(table["index"] == "Flat") & table["trained"]].sort_values("dimension")
    full = int(table["dimension"].max())
    good = flat[flat["recall@10"] >= kept]
    least = int(good["dimension"].iloc[0]) if len(good) else full
    figures = {f"recall@10 at {row.dimension}": float(cast(float, row[4])) for row in
               flat[["dimension", "index", "trained", "recall@10"]].itertuples()}  # fmt: skip
    smallest, lowest = (
        (int(flat["dimension"].iloc[0]), float(flat["recall@10"].iloc[0])) if len(flat) else (full, float("nan"))
    )
    if least < full:
        return Finding("dial", "note", f"{least} of {full} dimensions find {kept:.0%} or more of what all find.",
                       f"Serve {least} dimensions: {least / full:.0%} of the memory.", figures)  # fmt: skip
    if len(flat) > 1:
        what = f"All {full} dimensions are needed for {kept:.0%} of their neighbours; {smallest} find {lowest:.0%}."
        return Finding("dial", "fine", what, figures=figures)
    return Finding("dial", "fine", f"Training trained {full} dimensions only; shorter prefixes are for show.",
                   figures=figures)  # fmt: skip


def of_index(space: Space) -> Finding | None:
    """Whether the bundle's own index finds what is there; None where no bundle is."""
    if space.bundle is None:
        return None
    said = space.bundle.manifest.content["index"]
    recall = float(said["recall@10"])
    return Finding(
        "index",
        _graded(-recall, note=-0.99, warning=-0.95, serious=-0.7),
        f"The {said['kind']} index finds {recall:.1%} of the ten best (measured when it was built).",
        "Give it more effort or another kind: `recsys index advise`." if recall < 0.99 else "",
        {"recall@10": recall},
    )


def _graded(value: float, note: float, warning: float, serious: float) -> Severity:
    """How bad a value is that grows worse as it grows: each limit is the first value that is not yet so bad."""
    if value > serious:
        return "serious"
    return "warning" if value > warning else "note" if value > note else "fine"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The first rows as JSON values."""
    return [
        {str(name): plain(value) for name, value in row.items()}
        for row in frame.head(EVIDENCE).to_dict(orient="records")
    ]


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy as Python's, and what is not finite as None."""
    if isinstance(value, np.bool_ | bool):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return value


def _tail(table: pd.DataFrame, name: str) -> str:
    return {
        "renamed items": "shared items have another title there",
        "unknown items": "items are unknown there",
        "other histories": "shared users took other things there",
    }[name]


def _moment(milliseconds: int | None) -> str:
    return "" if milliseconds is None else str(pd.Timestamp(milliseconds, unit="ms"))[:16]


def _later(found: Leaks) -> str:
    apart = pd.Timedelta(int(found.trained_until or 0) - int(found.allowed_until or 0), unit="ms")
    return f"{apart.total_seconds() / 86_400:,.1f} days" if apart.days else f"{apart.seconds / 60:.0f} minutes"
