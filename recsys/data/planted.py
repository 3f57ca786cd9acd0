"""A catalogue of vectors with planted truth: which items are copies, which belong together, which belong nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

_DIRECTIONS = 12  # of a cluster's own
_HISTORY = 20  # items of a user, most of them of two clusters


@dataclass(frozen=True)
class Planted:
    """A made catalogue, and what is true of it.

    Attributes:
        vectors: float32 [N, D]; their lengths follow popularity, as trained ones' do.
        cluster: int64 [N], the cluster an item was drawn from; −1 for an outlier.
        copy_of: int64 [N], the item that each is a copy of; −1 for an original.
        outlier: bool [N].
        unused: bool [D], the dimensions that were collapsed.
        known: the rest of what a `recsys.explore.Space` is made of.
        genre: str [N], the true value of an attribute that `known` lacks of some.
    """

    vectors: np.ndarray
    cluster: np.ndarray
    copy_of: np.ndarray
    outlier: np.ndarray
    unused: np.ndarray
    known: dict[str, Any]
    genre: np.ndarray

    @property
    def duplicate(self) -> np.ndarray:
        """bool [N]: whether an item has a copy, or is one."""
        found = self.copy_of >= 0
        found[self.copy_of[found]] = True
        return found


def planted(
    items: int = 5000,
    dimension: int = 64,
    *,
    clusters: int = 40,
    copies: float = 0.02,
    outliers: float = 0.005,
    unused: int = 0,
    missing: float = 0.1,
    users: int = 0,
    noise: float = 0.03,
    seed: int = 0,
) -> Planted:
    """Draws a catalogue.

    Clusters are of uneven size and of uneven tightness, from one in which all cosines are above 0.95 to one that is
    hardly one: what is near in one is far in another, so no single cosine tells copies. An item is its cluster's centre
    and noise in some directions of the cluster's own, as trained vectors fill few of their dimensions where they are.
    A copy has its original's direction but for `noise` of its distance from the centre, and another length. An outlier
    points anywhere.

    Args:
        items: how many, copies and outliers among them.
        dimension: of the vectors.
        clusters: how many.
        copies: share of items that are copies.
        outliers: share of items that belong nowhere.
        unused: dimensions collapsed to next to nothing.
        missing: share of items whose genre is not told.
        users: who took items of two clusters each; their vectors are the mean direction of what they took.
        noise: of copies.
        seed: of everything.
    """
    random = np.random.default_rng(seed)
    middle = _unit(random.standard_normal((clusters, dimension)))
    weight = 1 / np.arange(1, clusters + 1) ** 0.7
    cluster = random.choice(clusters, items, p=weight / weight.sum())
    tightness = np.linspace(0.2, 1.0, clusters)[random.permutation(clusters)]
    offset = _noise(cluster, tightness, dimension, random)
    order = random.permutation(items)
    copied, alone = order[: round(copies * items)], order[round(copies * items) :][: round(outliers * items)]
    originals = order[round(copies * items) + len(alone) :]
    copy_of = np.full(items, -1, dtype=np.int64)
    copy_of[copied] = random.choice(originals, len(copied))
    cluster[copied] = cluster[copy_of[copied]]
    offset[copied] = offset[copy_of[copied]] + noise * _noise(cluster[copied], tightness, dimension, random)
    direction = _unit(middle[cluster] + offset)
    direction[alone] = _unit(random.standard_normal((len(alone), dimension)))
    is_outlier = np.zeros(items, dtype=bool)
    is_outlier[alone] = True
    popularity = random.pareto(1.5, items) + 0.1
    vectors = direction * (1 + 0.3 * np.log1p(popularity) + 0.1 * random.random(items))[:, None]
    flat = np.zeros(dimension, dtype=bool)
    flat[random.permutation(dimension)[:unused]] = True
    vectors[:, flat] = 1e-3 * random.standard_normal((items, unused))
    genre = np.array([f"genre {one % 12}" for one in cluster], dtype=object)
    genre[alone] = [f"genre {one}" for one in random.integers(12, size=len(alone))]
    told = genre.copy()
    told[random.random(items) < missing] = None
    titles = np.array(
        [f"Item {row}" if copy_of[row] < 0 else f"Item {copy_of[row]} again" for row in range(items)], dtype=object
    )
    known = {
        "titles": titles,
        "attributes": pd.DataFrame({"genre": told}),
        "kinds": {"genre": "categorical"},
        "popularity": (popularity / popularity.sum()).astype(np.float32),
    }
    if users:
        known |= _users(users, cluster, popularity * ~is_outlier, direction, random)
    cluster[alone] = -1
    return Planted(vectors.astype(np.float32), cluster, copy_of, is_outlier, flat, known, genre)


def _users(
    users: int, cluster: np.ndarray, popularity: np.ndarray, direction: np.ndarray, random: np.random.Generator
) -> dict[str, Any]:
    """Users of two tastes each, and what they took."""
    of = [np.flatnonzero(cluster == one) for one in range(int(cluster.max()) + 1)]
    of = [rows for rows in of if popularity[rows].sum() > 0]
    chance = [popularity[rows] / popularity[rows].sum() for rows in of]
    history = np.empty((users, _HISTORY), dtype=np.int64)
    for user in range(users):
        for half, taste in enumerate(random.integers(len(of), size=2)):
            at = slice(half * _HISTORY // 2, (half + 1) * _HISTORY // 2)
            history[user, at] = random.choice(of[taste], _HISTORY // 2, p=chance[taste])
    return {
        "user_ids": np.arange(users),
        "user_offsets": np.arange(users + 1) * _HISTORY,
        "history": history.ravel(),
        "user_vectors": direction[history].mean(axis=1).astype(np.float32),
    }


def _noise(cluster: np.ndarray, tightness: np.ndarray, dimension: int, random: np.random.Generator) -> np.ndarray:
    """float64 [n, D], about as long as each one's cluster is tight, in directions of the cluster's own."""
    some = min(_DIRECTIONS, dimension)
    axes = random.standard_normal((len(tightness), some, dimension)) / np.sqrt(dimension)
    noise = np.empty((len(cluster), dimension))
    for one, length in enumerate(tightness):
        at = np.flatnonzero(cluster == one)
        noise[at] = random.standard_normal((len(at), some)) @ axes[one] * length / np.sqrt(some)
    return noise


def _unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
