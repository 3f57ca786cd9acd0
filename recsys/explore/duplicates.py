"""Near-duplicate items, and a threshold that the vectors themselves suggest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from recsys.explore.space import Neighbours, Space

BY_CHANCE = 1.0  # items of the whole catalogue that may lie so near to another one without being its duplicate
_FITTED = (0.25, 0.5)  # quantiles of the ratios that the law is fitted to; duplicates are fewer than the first
_TIGHTEST = 0.01  # share of items in crowds so tight that what is suspicious even there is so everywhere
_EQUAL = 1e-3  # distance of vectors of length 1 within which float32 cannot tell them apart


@dataclass(frozen=True)
class Duplicates:
    """What is there more than once.

    Attributes:
        pairs: DataFrame, a pair of items a row, nearest first: item_id, title, other_id, other_title, cosine.
        groups: DataFrame, an item a row: group, size, item_id, title, nearest_cosine; the largest groups first. Items
            are in one group if a chain of pairs joins them.
        ratio: how near the nearest must be, as a share of the distance to the K-th; None where a cosine was given.
        thresholds: float64 [N], the distance of vectors of length 1 that this makes, for each item.
        ratios: float64 [N], the distance to the nearest over that to the K-th, from which the ratio was chosen.
        dimension: of the law that it was chosen by: how many directions items spread over where they are.
        group_of: int64 [N], each item's group; −1 for an item that is there once.
    """

    pairs: pd.DataFrame
    groups: pd.DataFrame
    ratio: float | None
    thresholds: np.ndarray
    ratios: np.ndarray
    dimension: float
    group_of: np.ndarray

    @property
    def cosine(self) -> float:
        """The threshold of the item in the middle, as a cosine."""
        return float(1 - np.median(self.thresholds) ** 2 / 2) if len(self.thresholds) else 1.0


def duplicates(space: Space, *, cosine: float | None = None) -> Duplicates:
    """Finds near-duplicate items by cosine, exactly, at the size of a catalogue.

    By cosine, since a copy that fewer people took is shorter and yet a copy. Every pair of which one is among the
    other's K nearest is looked at; of a group larger than K that is enough of them to join it. A pair counts if it is
    within both items' thresholds.

    Args:
        space: whose items.
        cosine: from where on two items count, the same for all; chosen for each item, as `thresholds_of` says, if
            left out.

    Raises:
        ValueError: the cosine is not one.
    """
    if cosine is not None and not -1 < cosine <= 1:
        raise ValueError(f"a cosine of {cosine} cannot be; give one up to 1, as 0.98, or leave it out")
    near = space.neighbours
    thresholds, ratios, ratio, dimension = thresholds_of(near)
    if cosine is not None:
        thresholds = np.full(len(space), np.sqrt(2 - 2 * cosine))
    one, place = np.nonzero(near.distances <= thresholds[:, None])
    other = near.rows[one, place]
    mutual = near.distances[one, place] <= thresholds[other]
    one, other = one[mutual], other[mutual]
    number, label = connected_components(
        coo_array((np.ones(len(one)), (one, other)), shape=(len(space), len(space))), directed=False
    )
    sizes = np.bincount(label, minlength=number)
    members = np.flatnonzero(sizes[label] > 1)
    members = members[np.lexsort((members, label[members], -sizes[label[members]]))]
    renamed = np.full(number, -1, dtype=np.int64)
    found = list(dict.fromkeys(label[members].tolist()))
    renamed[found] = np.arange(len(found))
    both = np.unique(np.stack([np.minimum(one, other), np.maximum(one, other)]), axis=1)
    apart = np.linalg.norm(space.unit_vectors[both[0]] - space.unit_vectors[both[1]], axis=1)
    order = np.argsort(apart, kind="stable")
    both, apart = both[:, order], apart[order]
    nearest = near.cosines[:, 0] if space.k else np.zeros(len(space))
    groups = space.frame(members, nearest_cosine=nearest[members])
    groups.insert(0, "group", renamed[label[members]])
    groups.insert(1, "size", sizes[label[members]])
    return Duplicates(
        pairs=space.frame(
            both[0], other_id=space.ids[both[1]], other_title=space.titles[both[1]], cosine=1 - apart**2 / 2
        ),
        groups=groups,
        ratio=ratio if cosine is None else None,
        thresholds=thresholds,
        ratios=ratios,
        dimension=dimension,
        group_of=renamed[label],
    )


def thresholds_of(near: Neighbours) -> tuple[np.ndarray, np.ndarray, float, float]:
    """How near two items must be to be no chance, from how the items themselves lie.

    One cosine for all would not do: in a tight crowd everything is near, and a copy in a sparse one is not. So the
    distance to the nearest is held against that to the K-th of the same item. Where points lie evenly in m directions,
    (d1 / dK)^m has the law Beta(1, K − 1), whatever the scale (K − 1 points are even within the ball that the K-th
    closes; such ratios tell m in Facco et al. 2017, doi 10.1038/s41598-017-11873-y). m comes from the quantiles of the
    ratios that are not small, the lesser of two, which duplicates do not move as long as fewer than a quarter of the
    items have one. The threshold is the ratio at which the law expects BY_CHANCE items of the whole catalogue.

    Where a whole neighbourhood is copies, no ratio is small; what would be suspicious in the tightest crowds, those of
    one item in a hundred, counts there too.

    Returns:
        Each item's threshold, float64 [N], a distance of vectors of length 1; the ratios, float64 [N]; the ratio that
        makes the thresholds; and m.
    """
    count, k = near.distances.shape
    if k < 3:
        return np.full(count, _EQUAL), np.ones(count), 0.0, 1.0
    nearest, farthest = near.distances[:, 0].astype(np.float64), near.distances[:, -1].astype(np.float64)
    ratios = nearest / np.maximum(farthest, 1e-30)
    usual = [max(min(float(np.quantile(ratios, share)), 1 - 1e-6), 1e-6) for share in _FITTED]
    law = [1 - (1 - share) ** (1 / (k - 1)) for share in _FITTED]
    dimension = min(float(np.log(expected) / np.log(seen)) for expected, seen in zip(law, usual, strict=True))
    rare = 1 - (1 - min(0.5, BY_CHANCE / count)) ** (1 / (k - 1))
    ratio = float(rare ** (1 / dimension))
    thresholds = ratio * farthest
    return np.maximum(thresholds, max(_EQUAL, float(np.quantile(thresholds, _TIGHTEST)))), ratios, ratio, dimension
