"""The k items of a list that is held to rules: what an exact sort of everything would give, found without one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.attributes import FilterError
from recsys.rules.candidates import END, NOWHERE, Arrangeable, Boost, Candidates, Reach
from recsys.rules.held import CountedCap, CountedQuota, Diverse
from recsys.rules.said import RuleError, Rules

# Until here a deeper search that passes over capped items costs less than a mask over all items that leaves them out.
_SEARCHED_PLAINLY = 1_000
_LEARNED_AT_FIRST = 32


@dataclass(frozen=True, slots=True)
class Arranged:
    """The items of a list, in its order.

    Attributes:
        rows: int64 [n], min(k, number of eligible items) of them.
        scores: float32 [n], plain inner products, so not descending where a rule moved an item.
        relaxed: what could not be held: `caps`, and `quotas[i]` for each quota that was not met.
    """

    rows: np.ndarray
    scores: np.ndarray
    relaxed: tuple[str, ...]


def arrange(
    catalogue: Arrangeable,
    query: np.ndarray,
    k: int,
    rules: Rules,
    *,
    spread: float,
    eligible: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    now_ms: int,
    pool: int,
) -> Arranged:
    """The list of k items that rules ask for; docs/rules.md defines it, and a test holds a plain sort against it.

    Args:
        catalogue: what is searched; the answer is as exact as its search.
        query: float32 [D].
        k: how many items, at least 1; always k where k are eligible.
        rules: what holds for the list.
        spread: the standard deviation of the query's scores over the catalogue, which freshness is measured in.
        eligible: bool [R], the items that may be returned; all of them if None.
        exclude: int [E], rows that may not.
        now_ms: what time it is, in milliseconds since 1970.
        pool: among how many of the best diversity chooses.

    Raises:
        RuleError: a rule names an attribute that there is not, or one of the wrong kind, or its filter cannot be used.
    """
    if k < 1:
        raise RuleError(f"k is {k}; ask for at least 1 item")
    moments = None
    if rules.freshness is not None:
        _check_kind(catalogue, rules.freshness.attribute, "freshness", ("timestamp",))
        moments = catalogue.numbers(rules.freshness.attribute)
    for cap in rules.caps:
        _check_kind(catalogue, cap.attribute, "caps", ("categorical", "multi"))
    quotas = [CountedQuota(catalogue, quota, f"quotas[{number}]") for number, quota in enumerate(rules.quotas)]
    boost = Boost(moments, rules.freshness, spread, now_ms)
    candidates = Candidates(catalogue, query, boost, exclude)
    if not candidates.num_rows:
        return Arranged(candidates.rows, candidates.scores, tuple(quota.name for quota in quotas))
    caps = [CountedCap(catalogue, cap) for cap in rules.caps]
    arrangement = _Arrangement(catalogue, candidates, k, caps, quotas, rules.diversity, eligible, pool)
    return arrangement.made()


class _Arrangement:
    """One list in the making: picks one item after the other, and searches deeper where a pick is not certain."""

    def __init__(
        self,
        catalogue: Arrangeable,
        candidates: Candidates,
        k: int,
        caps: Sequence[CountedCap],
        quotas: Sequence[CountedQuota],
        diversity: float,
        eligible: np.ndarray | None,
        pool: int,
    ) -> None:
        self._catalogue = catalogue
        self._found = candidates
        self._k = k
        self._caps = caps
        self._quotas = quotas
        self._eligible = eligible
        depth = max(pool, k) if diversity else 2 * k
        self._all = Reach(candidates, depth)
        self._open = Reach(candidates, depth)  # what is not over a cap
        self._due = Reach(candidates, depth)  # and what meets a quota that is not met
        self._picks: list[int] = []
        self._picked = np.zeros(0, dtype=bool)  # of each candidate
        self._over = np.zeros(0, dtype=bool)  # of each candidate: as far as it is known, a cap passes over it
        self._known = np.zeros(0, dtype=bool)  # of each candidate: caps have learned of it
        self._mmr = self._pool(pool, diversity) if diversity and pool > 0 else None

    def made(self) -> Arranged:
        relaxed = []
        while len(self._picks) < self._k:
            if (at := self._next()) is None:
                if (at := self._first_of_all()) is None:
                    break
                relaxed = ["caps"]
            self._pick(at)
        relaxed += [quota.name for quota in self._quotas if quota.missing]
        return Arranged(self._found.rows[self._picks], self._found.scores[self._picks], tuple(relaxed))

    def _next(self) -> int | None:
        """The position of the next pick, which no cap passes over; None if there is no such item."""
        due = [quota for quota in self._quotas if quota.missing]
        must = sum(quota.missing for quota in due) >= self._k - len(self._picks)
        if due and must and (at := self._best(due)) is not None:
            return at
        return self._best([])

    def _best(self, due: list[CountedQuota]) -> int | None:
        """The position of the best item that no cap passes over, among those that meet a quota if there are any."""
        if self._mmr is not None and (at := self._mmr.best(self._are_open(due))) is not None:
            return at
        while True:
            ranked = self._ranked(self._are_open(due))
            bound = max(self._all.bound, self._open.bound, self._due.bound if due else NOWHERE)
            if len(ranked) and not self._known[ranked[0]]:
                # Few at first, since most of what is found is never looked at; then twice as many as before.
                self._learn(ranked[: max(_LEARNED_AT_FIRST, int(np.count_nonzero(self._known)))])
                continue
            if len(ranked) and self._found.place(ranked[0]) <= bound:
                return int(ranked[0])
            if bound == END:
                return None
            self._search_open(due, self._wanted(ranked, self._k - len(self._picks)))

    def _first_of_all(self) -> int | None:
        """The position of the best item that was not picked, whatever caps say; None if all were."""
        while True:
            ranked = self._ranked(~self._picked)
            if len(ranked) and self._found.place(ranked[0]) <= self._all.bound:
                return int(ranked[0])
            if self._all.bound == END:
                return None
            self._search(self._all, self._eligible, self._wanted(ranked, self._k - len(self._picks)))

    def _pool(self, size: int, diversity: float) -> Diverse | None:
        """What diversity chooses from; None if nothing may be returned."""
        while True:
            first = self._found.order[:size]
            certain = len(first) == size and self._found.place(first[-1]) <= self._all.bound
            if certain or self._all.bound == END:
                break
            self._search(self._all, self._eligible, self._wanted(first, size))
        if not len(first):
            return None
        self._learn(first)
        return Diverse(first, self._found.lifted[first], self._catalogue.vectors(self._found.rows[first]), diversity)

    def _search_open(self, due: list[CountedQuota], wanted: float) -> None:
        """Searches deeper for what no cap passes over, and if quotas are due, for what meets one."""
        full = [(cap, words) for cap in self._caps if (words := cap.full())]
        if not due and (not full or self._all.depth <= _SEARCHED_PLAINLY):
            self._search(self._all, self._eligible, wanted)
            return
        among = np.ones(self._found.num_rows, dtype=bool) if self._eligible is None else self._eligible.copy()
        for cap, words in full:
            among &= cap.left(words)
        if due:
            among &= np.logical_or.reduce([quota.mask for quota in due])
        self._search(self._due if due else self._open, among, wanted)

    def _search(self, reach: Reach, among: np.ndarray | None, wanted: float) -> None:
        reach.deepen(among, wanted)
        new = np.zeros(len(self._found.rows) - len(self._picked), dtype=bool)
        self._picked = np.concatenate([self._picked, new])
        self._over = np.concatenate([self._over, new])
        self._known = np.concatenate([self._known, new if self._caps else ~new])

    def _learn(self, candidates: np.ndarray) -> None:
        """Lets caps learn of candidates."""
        new = candidates[~self._known[candidates]]
        if not len(new):
            return
        self._known[new] = True
        for cap in self._caps:
            self._over[cap.learn(new.tolist(), self._found.rows[new])] = True

    def _pick(self, at: int) -> None:
        self._learn(np.array([at]))  # where no cap was asked: what only fills the list
        self._picks.append(at)
        self._picked[at] = True
        row = self._found.rows[at]
        for cap in self._caps:
            self._over[cap.count(at)] = True
        for quota in self._quotas:
            quota.count(row)
        if self._mmr is not None:
            self._mmr.count(self._catalogue.vectors(row[None])[0])

    def _are_open(self, due: list[CountedQuota]) -> np.ndarray:
        """bool [n]: which candidates were not picked, are over no cap and, if quotas are due, meet one."""
        are_open = ~(self._picked | self._over)
        return are_open & np.logical_or.reduce([quota.mask[self._found.rows] for quota in due]) if due else are_open

    def _ranked(self, usable: np.ndarray) -> np.ndarray:
        """Positions of the candidates that are usable, bool [n], best first."""
        return self._found.order[usable[self._found.order]]

    def _wanted(self, ranked: np.ndarray, places: int) -> float:
        """The lifted score that an item needs for one of so many places; −inf if they are not filled yet."""
        return float(self._found.lifted[ranked[places - 1]]) if len(ranked) >= places else -math.inf


def _check_kind(catalogue: Arrangeable, attribute: str, rule: str, kinds: tuple[str, ...]) -> None:
    try:
        kind = catalogue.kind(attribute)
    except FilterError as error:
        raise RuleError(f"{rule}: {error}") from None
    if kind not in kinds:
        raise RuleError(f"{rule}: {attribute!r} is {kind}; name an attribute that is {' or '.join(kinds)}")
