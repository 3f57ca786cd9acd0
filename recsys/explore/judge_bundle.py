"""What is the matter with a bundle as a whole, graded: its directions, its index, what changed, what leaked."""

from __future__ import annotations

from typing import cast

import pandas as pd

from recsys.explore.collapse import Collapse
from recsys.explore.drift import Drift
from recsys.explore.findings import EVIDENCE, SEVERITIES, SURELY, Finding, examples, graded
from recsys.explore.leaks import Leaks
from recsys.explore.space import Space

_TOLD = {
    "renamed items": "shared items have another title there",
    "unknown items": "items are unknown there",
    "other histories": "shared users took other things there",
}  # what `Leaks.table` counts, where it should count nothing


def of_collapse(found: Collapse, space: Space) -> list[Finding]:
    """Whether the vectors use their space, and whether histories and vectors belong together."""
    most = min(found.of, max(1, len(space) - 1))
    share = found.rank / most
    first, dead = float(found.directions[0]), int(found.dimensions["unused"].sum())
    grades = [graded(-share, note=-0.3, warning=-0.2, serious=-0.1), graded(found.mean_cosine, 0.4, 0.7, 0.9)]
    unused = max(dead, found.unused - (found.of - most))  # n items lie in n − 1 directions at most: that is no fault
    grades.append(graded(unused / found.of, note=0, warning=0.2, serious=0.5))
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
            examples(dimensions) if dead else [],
        )
    ]
    if found.alignment is not None and found.coherence is not None and found.deviations is not None:
        unlike = found.deviations < SURELY or found.coherence < 0.02
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


def of_index(space: Space) -> Finding | None:
    """Whether the bundle's own index finds what is there; None where no bundle is."""
    if space.bundle is None:
        return None
    said = space.bundle.manifest.content["index"]
    recall = float(said["recall@10"])
    return Finding(
        "index",
        graded(-recall, note=-0.99, warning=-0.95, serious=-0.7),
        f"The {said['kind']} index finds {recall:.1%} of the ten best (measured when it was built).",
        "Give it more effort or another kind: `recsys index advise`." if recall < 0.99 else "",
        {"recall@10": recall},
    )


def of_dial(table: pd.DataFrame, kept: float = 0.95) -> Finding:
    """Whether fewer dimensions would do."""
    flat = table[(table["index"] == "Flat") & table["trained"]].sort_values("dimension")
    full = int(table["dimension"].max())
    good = flat[flat["recall@10"] >= kept]
    least = int(good["dimension"].iloc[0]) if len(good) else full
    figures = {
        f"recall@10 at {row.dimension}": float(cast(float, row[4]))
        for row in flat[["dimension", "index", "trained", "recall@10"]].itertuples()
    }
    smallest, lowest = (
        (int(flat["dimension"].iloc[0]), float(flat["recall@10"].iloc[0])) if len(flat) else (full, float("nan"))
    )
    if least < full:
        return Finding(
            "dial",
            "note",
            f"{least} of {full} dimensions find {kept:.0%} or more of what all find.",
            f"Serve {least} dimensions: {least / full:.0%} of the memory.",
            figures,
        )
    if len(flat) > 1:
        what = f"All {full} dimensions are needed for {kept:.0%} of their neighbours; {smallest} find {lowest:.0%}."
        return Finding("dial", "fine", what, figures=figures)
    return Finding(
        "dial", "fine", f"Training trained {full} dimensions only; shorter prefixes are for show.", figures=figures
    )


def of_drift(found: Drift, old: Space) -> list[Finding]:
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
        graded(found.churn, note=0.2, warning=0.7, serious=0.95),
        graded(found.list_churn or 0.0, note=0.3, warning=0.8, serious=0.97),
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
            examples(found.items) + examples(found.users)[: EVIDENCE // 2],
        )
    ]
    if found.retitled > 0.01:
        findings.append(
            Finding(
                "ids",
                graded(found.retitled, note=0, warning=0.01, serious=0.1),
                f"{found.retitled:.1%} of the items in both carry another title than in {old.name}.",
                "Ids mean other items than before: they were numbered or shuffled anew. Prepare from ids that stay.",
                {"retitled": found.retitled},
            )
        )
    return findings


def of_leaks(found: Leaks) -> list[Finding]:
    """Test rows in training, near-duplicates across the cut, ids that mean other things."""
    table = found.table
    findings = []
    wrong = [name for name in _TOLD if table.loc[name, "share"] > 0.001]
    said = "; ".join(f"{int(table.loc[n, 'count']):,} of {int(table.loc[n, 'of']):,} {_TOLD[n]}" for n in wrong)
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
            examples(found.renamed),
        )
    )
    if found.split is None:
        return [
            *findings,
            Finding(
                "leaks",
                "note",
                "No split is known, so that nothing was asked about test rows.",
                "Seal with --evaluation, whose split the bundle then remembers.",
            ),
        ]
    until, allowed = found.trained_until, found.allowed_until
    late = until is not None and allowed is not None and until > allowed
    early = int(cast(int, table.loc["items known too early", "count"]))
    twins = int(cast(int, table.loc["twins across the cut", "count"]))
    share = float(cast(float, table.loc["twins across the cut", "share"]))
    if late or early:
        reasons = []
        if late:
            reasons.append(f"it saw interactions until {_moment(until)}, {_later(found)} after the training part ends")
        if early:
            reasons.append(f"it knew {early:,} items that only held-out interactions have")
        findings.append(
            Finding(
                "leaks",
                "serious",
                f"Training saw rows of the test part: {' and '.join(reasons)}.",
                "The evaluation's figures are of what was learnt by heart: fit again with the evaluation's split.",
                {"items known too early": early},
                examples(found.unlawful),
            )
        )
    else:
        what = "Nothing that is held out was trained on"
        end = f": training ended at {_moment(until)}" if until is not None else ""
        findings.append(Finding("leaks", "fine", f"{what}{end}, as {found.split} says."))
    findings.append(
        Finding(
            "twins",
            graded(share, note=0, warning=0.01, serious=0.1),
            f"{twins:,} test targets ({share:.1%}) have a near-duplicate in the history that they are predicted from."
            if twins
            else "No test target has a near-duplicate in its own history.",
            "Merge near-duplicates before the split: a copy of what was taken is no prediction." if twins else "",
            {"twins": twins, "share": share},
            examples(found.twins),
        )
    )
    return findings


def _moment(milliseconds: int | None) -> str:
    return "" if milliseconds is None else str(pd.Timestamp(milliseconds, unit="ms"))[:16]


def _later(found: Leaks) -> str:
    apart = pd.Timedelta(int(found.trained_until or 0) - int(found.allowed_until or 0), unit="ms")
    return f"{apart.total_seconds() / 86_400:,.1f} days" if apart.days else f"{apart.seconds / 60:.0f} minutes"
