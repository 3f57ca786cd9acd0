"""Items that lie far from all others, and orphans: such that nobody's list holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.explore.clusters import Clusters
from recsys.explore.space import Space

_DEVIATIONS = 6.0  # robust standard deviations above the median from which on a factor is far out
_FACTOR = 1.5  # a factor below which nobody would call an item far out, however alike all the others are
_EQUAL = 1e-3  # distances below are of copies, and would make a density infinite


@dataclass(frozen=True)
class Outliers:
    """How far out each item lies.

    Attributes:
        far: DataFrame, the items beyond the threshold, the farthest first: item_id, title, factor, nearest_cosine,
            taken (interactions in the histories); and, where clusters were given, cluster (its name) and
            cluster_cosine, with its centre.
        orphans: DataFrame, items that are in no other item's K nearest, and, where there are users, in no user's list:
            item_id, title, factor, taken.
        factor: float64 [N], the local outlier factor: about 1 within a crowd, 2 for an item whose neighbours lie twice
            as close to theirs as it does to them.
        threshold: of the factor.
    """

    far: pd.DataFrame
    orphans: pd.DataFrame
    factor: np.ndarray
    threshold: float


def outliers(space: Space, clusters: Clusters | None = None) -> Outliers:
    """Local outlier factors from the shared neighbours, and a threshold from their distribution.

    Breunig, Kriegel, Ng and Sander 2000, "LOF: identifying density-based local outliers", doi 10.1145/335191.335388.
    By cosine: a short vector is an item that few took, not one that is unlike all others. The threshold is
    _DEVIATIONS robust standard deviations (1.4826 times the median absolute deviation) of the factor's logarithm above
    its median, and at least _FACTOR.

    Args:
        space: whose items.
        clusters: theirs, to tell which one an item should belong to.
    """
    taken = np.bincount(space.history, minlength=len(space))
    factor = outlier_factors(space)
    logs = np.log(factor)
    middle = float(np.median(logs)) if len(logs) else 0.0
    deviation = 1.4826 * float(np.median(np.abs(logs - middle))) if len(logs) else 0.0
    threshold = max(_FACTOR, float(np.exp(middle + _DEVIATIONS * deviation)))
    out = np.flatnonzero(factor > threshold)
    out = out[np.argsort(-factor[out], kind="stable")]
    alone = space.occurrences == 0
    if len(space.users):
        alone &= np.bincount(space.lists.items[space.lists.items >= 0], minlength=len(space)) == 0
    orphans = np.flatnonzero(alone)
    orphans = orphans[np.argsort(-factor[orphans], kind="stable")]
    near = space.neighbours.cosines[:, 0] if space.k else np.zeros(len(space))
    far = space.frame(out, factor=factor[out], nearest_cosine=near[out], taken=taken[out])
    if clusters is not None:
        of = clusters.items.iloc[out]
        far = far.assign(cluster=of["name"].to_numpy(), cluster_cosine=of["cosine"].to_numpy())
    return Outliers(
        far=far,
        orphans=space.frame(orphans, factor=factor[orphans], taken=taken[orphans]),
        factor=factor,
        threshold=threshold,
    )


def outlier_factors(space: Space) -> np.ndarray:
    """float64 [N]; see `outliers`."""
    if not space.k:
        return np.ones(len(space))
    near = space.neighbours
    apart = np.maximum(near.distances.astype(np.float64), _EQUAL)
    reach = np.maximum(apart, apart[:, -1][near.rows])
    density = 1 / reach.mean(axis=1)
    factors: np.ndarray = density[near.rows].mean(axis=1) / density
    return factors
