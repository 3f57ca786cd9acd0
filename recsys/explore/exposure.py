"""Who gets seen: hubs among the items, items that are never recommended, and popularity in lengths and scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import skew, spearmanr

from recsys.explore.space import Space


@dataclass(frozen=True)
class Exposure:
    """Who gets seen.

    Attributes:
        items: DataFrame, an item a row in the order of rows: item_id, title, taken (interactions in the histories),
            neighbour_of (in how many items' K nearest it stands), recommended (in how many users' lists), length.
        hubs: the rows of `items` that most items have for a neighbour, the greatest first.
        never: those that no list of the users asked holds, the most taken first.
        dead: those without a vector, of length 0, which no inner product can find.
        users: whose lists were made.
        hubness: skewness of neighbour_of; 0 if all items are somebody's neighbour equally often.
        coverage: share of items in at least one list.
        gini: of `recommended`, 0 if all items are recommended equally often, towards 1 if one item is all there is.
        reachable: an upper bound of coverage: so many users have so many places to give.
        length_follows: Spearman's correlation of length and interactions; None where either does not vary.
        score_follows: likewise of the mean score over the users asked.
    """

    items: pd.DataFrame
    hubs: pd.DataFrame
    never: pd.DataFrame
    dead: pd.DataFrame
    users: int
    hubness: float
    coverage: float
    gini: float
    reachable: float
    length_follows: float | None
    score_follows: float | None


def exposure(space: Space) -> Exposure:
    """Counts who is whose neighbour, by cosine, and who is recommended to whom, by inner product, as the service does.

    Hubness is the skewness of how often items are neighbours: Radovanović, Nanopoulos and Ivanović 2010, "Hubs in
    Space", JMLR 11. That few items are in most lists is measured by Gini's coefficient and by coverage.

    Args:
        space: whose items and users.
    """
    lists = space.lists
    recommended = np.bincount(lists.items[lists.items >= 0], minlength=len(space))
    taken = np.bincount(space.history, minlength=len(space))
    items = space.frame(
        np.arange(len(space)),
        taken=taken,
        neighbour_of=space.occurrences,
        recommended=recommended,
        length=space.lengths,
    )
    asked = space.user_vectors[lists.users].mean(axis=0) if len(lists.users) else None
    scores = None if asked is None else space.vectors @ asked
    never = items[recommended == 0] if len(lists.users) else items[:0]
    return Exposure(
        items=items,
        hubs=items.sort_values("neighbour_of", ascending=False, kind="stable").head(20),
        never=never.sort_values("taken", ascending=False, kind="stable"),
        dead=items[space.lengths < 1e-6],
        users=len(lists.users),
        hubness=float(skew(space.occurrences)) if np.ptp(space.occurrences) else 0.0,
        coverage=float((recommended > 0).mean()) if len(space) else 0.0,
        gini=gini(recommended),
        reachable=min(1.0, lists.items.size / max(1, len(space))),
        length_follows=_follows(space.lengths, taken),
        score_follows=None if scores is None else _follows(scores, taken),
    )


def gini(counts: np.ndarray) -> float:
    """Gini's coefficient of counts [N]: half the mean absolute difference of two of them over their mean."""
    total = counts.sum()
    if not total:
        return 0.0
    places = np.arange(1, len(counts) + 1)
    return float((2 * places - len(counts) - 1) @ np.sort(counts) / (len(counts) * total))


def _follows(values: np.ndarray, taken: np.ndarray) -> float | None:
    if len(values) < 3 or np.ptp(values) <= 1e-5 * np.abs(values).max() or not np.ptp(taken):
        return None
    return float(spearmanr(values, taken).statistic)
