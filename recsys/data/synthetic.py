"""Synthetic tables with planted structure: for tests that know what a model should find, and for scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.data.schema import Entity, Feature, Interactions, Schema
from recsys.data.sources import Batch, Tables

START = 1_704_067_200_000  # 2024-01-01 UTC, in milliseconds
DAYS = 90
STAY, FOLLOW = 0.5, 0.25  # of a user's next item: same cluster as the last one; the cluster that follows it
BUY = 0.1
_ROWS = 1 << 18
_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")
_WORDS_A_CLUSTER = 8


class Synthetic(Tables):
    """A shop whose log can be learnt, by construction.

    Every item belongs to a cluster, which its category and the words of its title tell. A user's next item comes from
    the cluster of the last one (probability 0.5), from the cluster that follows it (0.25, see `following`), or from
    the user's favourite, which changes once at a moment of the user's own. Within a cluster popularity is Zipf's.
    Some users are far more active than others, and they keep arriving; a few of users and items may never turn up.
    The log is in order of time; equal arguments give equal rows.

    Args:
        users, items: how many there are at most.
        interactions: how many to draw.
        clusters: how many groups of items; item i belongs to cluster i mod clusters.
        seed: of everything random.
        duplicates: share of rows that come twice.
        broken: share of rows, in addition, without an item id.
    """

    def __init__(
        self,
        users: int = 1_000,
        items: int = 500,
        interactions: int = 50_000,
        clusters: int = 10,
        seed: int = 0,
        duplicates: float = 0.0,
        broken: float = 0.0,
    ) -> None:
        if not 1 <= clusters <= items:
            raise ValueError(f"{clusters} clusters do not fit {items} items; each needs at least one")
        self.following = np.random.default_rng(seed).permutation(clusters)
        super().__init__(
            Schema(
                Interactions(user="user_id", item="item_id", time="time", event="event", unit="ms"),
                Entity(
                    "item_id",
                    (
                        Feature("title", "text", show=True),
                        Feature("category", "categorical", show=True),
                        Feature("price", "numeric", show=True),
                    ),
                ),
            ),
            _Log(users, items, interactions, clusters, seed, duplicates, broken),
            _Items(items, clusters, seed),
        )


@dataclass(frozen=True)
class _Log:
    users: int
    items: int
    interactions: int
    clusters: int
    seed: int
    duplicates: float
    broken: float

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        random = np.random.default_rng(self.seed)
        following = random.permutation(self.clusters).astype(np.int32)
        favourites = random.integers(0, self.clusters, size=(2, self.users), dtype=np.int32)
        change = random.random(self.users, dtype=np.float32)
        last = favourites[0].copy()
        # A user's rows in one batch are drawn one after the other, so batches must not be much larger than the crowd.
        at_most = min(_ROWS, 16 * self.users)
        done = row = 0
        while done < self.interactions:
            number = min(at_most, self.interactions - done)
            age = (done + number * np.sort(random.random(number))) / self.interactions
            arrived = np.maximum(self.users * (0.3 + 0.7 * age), 1)
            users = np.minimum(arrived * random.random(number) ** 1.5, self.users - 1).astype(np.int32)
            favourite = np.where(age < change[users], favourites[0][users], favourites[1][users])
            clusters = self._clusters(users, favourite, last, following, random.random(number, dtype=np.float32))
            # Zipf with exponent 1 by its inverse distribution: rank r is drawn with density 1 / r.
            size = (self.items - clusters + self.clusters - 1) // self.clusters
            items = clusters + self.clusters * (np.power(size + 1, random.random(number)).astype(np.int32) - 1)
            times = (START + age * DAYS * 86_400_000).astype(np.int64)
            bought = random.random(number, dtype=np.float32) < BUY
            drawn = {
                "user_id": pa.array(users, pa.int64()),
                "item_id": pa.array(items, pa.int64()),
                "time": pa.array(times),
                "event": pa.DictionaryArray.from_arrays(pa.array(bought.astype(np.int8)), pa.array(["view", "buy"])),
            }
            batch = self._dirtied(pa.RecordBatch.from_pydict(drawn), random).select(list(columns))
            yield Batch("synthetic log", batch, np.arange(row + 1, row + 1 + batch.num_rows))
            done += number
            row += batch.num_rows

    def _clusters(
        self, users: np.ndarray, favourite: np.ndarray, last: np.ndarray, following: np.ndarray, chance: np.ndarray
    ) -> np.ndarray:
        """int32 [n]: the cluster of each row; `last` [users] is brought up to date on the way."""
        by_user = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.diff(users[by_user], prepend=-1))
        ends = np.append(starts[1:], len(users))
        clusters = np.empty(len(users), dtype=np.int32)
        turn = 0
        while len(starts):  # every user's first row of the batch, then every user's second, …
            rows = by_user[starts + turn]
            previous = last[users[rows]]
            followed = np.where(chance[rows] < STAY + FOLLOW, following[previous], favourite[rows])
            clusters[rows] = np.where(chance[rows] < STAY, previous, followed)
            last[users[rows]] = clusters[rows]
            turn += 1
            more = starts + turn < ends
            starts, ends = starts[more], ends[more]
        return clusters

    def _dirtied(self, batch: pa.RecordBatch, random: np.random.Generator) -> pa.RecordBatch:
        number = batch.num_rows
        if self.duplicates:
            twice = np.flatnonzero(random.random(number) < self.duplicates)
            batch = batch.take(pa.array(np.concatenate([np.arange(number), twice])))
        if self.broken:
            cut = random.integers(0, number, size=round(number * self.broken))
            rows = np.concatenate([np.arange(batch.num_rows), cut])
            intact = np.arange(len(rows)) < batch.num_rows
            batch = batch.take(pa.array(rows))
            items = pa.array(batch.column("item_id").to_numpy(), mask=~intact)
            batch = batch.set_column(1, "item_id", items)
        return batch


@dataclass(frozen=True)
class _Items:
    items: int
    clusters: int
    seed: int

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        random = np.random.default_rng([self.seed, 1])
        words = [
            [f"{_SYLLABLES[a]}{_SYLLABLES[b]}{cluster}" for a, b in random.integers(0, 10, size=(_WORDS_A_CLUSTER, 2))]
            for cluster in range(self.clusters)
        ]
        for start in range(0, self.items, _ROWS):
            rows = np.arange(start, min(start + _ROWS, self.items))
            clusters = rows % self.clusters
            chosen = random.integers(0, _WORDS_A_CLUSTER, size=(len(rows), 2)).tolist()
            titles = [
                f"{words[cluster][a]} {words[cluster][b]} {row}"
                for row, cluster, (a, b) in zip(rows.tolist(), clusters.tolist(), chosen, strict=True)
            ]
            drawn = {
                "item_id": pa.array(rows),
                "title": pa.array(titles),
                "category": pa.array([f"category {cluster}" for cluster in clusters.tolist()]),
                "price": pa.array(np.round(random.lognormal(3, 1, size=len(rows)), 2)),
            }
            yield Batch("synthetic items", pa.RecordBatch.from_pydict(drawn).select(list(columns)), rows + 1)
