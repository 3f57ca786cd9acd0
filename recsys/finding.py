"""From a request that was understood to its answer: the order to search in, the rules, and what to say of each item."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from recsys.answers import Answer, Effort, Pull, Query, Recommendation, RequestError, Strategy
from recsys.attributes import FilterError
from recsys.explain import pulls, rank_of
from recsys.ids import Id
from recsys.live import LiveCatalogue
from recsys.orders import ByPopularity, ByPrefix, Hastily
from recsys.rules import RuleError, arrange
from recsys.users_now import Taken, taken

FEWER, CHEAPER, POPULAR = "fewer candidates", "cheaper dimension", "popular"
_POOL, _POOL_AT_LEAST, _POOL_AT_MOST = 10, 100, 1000  # candidates for diversity: a multiple of k, and its bounds
_NO_VECTOR = np.zeros(1, dtype=np.float32)  # popular items have no query
_FEW_LEFT_OUT = 256  # by which a search for many users may go deeper than k, to leave each one's own out afterwards


@dataclass(slots=True)
class Request:
    """A request in terms of rows and vectors.

    Attributes:
        query: the request.
        strategy: how it is answered.
        vector: float32 [D], what to search for; None where the strategy is `popular`, or while it is to be made.
        taken: the history that the vector is to be made of, where none is stored.
        user: the row of the user whom the bundle knows.
        eligible: bool [R], which rows pass the filter; None where there is none.
        excluded: int [E], rows not to return; None where there are none.
        unknown: ids that nobody knows.
        degraded: what is done more cheaply than it could be.
        stages: seconds spent so far, by stage.
    """

    query: Query
    strategy: Strategy
    vector: np.ndarray | None = None
    taken: Taken | None = None
    user: int | None = None
    eligible: np.ndarray | None = None
    excluded: np.ndarray | None = None
    unknown: list[Id] = field(default_factory=list)
    degraded: tuple[str, ...] = ()
    stages: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows int64 [n], best first, their scores float32 [n], and the rules that had to be relaxed."""

    rows: np.ndarray
    scores: np.ndarray
    relaxed: tuple[str, ...] = ()


