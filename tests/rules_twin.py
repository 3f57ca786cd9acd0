"""Rules held in the most naive way: everything is sorted, in Python's own numbers; what `arrange` must equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.attributes import Attributes
from recsys.data.schema import Entity, Feature
from recsys.index.exact import best

DAY_MS = 86_400_000
NOW = 1_000 * DAY_MS
ENTITY = Entity(
    "id",
    (
        Feature("brand", "categorical"), Feature("tags", "multi"), Feature("price", "numeric"),
        Feature("added", "timestamp"), Feature("title", "text"),
    ),
)  # fmt: skip
TYPES = {
    "brand": pa.string(), "tags": pa.list_(pa.string()), "price": pa.float64(), "added": pa.int64(),
    "title": pa.string(),
}  # fmt: skip


@dataclass
class Toy:
    """A catalogue of items given as dicts with a `vector` and perhaps attributes; `searched` counts what it was asked.

    An item's score is summed for itself, and so the same in any search.
    """

    items: list[dict]

    def __post_init__(self):
        columns = {name: pa.array([item.get(name) for item in self.items], kind) for name, kind in TYPES.items()}
        self.attributes = Attributes(ENTITY, pa.table(columns), len(self.items))
        self.num_rows = len(self.items)
        dimension = len(self.items[0]["vector"]) if self.items else 2
        self._vectors = np.array([item["vector"] for item in self.items], np.float32).reshape(-1, dimension)
        self.searched: list[tuple[int, int]] = []  # the k of each search, and how many items were eligible
        self.numbers, self.values, self.kind = self.attributes.numbers, self.attributes.values, self.attributes.kind
        self.eligible = self.attributes.eligible

    def scores(self, query):
        return (self._vectors * query).sum(axis=1, dtype=np.float32)

    def search(self, query, k, *, eligible, exclude):
        assert 1 <= k <= self.num_rows
        scores = self.scores(query)
        if eligible is not None:
            assert eligible.dtype == bool
            assert eligible.shape == (self.num_rows,)
            scores[~eligible] = -np.inf
        if exclude is not None:
            scores[exclude[exclude >= 0]] = -np.inf
        self.searched.append((k, int((scores > -np.inf).sum())))
        return best(scores, k)

    def vectors(self, rows):
        return self._vectors[rows]


def plainly(toy, query, k, rules, *, spread, eligible=None, exclude=None, now_ms, pool):
    """The rows of the list and what was relaxed."""
    scores, vectors = toy.scores(query).tolist(), toy.vectors(np.arange(toy.num_rows)).tolist()
    banned = set() if exclude is None else set(exclude.tolist())
    usable = [row for row in range(toy.num_rows) if row not in banned and (eligible is None or eligible[row])]
    lifted = {row: scores[row] + _boost(toy.items[row], rules.freshness, spread, now_ms) for row in usable}
    ranked = sorted(usable, key=lambda row: (-lifted[row], row))
    meeting = [set(np.flatnonzero(toy.eligible(quota.filter)).tolist()) for quota in rules.quotas]
    pooled = ranked[:pool] if rules.diversity > 0 else []
    picked: list[int] = []
    filled = False

    def over_a_cap(row):
        for cap in rules.caps:
            for word in set(_words(toy.items[row], cap.attribute)):
                if sum(word in _words(toy.items[other], cap.attribute) for other in picked) >= cap.most:
                    return True
        return False

    def lacking():
        return [max(0, quota.least - len(meeting[number] & set(picked))) for number, quota in enumerate(rules.quotas)]

    while len(picked) < min(k, len(ranked)):
        left = [row for row in ranked if row not in picked]
        free = [row for row in left if not over_a_cap(row)]
        if not free:
            filled = True
            picked.append(left[0])
            continue
        lacks = lacking()
        if sum(lacks) >= k - len(picked):
            due = [row for row in free if any(lack and row in meeting[number] for number, lack in enumerate(lacks))]
            free = due or free
        choice = [row for row in free if row in pooled]
        if not choice:
            picked.append(free[0])
            continue
        low, high = min(lifted[row] for row in pooled), max(lifted[row] for row in pooled)

        def value(row, low=low, high=high):
            relevance = (lifted[row] - low) / (high - low) if high > low else 0.0
            alike = max((_cosine(vectors[row], vectors[other]) for other in picked), default=0.0)
            return (1 - rules.diversity) * relevance - rules.diversity * alike

        picked.append(max(choice, key=value))  # the first of equals, and they stand in order
    relaxed = (["caps"] if filled else []) + [f"quotas[{number}]" for number, lack in enumerate(lacking()) if lack]
    return picked, tuple(relaxed)


def _boost(item, freshness, spread, now_ms):
    if freshness is None or item.get("added") is None:
        return 0.0
    age = max(0, now_ms - item["added"]) / DAY_MS
    return freshness.weight * spread * float(np.exp2(-(age / freshness.half_life_days)))


def _words(item, attribute):
    said = item.get(attribute)
    return said or [] if isinstance(said, list) else [] if said is None else [said]


def _cosine(one, other):
    """As what diversity calls a cosine: one part in 2²⁴ does not tell two apart, so that equal ones are equal."""
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return round(sum(x * y for x, y in zip(one, other, strict=True)) / lengths * 2**24) / 2**24 if lengths else 0.0
