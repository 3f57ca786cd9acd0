"""What is the matter with a space's items, graded: copies, groups, outliers, hubs, attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recsys.explore.attributes import Guessed
from recsys.explore.clusters import Clusters
from recsys.explore.duplicates import Duplicates
from recsys.explore.exposure import Exposure
from recsys.explore.findings import SURELY, Finding, examples, graded
from recsys.explore.outliers import Outliers
from recsys.explore.space import Space


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
        graded(share, note=0, warning=0.01, serious=0.2),
        f"{items:,} items ({share:.1%}) are near-duplicates, in {groups:,} group{'s' if groups > 1 else ''}: {rule}.",
        "Merge those that are one thing before training, so that they share interactions; or declare an attribute that "
        "names the group, and cap it at one a list (rule `caps`). What is two things wants features that tell them "
        "apart.",
        figures,
        examples(found.pairs),
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
    return Finding("clusters", "fine", what, figures=figures, evidence=examples(table))


def of_outliers(found: Outliers, space: Space) -> list[Finding]:
    """Items far from all others, and orphans."""
    far, orphans = len(found.far), len(found.orphans)
    shares = [number / max(1, len(space)) for number in (far, orphans)]
    untaken = int((found.far["taken"] == 0).sum())
    findings = [
        Finding(
            "outliers",
            graded(shares[0], note=0, warning=0.05, serious=0.5),
            f"{far:,} items ({shares[0]:.1%}) lie far from all others: more than {found.threshold:.2f} times as far "
            f"from their neighbours as those from theirs; nobody took {untaken:,} of them."
            if far
            else f"No item lies far from all others (factor {found.threshold:.2f}).",
            "Look at their attributes: a wrong category, an empty text, or a unit that slipped moves an item away. "
            "Items that nobody took will move when somebody does."
            if far
            else "",
            {"items": far, "share": shares[0], "threshold": found.threshold, "never taken": untaken},
            examples(found.far),
        )
    ]
    in_lists = " and in no user's list" if len(space.users) else ""
    findings.append(
        Finding(
            "orphans",
            graded(shares[1], note=0.01, warning=0.4, serious=0.9),
            f"{orphans:,} items ({shares[1]:.1%}) are among no other item's {space.k} nearest{in_lists}.",
            "Nothing leads to them: give them a place by rule (`quotas`, `freshness`), or features that tell what they "
            "are like."
            if shares[1] > 0.01
            else "",
            {"items": orphans, "share": shares[1]},
            examples(found.orphans),
        )
    )
    return findings


def of_exposure(found: Exposure, space: Space) -> list[Finding]:
    """Hubs, items that are never recommended, dead ones, and popularity in lengths."""
    top = int(found.hubs["neighbour_of"].max()) if len(found.hubs) else 0
    findings = [
        Finding(
            "hubs",
            graded(found.hubness, note=1.5, warning=4, serious=20),
            f"Skewness of how often items are neighbours: {found.hubness:.1f}; one item is among the {space.k} nearest "
            f"of {top:,}.",
            "A few items are like everything. Where few took them, keep them out of similar lists by filter until more "
            "is known; else train with more negatives, which push apart what has nothing in common."
            if found.hubness > 1.5
            else "",
            {"hubness": found.hubness, "most": top},
            examples(found.hubs[["item_id", "title", "neighbour_of", "taken"]]),
        )
    ]
    if found.users:
        reached = found.coverage / max(found.reachable, 1e-30)
        findings.append(
            Finding(
                "never recommended",
                graded(1 - reached, note=0.5, warning=0.9, serious=0.99),
                f"{len(found.never):,} items ({1 - found.coverage:.1%}) are in the list of none of {found.users:,} "
                f"users; Gini's coefficient of how often items are is {found.gini:.2f}.",
                "Train with more negatives drawn evenly (`uniform` of SampledSoftmax), or widen lists by rule "
                "(`diversity`, `freshness`, `quotas`)."
                if reached < 0.5
                else "",
                {"items": len(found.never), "coverage": found.coverage, "gini": found.gini, "users": found.users},
                examples(found.never[["item_id", "title", "taken", "neighbour_of"]]),
            )
        )
    follows, scores = found.length_follows, found.score_follows
    said = "all alike" if follows is None else f"{follows:.2f} with an item's interactions (Spearman)"
    strongest = max(abs(follows or 0.0), abs(scores or 0.0))
    findings.append(
        Finding(
            "popularity",
            graded(strongest, note=0.8, warning=0.95, serious=2),
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
                examples(found.dead[["item_id", "title", "taken"]]),
            )
        )
    return findings


def of_attributes(found: Sequence[Guessed]) -> list[Finding]:
    """What neighbours say of missing values, and whether they know anything of attributes."""
    findings = []
    for one in found:
        error = math.sqrt(max(one.majority * (1 - one.majority), 1e-4) / max(1, one.held_out))
        knows = one.accuracy > one.majority + SURELY * error
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
                examples(one.missing if missing and knows else one.suspects if knows else one.missing[:0]),
            )
        )
    return findings
