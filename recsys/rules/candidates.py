"""What arranging has found so far, and how sure it is that nothing better is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from recsys.rules.said import Freshness, RuleError

_DAY_MS = 86_400_000
_GROWTH = 4
# A place in the order of all items is (−lifted score, row). What was not found comes after a bound, which is a place.
Place = tuple[float, int]
NOWHERE: Place = (-math.inf, -1)  # before everything: nothing is known yet
END: Place = (math.inf, 0)  # after everything: all that there is has been found


class Arrangeable(Protocol):
    """A catalogue of R items that rules can be held over."""

    @property
    def num_rows(self) -> int:
        """R, the ones that may not be returned included."""

    def search(
        self, query: np.ndarray, k: int, *, eligible: np.ndarray | None, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the highest inner product with a query.

        Args:
            query: float32 [D].
            k: how many, at least 1.
            eligible: bool [R], the items that may be returned; all of them if None.
            exclude: int [E], rows that may not.

        Returns:
            scores float32 [n], descending, and rows int64 [n], ascending among equal scores; n < k only where no more
            may be returned.
        """

    def eligible(self, filter: Mapping[str, Any]) -> np.ndarray:
        """bool [R]: which items pass a filter; a FilterError if it cannot be used."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, D]: the vectors of some rows."""

    def kind(self, attribute: str) -> str:
        """What kind of attribute that is; a FilterError, which names the nearest, if there is none."""

    def numbers(self, attribute: str) -> np.ndarray:
        """float64 [R]: numbers, or moments in milliseconds since 1970; NaN where an item has none."""

    def values(self, attribute: str, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The words that each of some rows has of a categorical or multi attribute."""


class Boost:
    """How much newness lifts scores.

    Args:
        moments: float64 [R], milliseconds since 1970, NaN where unknown; None if newness does not count.
        freshness: how it counts.
        spread: the standard deviation of the query's scores.
        now_ms: what time it is.
    """

    def __init__(self, moments: np.ndarray | None, freshness: Freshness | None, spread: float, now_ms: int) -> None:
        self._moments = moments
        self._half_life = freshness.half_life_days if freshness else 1.0
        self._now = now_ms
        self.peak = freshness.weight * spread if freshness and moments is not None else 0.0
        if not math.isfinite(self.peak) or self.peak < 0:
            raise RuleError(f"freshness.weight times the spread of scores, {spread!r}, is {self.peak!r}; give less")

    def of(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n], from 0 to `peak`: what is added to the scores of some rows."""
        if self._moments is None or not self.peak:
            return np.zeros(len(rows))
        moments = self._moments[rows]
        age = np.maximum(0.0, self._now - moments) / _DAY_MS
        return np.where(np.isnan(moments), 0.0, self.peak * np.exp2(-(age / self._half_life)))

    def reaching(self, lift: float) -> np.ndarray:
        """bool [R]: a superset of the items that gain at least `lift`, which lies between 0 and `peak`."""
        assert self._moments is not None
        oldest = self._half_life * _DAY_MS * math.log2(self.peak / lift)
        return self._moments >= self._now - oldest


class Candidates:
    """Items found so far. Arrays only grow, so that a position in them keeps its meaning; `order` ranks them.

    Attributes:
        rows: int64 [n].
        scores: float32 [n], plain inner products.
        lifted: float64 [n], with what newness adds.
        order: int64 [n], positions from the best on: by lifted score, ties by row.
    """

    def __init__(self, catalogue: Arrangeable, query: np.ndarray, boost: Boost, exclude: np.ndarray | None) -> None:
        self._catalogue = catalogue
        self._query = query
        self._exclude = exclude
        self.boost = boost
        self.num_rows = catalogue.num_rows
        self.rows = np.empty(0, dtype=np.int64)
        self.scores = np.empty(0, dtype=np.float32)
        self.lifted = np.empty(0, dtype=np.float64)
        self.order = np.empty(0, dtype=np.int64)

    def place(self, at: int) -> Place:
        """Where in the order of all items the candidate at a position stands."""
        return -float(self.lifted[at]), int(self.rows[at])

    def search(self, depth: int, among: np.ndarray | None) -> tuple[float, int] | None:
        """Finds the `depth` best plain scores among some items.

        Returns:
            Score and row of the last one found; None if there are no others.
        """
        depth = min(depth, self.num_rows)
        scores, rows = self._catalogue.search(self._query, depth, eligible=among, exclude=self._exclude)
        if new := (~np.isin(rows, self.rows)).nonzero()[0].tolist():
            found = rows[new]
            self.rows = np.concatenate([self.rows, found])
            self.scores = np.concatenate([self.scores, scores[new]])
            self.lifted = np.concatenate([self.lifted, scores[new].astype(np.float64) + self.boost.of(found)])
            self.order = np.lexsort((self.rows, -self.lifted))
        return None if len(rows) < depth or depth == self.num_rows else (float(scores[-1]), int(rows[-1]))


class Reach:
    """How far some kind of item has been searched for; the kind may narrow, never widen.

    Attributes:
        bound: every item of the kind that was not found stands after this place.
    """

    def __init__(self, candidates: Candidates, depth: int) -> None:
        self._candidates = candidates
        self._last = math.inf  # no item of the kind that was not found has a higher plain score
        self.depth = depth  # of the next search
        self.bound = NOWHERE

    def deepen(self, among: np.ndarray | None, wanted: float) -> None:
        """Searches on.

        Args:
            among: bool [R], the items of the kind; None for all.
            wanted: the lifted score down to which everything should be found; −inf if that is not known.
        """
        found, boost = self._candidates, self._candidates.boost
        lift = 0.999 * min(wanted - self._last, boost.peak)
        if lift > 0 and self.depth < found.num_rows:
            # What was not found has a plain score of `last` at most: only what is new enough can still matter.
            fresh = boost.reaching(lift)
            last = found.search(self.depth, fresh if among is None else fresh & among)
            stale: Place = (-(self._last + lift * 1.0001), -1)
            bound = min(stale, END if last is None else (-(last[0] + boost.peak), -1))
        elif (last := found.search(self.depth, among)) is None:
            bound = END
        else:
            self._last = min(self._last, last[0])
            bound = (-(last[0] + boost.peak), -1) if boost.peak else (-last[0], last[1])
        self.bound = max(self.bound, bound)
        self.depth *= _GROWTH
