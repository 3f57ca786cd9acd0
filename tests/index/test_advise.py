"""What is measured of each kind of index, and which of them a budget chooses."""

from itertools import pairwise

import numpy as np
import pytest

from recsys.index.advise import FAMILIES, MEMORY_STEP, Budget, Trial, advise, measure
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, IvfPq, Kind
from recsys.index.engine import faiss
from recsys.index.search import Index

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((800, 16)).astype(np.float32)
QUERIES = RANDOM.standard_normal((30, 16)).astype(np.float32)
QUICK = ((Flat(),), (HalfPrecision(),), (Ivf(lists=16, probed_share=1 / 16), Ivf(lists=16, probed_share=1.0)))


def trial(kind: Kind | None = Flat(), **figures: float) -> Trial:  # noqa: B008
    usual = {"dimension": 64, "recall": 0.97, "p50": 1e-4, "p99": 2e-4, "file_bytes": 1, "memory": 10**9, "build": 60.0}
    return Trial(kind, **{**usual, **figures})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return measure(VECTORS, QUERIES, dimensions=(16, 8), families=QUICK)


def test_every_kind_is_tried_at_every_dimension_after_the_floor(trials: list[Trial]) -> None:
    kinds = [kind for family in QUICK for kind in family]
    assert [(one.kind, one.dimension) for one in trials] == [
        (None, 16), *((kind, size) for size in (16, 8) for kind in kinds)
    ]  # fmt: skip


def test_what_is_exact_finds_all_and_what_is_cut_is_held_against_the_whole(trials: list[Trial]) -> None:
    by = {(type(one.kind), getattr(one.kind, "probed_share", 1), one.dimension): one for one in trials}
    assert by[Flat, 1, 16].recall == 1
    assert by[HalfPrecision, 1, 16].recall > 0.99
    assert by[Ivf, 1 / 16, 16].recall < by[Ivf, 1.0, 16].recall > 0.99
    # Half of random vectors says little of the whole: worked out without any index.
    true = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :10]
    cut = np.argsort(-(QUERIES[:, :8] @ VECTORS[:, :8].T), axis=1)[:, :10]
    expected = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(true, cut, strict=True)])
    assert by[Flat, 1, 8].recall == pytest.approx(expected, abs=1e-9)
    assert 0.1 < expected < 0.9


def test_cut_unit_vectors_are_made_unit_again() -> None:
    """Of two items, the prefix of one is long by chance; as cosines, the other is nearer, as it is in full."""
    vectors = np.array([[0.9, 0.436, 0.0], [0.5, 0.0, 0.866]], dtype=np.float32)
    query = np.array([[0.6, 0.0, 0.8]], dtype=np.float32)
    cut = {
        unit: measure(vectors, query, k=1, dimensions=(2,), unit=unit, families=[[Flat()]])[1].recall
        for unit in (True, False)
    }
    assert cut == {True: 1.0, False: 0.0}


def test_sizes_and_times_are_those_of_the_index(trials: list[Trial]) -> None:
    floor, flat = trials[:2]
    assert floor.memory == floor.file_bytes == 800 * 16 * 4
    assert flat.memory == flat.file_bytes == pytest.approx(800 * 16 * 4, abs=100)
    assert next(one for one in trials if one.kind == Flat() and one.dimension == 8).file_bytes < 0.6 * flat.file_bytes
    assert all(0 < one.p50 <= one.p99 for one in trials)
    assert all(one.build > 0 for one in trials[1:])


def test_vectors_left_on_disk_need_no_memory() -> None:
    codes = measure(VECTORS, QUERIES, families=[[IvfPq()]])[1]
    assert codes.file_bytes - codes.memory == 800 * 16 * 2


def test_every_kind_there_is_gets_tried() -> None:
    assert {type(kind) for family in FAMILIES for kind in family} == set(Kind.__subclasses__())
    for family in FAMILIES:
        assert len({type(kind) for kind in family}) == 1
    every = measure(VECTORS, QUERIES[:5], k=3)
    assert len(every) == 1 + sum(map(len, FAMILIES))
    assert all(one.recall > 0.05 for one in every)


