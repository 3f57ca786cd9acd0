"""Which index these vectors want: every kind is built, asked and measured, and held against a budget."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recsys.index.build import (
    Flat,
    HalfPrecision,
    Hnsw,
    Ivf,
    IvfPq,
    Kind,
    at_effort,
    build,
    exact_scores,
    recall_of,
)
from recsys.index.engine import faiss, use_one_thread
from recsys.index.search import Index

# Each row is built once and asked with every effort in it.
FAMILIES: tuple[tuple[Kind, ...], ...] = (
    (Flat(),),
    (HalfPrecision(),),
    tuple(Hnsw(effort=effort) for effort in (32, 96, 256)),
    tuple(Ivf(probed_share=share) for share in (1 / 64, 1 / 16, 1 / 4)),
    tuple(IvfPq(probed_share=share) for share in (1 / 64, 1 / 16, 1 / 4)),
)
MEMORY_STEP = 100_000_000  # bytes; below this nobody sizes a machine, so less memory is not cheaper
_ROUNDS = 5  # each index is timed in as many stretches, in turns, so that a machine that slows down slows all alike
_WARM_UP = 20


@dataclass(frozen=True)
class Budget:
    """What an index may cost and must give; None bounds nothing.

    Args:
        memory: bytes that must be resident where it serves.
        p99: seconds, of one query on one thread.
        recall: share of the true k found, over full vectors.
        build: seconds, on all cores of this machine, or its GPU.
    """

    memory: float | None = None
    p99: float | None = None
    recall: float | None = None
    build: float | None = None


@dataclass(frozen=True)
class Trial:
    """One way to index, measured.

    Attributes:
        kind: None for the floor, one pass of the BLAS over the vectors, which chooses nothing.
        dimension: what the vectors were cut to.
        recall: share of the k best by the full vectors that it finds.
        p50: seconds, of one query on one thread.
        p99: likewise.
        file_bytes: length of the index's file.
        memory: bytes of it that must stay in memory; see `Kind.resident`.
        build: seconds.
    """

    kind: Kind | None
    dimension: int
    recall: float
    p50: float
    p99: float
    file_bytes: int
    memory: int
    build: float

    def missed(self, budget: Budget) -> dict[str, float]:
        """The constraints that it misses, and by which share of each limit."""
        over = {
            name: value / limit - 1
            for name, value, limit in (
                ("memory", self.memory, budget.memory),
                ("p99", self.p99, budget.p99),
                ("build", self.build, budget.build),
            )
            if limit is not None and value > limit
        }
        if budget.recall is not None and self.recall < budget.recall:
            over["recall"] = 1 - self.recall / budget.recall
        return over


@dataclass(frozen=True)
class Advice:
    """What to take: the cheapest trial within the budget, else the nearest to it and what that one misses."""

    trial: Trial
    missed: dict[str, float]


def advise(trials: Sequence[Trial], budget: Budget) -> Advice:
    """The cheapest of the trials that meet a budget.

    Cheapest is what needs least memory, in steps of 100 MB, since memory is what every replica pays for all day; among
    equals it is the quickest at the median, since that is how many requests a core answers. If none meets the budget,
    it is the one whose worst miss is smallest.

    Raises:
        ValueError: nothing was tried.
    """
    tried = [trial for trial in trials if trial.kind is not None]
    if not tried:
        raise ValueError("no index was tried; give at least one family of kinds")
    within = [trial for trial in tried if not trial.missed(budget)]
    if within:
        return Advice(min(within, key=lambda trial: (math.ceil(trial.memory / MEMORY_STEP), trial.p50)), {})
    nearest = min(tried, key=lambda trial: max(trial.missed(budget).values()))
    return Advice(nearest, nearest.missed(budget))


def measure(
    vectors: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 10,
    dimensions: Sequence[int] = (),
    unit: bool = False,
    families: Sequence[Sequence[Kind]] = FAMILIES,
    say: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Builds every kind at every dimension, and measures what it finds, how fast, and in how much memory.

    Indexes are written and opened as a server would, memory-mapped. Searches are of one query on one thread; all kinds
    take turns. Recall counts against the exact top k of the full vectors, since that is what a user loses.

    Args:
        vectors: float32 [N, D], of the items.
        queries: float32 [Q, D], what will be asked; users' vectors.
        k: how many items a query wants.
        dimensions: what to cut the vectors to; the full D if empty.
        unit: whether vectors are of length 1, so that what is cut must be scaled again.
        families: rows of kinds that differ in effort only.
        say: told what is being done, a line each.

    Returns:
        The floor at the full dimension, then a trial for each kind, by dimension in the order given.

    Raises:
        ValueError: there are no vectors or no queries, or a dimension is none of theirs.
    """
    full = vectors.shape[1]
    dimensions = tuple(dict.fromkeys(dimensions)) or (full,)
    if wrong := [size for size in dimensions if not 0 < size <= full]:
        raise ValueError(f"vectors of {full} dimensions cannot be cut to {wrong[0]}; choose from 1 to {full}")
    if not len(vectors) or not len(queries):
        raise ValueError(f"{len(vectors)} items and {len(queries)} queries measure nothing; give some of each")
    k = min(k, len(vectors))
    say(f"exact answers to {len(queries)} queries")
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    truth = exact_scores(vectors, queries, k)
    trials: list[Trial] = []
    try:
        with TemporaryDirectory(prefix="recsys-advise-") as folder:
            built = [
                found
                for size in dimensions
                for family in families
                for found in _built(_cut(vectors, size, unit), family, Path(folder), say)
            ]
            cut_queries = {size: _cut(queries, size, unit) for size in dimensions}
            use_one_thread()
            recalls = []
            say(f"recall of {len(built)} indexes")
            for _, index, *_ in built:
                asked = cut_queries[index.dimension]
                found = np.concatenate([index.search(query[None], k)[1] for query in asked])
                recalls.append(recall_of(found, vectors, queries, truth))
            say(f"latency of {len(built)} indexes in turns")
            searches = [_floor(vectors, queries)]
            searches += [_search(index, cut_queries[index.dimension], k) for _, index, *_ in built]
            times = _timed(searches, len(queries))
            trials.append(Trial(None, full, 1.0, *_percentiles(times[0]), vectors.nbytes, vectors.nbytes, 0.0))
            for (kind, index, file_bytes, seconds), recall, taken in zip(built, recalls, times[1:], strict=True):
                memory = file_bytes - _left_on_disk(kind, len(vectors), index.dimension)
                trials.append(Trial(kind, index.dimension, recall, *_percentiles(taken), file_bytes, memory, seconds))
    finally:
        faiss.omp_set_num_threads(os.cpu_count() or 1)
    return trials


