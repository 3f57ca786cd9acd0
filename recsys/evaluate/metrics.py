"""Metrics of rankings: arrays in, numbers out.

Accuracy is computed from the `places` of the targets, so that a slice (tail items, say) is a selection of targets.
T is the number of targets, Q of queries, N of items. A target's place counts from 0; a metric at k looks at places
below k. `owner` int64 [T] says which query a target belongs to; every query owns at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Mean:
    """A mean and the half width of its 95 % confidence interval; None where one user cannot say how users differ."""

    value: float
    half_width: float | None


def places(top: np.ndarray, owner: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where each target stands in its query's list.

    Args:
        top: int [Q, K], item rows, best first; −1 where a list is shorter.
        owner: int64 [T].
        targets: int64 [T], item rows; distinct within a query.

    Returns:
        int64 [T], 0 for the best; K if it is not in the list.
    """
    found = top[owner] == targets[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), top.shape[1])


def recall(places: np.ndarray, owner: np.ndarray, k: int) -> np.ndarray:
    """The share of a query's targets among its first k, float64 [Q].

    Divided by the number of targets even where it exceeds k, as in trec_eval's `recall_k`.
    """
    return np.bincount(owner, places < k) / np.bincount(owner)


def hit_rate(places: np.ndarray, owner: np.ndarray, k: int) -> np.ndarray:
    """Whether any of a query's targets is among its first k (1 or 0), float64 [Q]; trec_eval's `success_k`."""
    return (np.bincount(owner, places < k) > 0).astype(np.float64)


def reciprocal_rank(places: np.ndarray, owner: np.ndarray, k: int) -> np.ndarray:
    """1 / (place + 1) of a query's best target, 0 beyond k, float64 [Q].

    Voorhees 1999, The TREC-8 Question Answering Track Report; its mean is MRR.
    """
    best = np.zeros(owner[-1] + 1 if len(owner) else 0)
    np.maximum.at(best, owner, np.where(places < k, 1 / (places + 1), 0.0))
    return best


def ndcg(places: np.ndarray, owner: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with gain 1 a target, float64 [Q].

    Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418, with the discount 1 / log2(place + 2) from the first place
    on (theirs starts after the base of the logarithm). The ideal has min(k, number of targets) targets on top.
    """
    gained = np.bincount(owner, np.where(places < k, 1 / np.log2(places + 2), 0.0))
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    return gained / ideal[np.minimum(np.bincount(owner), k)]


def coverage(recommended: np.ndarray) -> float:
    """The share of the catalogue that anybody is recommended.

    Ge, Delgado-Battenfeld and Jannach 2010, doi 10.1145/1864708.1864761.

    Args:
        recommended: int64 [N], how often each item stands in a list.
    """
    return float(np.mean(recommended > 0)) if len(recommended) else 0.0


def novelty(recommended: np.ndarray, counts: np.ndarray) -> float:
    """The mean self-information of what is recommended, in bits: −log2 of an item's share of the training log.

    Zhou et al. 2010, doi 10.1073/pnas.1000488107. Theirs takes the share of users; ours that of interactions, with
    one added to every count, since an item without any would count infinite.

    Args:
        recommended: int64 [N], how often each item stands in a list.
        counts: int64 [N], how often each occurs in training.
    """
    bits = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    return float(recommended @ bits / max(1, recommended.sum()))


def popularity_lift(recommended: np.ndarray, taken: np.ndarray, counts: np.ndarray) -> float | None:
    """The mean popularity of what is recommended over that of what users took: 1 is neutral, 2 twice as popular.

    After the lift of group average popularity in Abdollahpouri et al. 2019, arXiv 1907.13286, as a ratio instead of
    its excess over 1, and against the targets instead of the profiles. None if nothing that was taken occurs in
    training.

    Args:
        recommended: int64 [N], how often each item stands in a list.
        taken: int64 [N], how often each is a target.
        counts: int64 [N], how often each occurs in training.
    """
    theirs = taken @ counts / max(1, taken.sum())
    return float(recommended @ counts / max(1, recommended.sum()) / theirs) if theirs else None


def cold_share(recommended: np.ndarray, counts: np.ndarray) -> float:
    """The share of what is recommended that training never saw.

    Where all targets are cold, recall rises with it whatever a scorer knows: read it beside cold items' share of the
    catalogue.

    Args:
        recommended: int64 [N], how often each item stands in a list.
        counts: int64 [N], how often each occurs in training.
    """
    return float(recommended[counts == 0].sum() / max(1, recommended.sum()))


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> Mean:
    """The mean over queries and its 95 % interval when the queries of one user go together.

    Queries of one user are correlated, so that taking them as independent makes intervals several times too narrow.
    Cluster-robust variance of a mean, G / (G − 1) · Σ_g (Σ_{i in g} (y_i − ȳ))² / n², and Student's t with G − 1
    degrees of freedom: Cameron and Miller 2015, doi 10.3368/jhr.50.2.317, equations 11 and following with an intercept
    alone.

    Args:
        values: float [Q].
        clusters: int64 [Q], the user of each query.
    """
    mean = float(np.mean(values))
    _, cluster = np.unique(clusters, return_inverse=True)
    deviations = np.bincount(cluster, values - mean)
    num_clusters = len(deviations)
    if num_clusters < 2:
        return Mean(mean, None)
    variance = num_clusters / (num_clusters - 1) * float(deviations @ deviations) / len(values) ** 2
    return Mean(mean, float(stats.t.ppf(0.975, num_clusters - 1)) * variance**0.5)
