"""Item vectors as they are at one moment, from what everybody took before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from recsys.trends.log import HOUR, Clicks, Pairs

ANY, OPENING, FOLLOWING = "any", "opening", "following"
# Whose interactions a coordinate counts, and over how many hours.
COUNTED = (
    (ANY, 1 / 12), (ANY, 0.25), (ANY, 1.0), (ANY, 4.0), (ANY, 24.0),
    (OPENING, 0.25), (OPENING, 1.0), (FOLLOWING, 0.25), (FOLLOWING, 1.0),
)  # fmt: skip
_FLOOR = 0.3  # what is added to a count, so that none has a logarithm
_HOURS = 72.0  # what is older says nothing of now


class Factored(Protocol):
    """How a sparse matrix [n, n] is written as a product of vectors."""

    def __call__(self, matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Settings:
    """What moments are made of; the defaults were chosen on news clicks.

    Args:
        size: the items taken most of late that have a vector.
        rank: coordinates of each of the two kinds of pairs.
        prior: transitions that an item is credited with in proportion to its popularity, before any was seen.
        fades: hours after which a transition counts for 1/e: the short memories, whose logarithms are averaged.
        slow: likewise of what was taken by the same users, in whatever order.
        last: how many of a user's newest items the second kind reads.
        fading: the weight of each older one of those, as a share of the one after it.
    """

    size: int = 3000
    rank: int = 96
    prior: float = 8.0
    fades: Sequence[float] = (1.0, 6.0)
    slow: float = 24.0
    last: int = 8
    fading: float = 0.8


@dataclass(frozen=True)
class Moment:
    """Vectors of the items that count at a moment; a score is an inner product of [popularity, next, near].

    Attributes:
        when: milliseconds; nothing at or after it is known.
        rows: int64 [n], items, ascending.
        popularity: float32 [n, P], logarithms of counts, and of the age.
        next_from, next_to: float32 [n, R]: their inner products say how much more often than by its popularity the
            second item is taken right after the first.
        near_from, near_to: float32 [n, R]: likewise that the same users take both within days.
    """

    when: int
    rows: np.ndarray
    popularity: np.ndarray
    next_from: np.ndarray
    next_to: np.ndarray
    near_from: np.ndarray
    near_to: np.ndarray

    @property
    def item_vectors(self) -> np.ndarray:
        """float32 [n, P + 2R]: what an index holds."""
        return np.concatenate([self.popularity, self.next_to, self.near_to], axis=1)

    def places(self, items: np.ndarray) -> np.ndarray:
        """Where items [m] stand in `rows`, int64 [m]; −1 for those without a vector."""
        if not len(self.rows):
            return np.full(len(items), -1)
        at = np.minimum(np.searchsorted(self.rows, items), len(self.rows) - 1)
        return np.where(self.rows[at] == items, at, -1)


@dataclass(frozen=True)
class Near:
    """Which items the same users take within days, as it was at a moment.

    Attributes:
        rows: int64 [n], items, ascending.
        of, to: float32 [n, R]; the inner products are roots of cosines between the items' users.
    """

    rows: np.ndarray
    of: np.ndarray
    to: np.ndarray


def near(when: int, clicks: Clicks, pairs: Pairs, num_items: int, settings: Settings, factored: Factored) -> Near:
    """What was known right before a moment; arguments as for `moment`, pairs being those within days."""
    rows, place = _rows(when, clicks, num_items, settings)
    taken = _matrix(pairs, when, settings.slow, place, len(rows))
    taken = taken + taken.T
    root = sparse.diags_array(1 / np.sqrt(taken.sum(axis=1) + 0.2))
    return Near(rows, *factored(sparse.csr_array((root @ taken @ root).sqrt()), settings.rank))


def moment(
    when: int,
    clicks: Clicks,
    pairs: Pairs,
    near: Near,
    first: np.ndarray,
    settings: Settings,
    factored: Factored,
) -> Moment:
    """What was known right before a moment.

    Args:
        when: milliseconds.
        clicks: everybody's interactions; those at or after the moment are not looked at, as of pairs.
        pairs: those within a session.
        near: as it was then, or shortly before.
        first: int64 [num_items], milliseconds of each item's first interaction; read only where that was before.
        settings: see `Settings`.
        factored: `truncated`, or its exact twin.
    """
    rows, place = _rows(when, clicks, len(first), settings)
    recent = clicks.between(when - round(_HOURS * HOUR), when)
    counts = [_counted(recent, place, len(rows), whose, when - round(hours * HOUR)) for whose, hours in COUNTED]
    age = np.log((when - first[rows]) / HOUR + 0.02)
    popularity = np.stack([*(np.log(count + _FLOOR) for count in counts), age], axis=1)
    share = counts[COUNTED.index((ANY, 1.0))] + _FLOOR
    share = share / share.sum()
    surprise = sparse.csr_array((len(rows), len(rows)))
    for hours in settings.fades:
        taken = _matrix(pairs, when, hours, place, len(rows))
        lift = taken @ sparse.diags_array(1 / (settings.prior * share))
        surprise = surprise + lift.log1p() / len(settings.fades)
    next_from, next_to = factored(sparse.csr_array(surprise), settings.rank)
    at = place[near.rows]
    near_from, near_to = np.zeros((2, len(rows), near.of.shape[1]), dtype=np.float32)
    near_from[at[at >= 0]], near_to[at[at >= 0]] = near.of[at >= 0], near.to[at >= 0]
    return Moment(when, rows, popularity.astype(np.float32), next_from, next_to, near_from, near_to)


def truncated(matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, R] and [n, R] whose inner products come close to a sparse matrix [n, n].

    By a randomised singular value decomposition (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4), drawn the
    same each time.
    """
    size = matrix.shape[0]
    rank = min(rank, size)
    wide = min(rank + 16, size)
    basis = np.random.default_rng(0).standard_normal((size, wide)).astype(np.float32)
    matrix = matrix.astype(np.float32)
    for _ in range(2):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]
    left, values, right = np.linalg.svd(matrix @ basis, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, (basis @ right.T)[:, :rank] * root


def exact(matrix: sparse.csr_array, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """As `truncated`, without error: as many coordinates as items."""
    return matrix.toarray().astype(np.float32), np.eye(matrix.shape[0], dtype=np.float32)


def _rows(when: int, clicks: Clicks, num_items: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The items taken most of late, int64 [n], ascending; and where each of all stands among them, or −1."""
    recent = clicks.between(when - round(_HOURS * HOUR), when)
    faded = np.exp((recent.times - when) / (settings.slow * HOUR))
    total = np.bincount(recent.items, weights=faded, minlength=num_items)
    rows = np.sort(np.argsort(-total, kind="stable")[: min(settings.size, np.count_nonzero(total))])
    place = np.full(num_items, -1)
    place[rows] = np.arange(len(rows))
    return rows, place


def _counted(clicks: Clicks, place: np.ndarray, size: int, whose: str, since: int) -> np.ndarray:
    start = np.searchsorted(clicks.times, since)
    at, opening = place[clicks.items[start:]], clicks.opening[start:]
    counts = (at >= 0) & ((whose == ANY) | (opening == (whose == OPENING)))
    return np.bincount(at[counts], minlength=size)


def _matrix(pairs: Pairs, when: int, hours: float, place: np.ndarray, size: int) -> sparse.csr_array:
    """float64 [n, n]: how often the column's item came after the row's, what is older counting for less."""
    pairs = pairs.between(when - round(min(5 * hours, _HOURS) * HOUR), when)
    row, column = place[pairs.earlier], place[pairs.later]
    both = (row >= 0) & (column >= 0)
    weights = (pairs.weights * np.exp((pairs.times - when) / (hours * HOUR)))[both]
    return sparse.csr_array((weights, (row[both], column[both])), shape=(size, size))