def _built(
    vectors: np.ndarray, family: Sequence[Kind], folder: Path, say: Callable[[str], None]
) -> Iterator[tuple[Kind, Index, int, float]]:
    """Each kind of a family, its index as a server would open it, the length of the file and the seconds it took."""
    num_items, dimension = vectors.shape
    say(f"building {type(family[0]).__name__} over {num_items:,} × {dimension}")
    started = time.perf_counter()
    made = build(vectors, family[0])
    seconds = time.perf_counter() - started
    path = folder / f"{type(family[0]).__name__}-{dimension}-{len(list(folder.iterdir()))}.faiss"
    made.save(path)
    del made
    index = Index.load(path, num_items=num_items, dimension=dimension)
    for kind in family:
        yield kind, at_effort(index, kind), path.stat().st_size, seconds


def _cut(vectors: np.ndarray, dimension: int, unit: bool) -> np.ndarray:
    if dimension == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimension])
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-30) if unit else cut


def _left_on_disk(kind: Kind, num_items: int, dimension: int) -> int:
    return kind.bytes(num_items, dimension) - kind.resident(num_items, dimension)


def _floor(vectors: np.ndarray, queries: np.ndarray) -> Callable[[int], object]:
    """NumPy's BLAS, on as many threads as it was started with."""
    return lambda number: vectors @ queries[number]


def _search(index: Index, queries: np.ndarray, k: int) -> Callable[[int], object]:
    return lambda number: index.search(queries[number : number + 1], k)


def _timed(searches: Sequence[Callable[[int], object]], queries: int) -> np.ndarray:
    """Seconds [searches, queries]."""
    times = np.empty((len(searches), queries))
    for stretch in np.array_split(np.arange(queries), min(_ROUNDS, queries)):
        for search, taken in zip(searches, times, strict=True):
            for number in stretch[:_WARM_UP]:
                search(int(number))
            for number in stretch.tolist():
                started = time.perf_counter()
                search(number)
                taken[number] = time.perf_counter() - started
    return times


def _percentiles(taken: np.ndarray) -> tuple[float, float]:
    p50, p99 = np.percentile(taken, [50, 99]).tolist()
    return p50, p99