def test_what_is_done_is_said() -> None:
    said: list[str] = []
    measure(VECTORS, QUERIES, families=[[Flat()]], say=said.append)
    assert said == [
        "exact answers to 30 queries", "building Flat over 800 × 16", "recall of 1 indexes",
        "latency of 1 indexes in turns",
    ]  # fmt: skip


def test_searches_take_turns_and_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    search = Index.search

    def noted(self, queries, k, **how):
        asked.append((self.kind, faiss.omp_get_max_threads()))
        return search(self, queries, k, **how)

    monkeypatch.setattr(Index, "search", noted)
    measure(VECTORS, QUERIES, families=[[Flat()], [HalfPrecision()]])
    assert {threads for _, threads in asked} == {1}
    timed = [kind for kind, _ in asked[2 * len(QUERIES) :]]
    turns = 1 + sum(a != b for a, b in pairwise(timed))
    assert turns == 2 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": (16, 17)}, "vectors of 16 dimensions cannot be cut to 17; choose from 1 to 16"),
        ({"dimensions": (0,)}, "cannot be cut to 0"),
        ({"queries": QUERIES[:0]}, "800 items and 0 queries measure nothing"),
        ({"vectors": VECTORS[:0]}, "0 items and 30 queries measure nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: dict, message: str) -> None:
    given = {"vectors": VECTORS, "queries": QUERIES, **arguments}
    with pytest.raises(ValueError, match=message):
        measure(given.pop("vectors"), given.pop("queries"), **given)


def test_more_wanted_than_there_is() -> None:
    assert measure(VECTORS[:4], QUERIES, families=[[Flat()]])[1].recall == 1


def test_what_is_missed_and_by_how_much() -> None:
    one = trial(recall=0.9, p99=3e-3, memory=3 * 10**9, build=90.0)
    assert one.missed(Budget()) == {}
    assert one.missed(Budget(memory=3e9, p99=3e-3, recall=0.9, build=90)) == {}
    missed = one.missed(Budget(memory=2e9, p99=2e-3, recall=0.95, build=60))
    assert missed == pytest.approx({"memory": 0.5, "p99": 0.5, "build": 0.5, "recall": 0.05 / 0.95})


def test_the_cheapest_needs_least_memory_then_least_time() -> None:
    small, large = trial(Hnsw(), memory=MEMORY_STEP, p50=9e-4), trial(Ivf(), memory=MEMORY_STEP + 1, p50=1e-5)
    assert advise([large, small], Budget()).trial is small
    tiny, quick = trial(Hnsw(), memory=1, p50=9e-4), trial(Ivf(), memory=MEMORY_STEP, p50=1e-5)
    assert advise([tiny, quick], Budget()).trial is quick
    assert advise([tiny, quick], Budget()).missed == {}


def test_what_misses_the_budget_is_not_advised_however_cheap() -> None:
    cheap, good = trial(memory=1, recall=0.5), trial(Hnsw())
    assert advise([cheap, good], Budget(recall=0.95)).trial is good


def test_if_none_meets_it_the_nearest_is_named() -> None:
    slow, poor = trial(Hnsw(), p99=4e-3), trial(Ivf(), recall=0.9, p99=2.2e-3)
    advice = advise([slow, poor], Budget(recall=0.95, p99=2e-3))
    assert advice.trial is poor
    assert advice.missed == pytest.approx({"recall": 0.05 / 0.95, "p99": 0.1})


def test_the_floor_is_never_advised() -> None:
    floor = trial(None, memory=0, p50=0, recall=1)
    assert advise([floor, trial()], Budget()).trial.kind == Flat()
    with pytest.raises(ValueError, match="no index was tried"):
        advise([floor], Budget())