class Finder:
    """Finds what was asked for in one state of the catalogue; safe from many threads.

    Args:
        live: the items as they are now.
    """

    def __init__(self, live: LiveCatalogue) -> None:
        self._live = live
        self._bundle_id = live.bundle.id
        self._said = live.said if live.num_rows > len(live.bundle.item_ids) else live.derived.said
        self._by_popularity, self._by_prefix, self._hastily = ByPopularity(live), ByPrefix(live), Hastily(live)

    def find(self, request: Request) -> Found:
        """The best k rows, arranged by the request's rules.

        Args:
            request: with its vector, unless the strategy is `popular`.

        Raises:
            RequestError: a rule cannot be used.
        """
        query, k = request.query, request.query.k
        order = self._order(request)
        vector = request.vector if request.vector is not None else _NO_VECTOR
        if not query.rules:
            begun = perf_counter()
            scores, rows = order.search(vector, k, eligible=request.eligible, exclude=request.excluded)
            request.stages.append(("search", perf_counter() - begun))
            return Found(rows, scores)
        begun = perf_counter()
        pool = k if FEWER in request.degraded else max(k, min(max(_POOL * k, _POOL_AT_LEAST), _POOL_AT_MOST))
        try:
            arranged = arrange(
                order,
                vector,
                k,
                query.rules,
                spread=self._spread(request),
                eligible=request.eligible,
                exclude=request.excluded,
                now_ms=time.time_ns() // 1_000_000 if query.now_ms is None else query.now_ms,
                pool=pool,
            )
        except (RuleError, FilterError) as error:
            raise RequestError(str(error)) from None
        request.stages.append(("rules", perf_counter() - begun))
        return Found(arranged.rows, arranged.scores, arranged.relaxed)

    def _order(self, request: Request) -> LiveCatalogue | ByPopularity | ByPrefix | Hastily:
        if request.vector is None:
            return self._by_popularity
        if CHEAPER in request.degraded:
            return self._by_prefix
        return self._hastily if FEWER in request.degraded else self._live

    def _spread(self, request: Request) -> float:
        """The standard deviation of the scores that freshness is weighed against; asked for by no other rule."""
        if request.query.rules.freshness is None:
            return 0.0
        derived = self._live.derived
        return derived.popularity_spread if request.vector is None else derived.spread(request.vector)

    def answer(self, request: Request, found: Found) -> Answer:
        """What was found, as the world is told it."""
        begun = perf_counter()
        items = [
            Recommendation(item_id, score, rank, attributes)
            for rank, (score, (item_id, attributes)) in enumerate(
                zip(found.scores.tolist(), map(self._said, found.rows.tolist()), strict=True), 1
            )
        ]
        if request.query.explain:
            items = self._explained(request, found, items)
        request.stages.append(("read", perf_counter() - begun))
        unknown, degraded, stages = request.unknown, request.degraded, tuple(request.stages)
        return Answer(self._bundle_id, request.strategy, items, unknown, found.relaxed, degraded, stages)

    def _explained(self, request: Request, found: Found, items: list[Recommendation]) -> list[Recommendation]:
        """The items with what pulled them up, if a history did, and their ranks before filter, seen items and rules.

        The ranks take a pass over all vectors, whatever the index and whatever the answer was found by.
        """
        vector, rows = request.vector, found.rows
        scores = self._live.popularity if vector is None else self._live.scores(vector)
        pulled: list[list[Pull]] | list[None] = [None] * len(rows)
        if request.strategy in ("personalised", "history"):
            history = taken(self._live, request.user) if request.taken is None else request.taken
            pulled = pulls(self._live, history, self._live.vectors(rows))
        return [
            replace(item, because=because, rank_before_rules=rank_of(scores, row, float(scores[row])))
            for item, because, row in zip(items, pulled, rows.tolist(), strict=True)
        ]

    def find_together(self, many: Sequence[Request]) -> list[Found]:
        """As `find` for each of what `alike` put together, by one search."""
        begun = perf_counter()
        vectors = np.stack([request.vector for request in many if request.vector is not None])
        if self._live.bundle.index.kind == "flat":
            depth = max(request.query.k + _left_out(request) for request in many)
            found = []
            for request, (scores, rows) in zip(many, self._live.search_many(vectors, depth), strict=True):
                if request.excluded is not None:
                    kept = ~np.isin(rows, request.excluded)
                    scores, rows = scores[kept], rows[kept]
                found.append(Found(rows[: request.query.k], scores[: request.query.k]))
        else:
            depth = max(request.query.k for request in many)
            searched = self._live.search_many(vectors, depth, exclude=many[0].excluded)
            found = [
                Found(rows[: request.query.k], scores[: request.query.k])
                for request, (scores, rows) in zip(many, searched, strict=True)
            ]
        for request in many:
            request.stages.append(("search", (perf_counter() - begun) / len(many)))
        return found

    def alike(self, many: Iterable[tuple[int, Request]]) -> list[list[int]]:
        """The numbers of requests, those together that one search may answer.

        They have a vector and neither filter nor rules. A flat index is searched by one product for all of them, as
        deep as lets each leave out its own; any other, by what gives the same as alone, for those who leave out the
        same.
        """
        flat = self._live.bundle.index.kind == "flat"
        groups: dict[object, list[int]] = {}
        for number, request in many:
            key: object = number, "alone"
            if (
                request.vector is not None
                and request.eligible is None
                and not request.query.rules
                and not request.degraded
            ):
                if not flat:
                    key = request.query.k, b"" if request.excluded is None else request.excluded.tobytes()
                elif _left_out(request) <= _FEW_LEFT_OUT:
                    key = "flat"
            groups.setdefault(key, []).append(number)
        return list(groups.values())


def _left_out(request: Request) -> int:
    return 0 if request.excluded is None else len(request.excluded)


def economies(query: Query, live: LiveCatalogue, *, popular: bool) -> tuple[str, ...]:
    """What a request's effort lets be done more cheaply, where that makes a difference.

    Args:
        query: the request.
        live: the items.
        popular: whether popular items are the answer in any case.
    """
    if query.effort is Effort.FULL:
        return ()
    if query.effort is Effort.POPULAR and not popular:
        return (POPULAR,)
    fewer = query.rules.diversity or (not popular and live.derived.hasty_index is not None)
    done: tuple[str, ...] = (FEWER,) if fewer else ()
    if query.effort is Effort.PREFIX and not popular and live.derived.prefix is not None:
        done += (CHEAPER,)
    return done
