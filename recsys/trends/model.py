"""The model: moments at an interval, what each part of a score weighs, and lists of the items that score best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from recsys.data.dataset import Dataset
from recsys.data.split import Queries
from recsys.evaluate.baselines import history_positions
from recsys.trends.log import HOUR, PAUSE, Clicks, pairs_of, times_of
from recsys.trends.moment import COUNTED, Factored, Moment, Near, Settings, moment, near, truncated

POPULARITIES = len(COUNTED) + 1  # the age is one of them
# Milliseconds since a user's newest interaction, between which a user's state changes: hurrying through, reading,
# coming back, opening a session within hours, on the same day, and later. What the last visit showed was passed over.
WAITS = (45_000, 180_000, PAUSE, 4 * HOUR, 20 * HOUR)
STATES = len(WAITS) + 1
STEPS = 3  # of a user's newest items, each is followed by something of its own
PARTS = POPULARITIES + STEPS + 1


@dataclass(frozen=True)
class Weights:
    """How much each coordinate counts for a user, by how long ago the newest interaction was.

    Attributes:
        of: float64 [STATES, PARTS]: those of `Moment.popularity`, then of all of `next` for each of the user's newest
            items, newest first, and one of all of `near`.
    """

    of: np.ndarray


@dataclass
class Trends:
    """Moments of a log. A query is answered by the last one at or before it, so by nothing at or after it.

    Args:
        dataset: with times.
        minutes: how often a moment is made.
        near_minutes: how often it is found anew which items the same users take within days, which changes slowly.
        settings: what moments are made of.
        factored: how their matrices are written as products; `exact` for a twin.
    """

    dataset: Dataset
    minutes: float = 10
    near_minutes: float = 60
    settings: Settings = field(default_factory=Settings)
    factored: Factored = truncated

    def __post_init__(self) -> None:
        for name in ("minutes", "near_minutes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; moments need some time between them")
        self._clicks = Clicks.of(self.dataset)
        self._nexts = pairs_of(self.dataset, reach=4, within=3 * HOUR, fading=0.7)
        self._nears = pairs_of(self.dataset, reach=8, within=120 * HOUR, fading=0.9)
        self._first = np.full(self.dataset.num_items, np.iinfo(np.int64).max)
        self._near: tuple[int, Near] | None = None  # and when it was; moments are asked for in time
        np.minimum.at(self._first, np.asarray(self.dataset.items), times_of(self.dataset))

    def at(self, when: int) -> Moment:
        """What is known right before a moment, milliseconds."""
        step = round(self.near_minutes * 60_000)
        turn = when // step * step
        if self._near is None or self._near[0] != turn:
            items = self.dataset.num_items
            self._near = turn, near(turn, self._clicks, self._nears, items, self.settings, self.factored)
        return moment(when, self._clicks, self._nexts, self._near[1], self._first, self.settings, self.factored)

    def moments(self, queries: Queries) -> Iterator[tuple[Moment, np.ndarray]]:
        """The moments that queries [Q] are answered by, in time, and the indices of each one's queries."""
        step = round(self.minutes * 60_000)
        turn = times_of(self.dataset)[queries.end] // step
        order = np.argsort(turn, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1):
            if len(some):
                yield self.at(int(turn[some[0]]) * step), some

    def user_parts(self, made: Moment, queries: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What users are at a moment.

        Returns:
            Their state, int64 [Q]; what each of their newest items is followed by, newest first, float32 [Q, STEPS, R];
            what the same users take as their items, float32 [Q, R].
        """
        times = times_of(self.dataset)
        state = np.searchsorted(WAITS, times[queries.end] - times[queries.end - 1])
        query, position = history_positions(self.dataset, queries, last=max(STEPS, self.settings.last))
        place = made.places(np.asarray(self.dataset.items)[position])
        back = queries.end[query] - 1 - position
        nearby = np.zeros((len(queries), made.near_from.shape[1]), dtype=np.float32)
        known = (place >= 0) & (back < self.settings.last)
        fading = (self.settings.fading ** back[known]).astype(np.float32)
        np.add.at(nearby, query[known], fading[:, None] * made.near_from[place[known]])
        following = np.zeros((len(queries), STEPS, made.next_from.shape[1]), dtype=np.float32)
        newest = (place >= 0) & (back < STEPS)
        following[query[newest], back[newest]] = made.next_from[place[newest]]
        return state, following, nearby

    def user_vectors(self, made: Moment, queries: Queries, weights: Weights) -> np.ndarray:
        """float32 [Q, P + 2R]: their inner products with `Moment.item_vectors` are the scores."""
        state, following, nearby = self.user_parts(made, queries)
        of = weights.of[state].astype(np.float32)
        step = np.einsum("qk,qkr->qr", of[:, POPULARITIES:-1], following)
        parts = [of[:, :POPULARITIES], step, of[:, [-1]] * nearby]
        return np.concatenate(parts, axis=1)

    def lists(self, queries: Queries, weights: Weights, depth: int) -> np.ndarray:
        """The items that score best for each query, those of its history left out.

        Returns:
            int32 [Q, depth], item rows, best first, −1 behind.
        """
        listed = np.full((len(queries), depth), -1, dtype=np.int32)
        for made, some in self.moments(queries):
            asked = queries.take(some)
            scores = self.user_vectors(made, asked, weights) @ made.item_vectors.T
            _hide_seen(self.dataset, made, asked, scores)
            kept = min(depth, scores.shape[1])
            top = (
                np.argpartition(-scores, range(kept), axis=1)[:, :kept] if kept else np.empty((len(some), 0), dtype=int)
            )
            found = np.isfinite(np.take_along_axis(scores, top, axis=1))
            listed[some, :kept] = np.where(found, made.rows[top] if kept else top, -1)
        return listed

    def fitted(self, queries: Queries, *, candidates: int = 400, penalty: float = 1e-3) -> Weights:
        """Weights that make what users took next likeliest: a conditional logit (McFadden 1974) over a moment's items.

        Args:
            queries: of training, with one target each.
            candidates: the items taken most within an hour, among which a target is found; others say nothing.
            penalty: of the squared weights, in units of each coordinate's spread.
        """
        found = [self._choices(made, queries.take(some), candidates) for made, some in self.moments(queries)]
        choices, targets, states = (np.concatenate(part) for part in zip(*found, strict=True))
        if not len(targets):
            raise ValueError(f"none of {len(queries)} queries took one of the {candidates} items most taken then")
        spread = choices.std(axis=(0, 1)) + 1e-6
        choices /= spread

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            of = flat.reshape(STATES, PARTS)
            scores = np.einsum("qcp,qp->qc", choices, of[states].astype(np.float32), optimize=True)
            scores[~np.isfinite(scores)] = -np.inf
            log = scores - logsumexp(scores, axis=1, keepdims=True)
            wrong = np.exp(log)
            wrong[np.arange(len(targets)), targets] -= 1
            each = np.einsum("qc,qcp->qp", wrong, choices, optimize=True)
            slope = np.stack([each[states == state].sum(axis=0) for state in range(STATES)]) / len(targets)
            value = -log[np.arange(len(targets)), targets].mean() + penalty * (flat**2).sum()
            return float(value), (slope + 2 * penalty * of).ravel()

        best = minimize(loss, np.zeros(STATES * PARTS), jac=True, method="L-BFGS-B", options={"maxiter": 100})
        return Weights(best.x.reshape(STATES, PARTS) / spread)

    def _choices(self, made: Moment, queries: Queries, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each candidate is for each query float32 [q, candidates, PARTS], which was taken [q], and states [q]."""
        state, following, nearby = self.user_parts(made, queries)
        hour = made.popularity[:, COUNTED.index(("any", 1.0))]
        top = np.sort(np.argsort(-hour, kind="stable")[:candidates])
        popularity = np.broadcast_to(made.popularity[top], (len(queries), len(top), POPULARITIES))
        step = np.einsum("qkr,cr->qck", following, made.next_to[top], optimize=True)
        pairs = (nearby @ made.near_to[top].T)[:, :, None]
        choices = np.concatenate([popularity, step, pairs], axis=2).astype(np.float32)
        target = made.places(queries.targets)
        place = np.minimum(np.searchsorted(top, target), max(0, len(top) - 1))
        there = (target >= 0) & (len(top) == candidates)
        there[there] &= top[place[there]] == target[there]
        return choices[there], place[there], state[there]


def _hide_seen(dataset: Dataset, made: Moment, queries: Queries, scores: np.ndarray) -> None:
    query, position = history_positions(dataset, queries)
    place = made.places(np.asarray(dataset.items)[position])
    scores[query[place >= 0], place[place >= 0]] = -np.inf
