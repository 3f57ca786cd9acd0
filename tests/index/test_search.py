"""One suite for the search, run on every kind of index and on the exact twin."""

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.artifacts import ArtifactError
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, IvfPq, build
from recsys.index.engine import faiss, use_one_thread
from recsys.index.exact import Exact, best
from recsys.index.search import GATHERED_ITEMS_HNSW, Index

KINDS = [
    Flat(),
    HalfPrecision(),
    Hnsw(neighbours=16, build_effort=60),
    Ivf(lists=32, probed_share=1 / 8),
    IvfPq(lists=32, probed_share=1 / 8),
]
NAMES = [type(kind).__name__ for kind in KINDS]
NUM_ITEMS, DIMENSION = 6_000, 16
assert NUM_ITEMS > 2 * GATHERED_ITEMS_HNSW  # so that filters of 50 % reach FAISS's own search


def clustered(num: int, seed: int) -> np.ndarray:
    """float32 [num, DIMENSION] around 20 centres, lengths log-normal: as plain item vectors are."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(0).standard_normal((20, DIMENSION))
    vectors = centres[random.integers(20, size=num)] + random.standard_normal((num, DIMENSION))
    return (vectors * random.lognormal(0, 0.3, (num, 1))).astype(np.float32)


VECTORS = clustered(NUM_ITEMS, 1)
QUERIES = clustered(40, 2)


@pytest.fixture(scope="module", params=KINDS, ids=NAMES)
def index(request: pytest.FixtureRequest) -> Index:
    return build(VECTORS, request.param)


@pytest.fixture(scope="module", params=[*KINDS, None], ids=[*NAMES, "Exact"])
def make(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Index | Exact]:
    if request.param is None:
        return Exact
    return lambda vectors: build(vectors, request.param)


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the true rows that were found, averaged over queries."""
    shares = [len(np.intersect1d(f[f >= 0], t)) / max(1, (t >= 0).sum()) for f, t in zip(found, true, strict=True)]
    return float(np.mean(shares))


def test_more_items_than_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Exact(VECTORS).search(QUERIES, 10)[1]
    monkeypatch.setattr("recsys.index.exact._SCORES", 3 * NUM_ITEMS + 1)
    tracemalloc.start()
    assert (Exact(VECTORS).search(QUERIES, 10)[1] == expected).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * NUM_ITEMS * 4  # of 40 queries' scores, no more than a few at a time


def test_four_items_by_hand(make: Callable) -> None:
    found = make(np.array([[1, 0], [0, 1], [2, 0], [-1, 1]], dtype=np.float32))
    scores, rows = found.search(np.array([[1, 0], [1, 4]], dtype=np.float32), 3)
    assert rows.tolist() == [[2, 0, 1], [1, 3, 2]]
    assert scores.tolist() == [[2, 1, 0], [4, 3, 2]]
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


def test_equal_scores_come_by_row(make: Callable) -> None:
    found = make(np.ones((60, 4), dtype=np.float32))
    scores, rows = found.search(np.ones((3, 4), dtype=np.float32), 60)
    assert rows.tolist() == [list(range(60))] * 3
    assert (scores == 4).all()


def test_fewer_eligible_than_k_are_padded(make: Callable) -> None:
    found = make(np.eye(4, dtype=np.float32))
    eligible = np.array([True, False, True, True])
    scores, rows = found.search(np.array([[1, 2, 3, 4]], dtype=np.float32), 5, eligible=eligible, exclude=np.array([2]))
    assert rows.tolist() == [[3, 0, -1, -1, -1]]
    assert scores.tolist() == [[4, 1, -np.inf, -np.inf, -np.inf]]


@pytest.mark.parametrize("num_queries", [0, 1, 3])
def test_an_empty_index_finds_nothing(make: Callable, num_queries: int) -> None:
    found = make(np.empty((0, 4), dtype=np.float32))
    scores, rows = found.search(np.ones((num_queries, 4), dtype=np.float32), 2)
    assert scores.shape == rows.shape == (num_queries, 2)
    assert (rows == -1).all()
    assert (scores == -np.inf).all()


@pytest.mark.parametrize("share", [0.5, 0.05, 0.005, 0.0005])
@pytest.mark.parametrize("num_queries", [1, 40])
def test_a_filter_never_starves(index: Index, share: float, num_queries: int) -> None:
    eligible = np.random.default_rng(3).random(NUM_ITEMS) < share
    exclude = np.random.default_rng(4).integers(0, NUM_ITEMS, 200)
    eligible[:12] = True
    exclude[exclude < 12] = 12
    queries = QUERIES[:num_queries]
    scores, rows = index.search(queries, 10, eligible=eligible, exclude=exclude)
    assert (rows >= 0).all()
    assert np.isfinite(scores).all()
    assert eligible[rows].all()
    assert not np.isin(rows, exclude).any()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in rows.tolist())
    true = Exact(VECTORS).search(queries, 10, eligible=eligible, exclude=exclude)[1]
    assert overlap(rows, true) >= 0.9


@pytest.fixture(scope="module")
def graph() -> Index:
    """Whose every item is reached, so that whatever is not found was left out by the search."""
    raw = faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT)
    raw.keep_max_size_level0 = True
    raw.add(VECTORS)
    raw.hnsw.efSearch = 64
    return Index(raw)


@pytest.fixture(params=[1 / 200, 1 / 8, 1.0], ids=["scans", "walks twice", "walks"])
def candidates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How large a share of the items a graph may look at before all of them are."""
    monkeypatch.setattr("recsys.index.search.CANDIDATES_HNSW", request.param)
    return request.param


def far_from(query: np.ndarray) -> np.ndarray:
    """The half of the items that lies farthest: all that a walk comes by at first fails such a filter."""
    scores = VECTORS @ query
    return scores < np.median(scores)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_a_filter_that_all_near_items_fail_leaves_a_graph_its_recall(graph: Index, candidates: float, k: int) -> None:
    for query in QUERIES[:10]:
        eligible = far_from(query)
        scores, rows = graph.search(query[None], k, eligible=eligible)
        true_scores, true = Exact(VECTORS).search(query[None], k, eligible=eligible)
        assert eligible[rows].all()
        assert overlap(rows, true) >= 0.99
        np.testing.assert_allclose(scores[0, 0], true_scores[0, 0], rtol=1e-5)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.4])
def test_a_graph_under_filters_and_exclusions_is_the_twin(graph: Index, candidates: float, share: float) -> None:
    eligible = np.random.default_rng(3).random(NUM_ITEMS) < share
    exclude = Exact(VECTORS).search(QUERIES[:1], 100)[1][0]
    found = graph.search(QUERIES, 10, eligible=eligible, exclude=exclude)
    true = Exact(VECTORS).search(QUERIES, 10, eligible=eligible, exclude=exclude)
    assert overlap(found[1], true[1]) >= 0.99
    assert (np.diff(found[0], axis=1) <= 0).all()
    assert eligible[found[1]].all()
    assert not np.isin(found[1], exclude).any()
    for some, at in ((exclude, None), (None, eligible)):
        found, true = (one.search(QUERIES, 10, eligible=at, exclude=some) for one in (graph, Exact(VECTORS)))
        assert overlap(found[1], true[1]) >= 0.99


def test_queries_of_one_call_are_starved_each_for_itself(graph: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them stand among what passes, half far from it; only those are scored against every item."""
    eligible = far_from(QUERIES[0])
    scanned: list[np.ndarray] = []
    plain = Index._scanned

    def noted(self: Index, query: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        scanned.extend(query)
        return plain(self, query, *rest)

    monkeypatch.setattr("recsys.index.search.CANDIDATES_HNSW", 1 / 16)
    monkeypatch.setattr(Index, "_scanned", noted)
    queries = np.concatenate([QUERIES[:1], -QUERIES[:1]])
    rows = graph.search(queries, 10, eligible=eligible)[1]
    assert overlap(rows, Exact(VECTORS).search(queries, 10, eligible=eligible)[1]) >= 0.99
    np.testing.assert_array_equal(scanned, QUERIES[:1])


class Noting:
    """A FAISS index that notes how many candidates it is asked for."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.depths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def search(self, queries: np.ndarray, depth: int, **said: Any) -> Any:
        self.depths.append(depth)
        return self._raw.search(queries, depth, **said)


@pytest.mark.parametrize(("passing", "walks"), [(20, 2), (40, 1)])
def test_too_few_that_pass_among_the_nearest_make_a_walk_go_on(
    graph: Index, monkeypatch: pytest.MonkeyPatch, passing: int, walks: int
) -> None:
    """Though they are more than k: what lies last among the candidates was found less surely than what lies first."""
    monkeypatch.setattr("recsys.index.search.CANDIDATES_HNSW", 1.0)
    noting = Noting(graph._index)
    monkeypatch.setattr(graph, "_index", noting)
    order = Exact(VECTORS).search(QUERIES[:1], NUM_ITEMS)[1][0]
    eligible = np.zeros(NUM_ITEMS, dtype=bool)
    eligible[order[100 - passing : 100]] = True  # of the nearest 128
    eligible[order[-(NUM_ITEMS // 2 - passing) :]] = True
    rows = graph.search(QUERIES[:1], 10, eligible=eligible)[1][0]
    assert len(noting.depths) == walks
    assert overlap(rows[None], order[None, 100 - passing :][:, :10]) >= 0.9


def test_ties_of_a_walk_come_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.index.search.CANDIDATES_HNSW", 1.0)
    monkeypatch.setattr("recsys.index.search.GATHERED_ITEMS_HNSW", 0)
    raw = faiss.IndexHNSWFlat(4, 200, faiss.METRIC_INNER_PRODUCT)
    raw.keep_max_size_level0 = True
    raw.add(np.tile(np.eye(4, dtype=np.float32), (100, 1)))
    raw.hnsw.efSearch = 400
    eligible = np.arange(400) < 200
    scores, rows = Index(raw).search(np.array([[4, 3, 2, 1]], dtype=np.float32), 120, eligible=eligible)
    assert rows.tolist() == [[*range(0, 200, 4), *range(1, 200, 4), *range(2, 80, 4)]]
    assert scores.tolist() == [[4.0] * 50 + [3.0] * 50 + [2.0] * 20]


def test_what_lies_nearest_can_be_excluded(index: Index) -> None:
    overlaps = []
    for query in QUERIES:
        seen = Exact(VECTORS).search(query[None], 200)[1][0]
        _, rows = index.search(query[None], 10, exclude=seen)
        assert (rows >= 0).all()
        assert not np.isin(rows, seen).any()
        overlaps.append(overlap(rows, Exact(VECTORS).search(query[None], 10, exclude=seen)[1]))
    assert np.mean(overlaps) >= 0.75  # the hardest case there is for graphs and lists: all that they reach first is out


def test_all_but_the_farthest_excluded_is_still_filled(index: Index) -> None:
    order = np.argsort(-(VECTORS @ QUERIES[0]))
    scores, rows = index.search(QUERIES[:1], 5, exclude=order[:-5])
    assert set(rows[0].tolist()) == set(order[-5:].tolist())
    assert np.allclose(scores[0], np.sort(VECTORS[order[-5:]] @ QUERIES[0])[::-1], atol=0.02)


def test_unknown_and_repeated_rows_in_exclude_do_no_harm(index: Index) -> None:
    plain = index.search(QUERIES, 10)
    same = index.search(QUERIES, 10, exclude=np.array([-1, -1, NUM_ITEMS, NUM_ITEMS + 7]))
    assert (plain[1] == same[1]).all()
    first = plain[1][0, 0]
    assert first not in index.search(QUERIES[:1], 10, exclude=np.array([first, first, -1]))[1]
    assert first not in index.search(QUERIES[:1], 10, exclude=[int(first)])[1]  # type: ignore[arg-type]


def test_one_query_and_many_agree(index: Index) -> None:
    exclude = np.arange(0, NUM_ITEMS, 50)
    _, together = index.search(QUERIES, 10, exclude=exclude)
    alone = np.concatenate([index.search(query[None], 10, exclude=exclude)[1] for query in QUERIES])
    assert overlap(together, alone) >= 0.99


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_any_filter_gives_exactly_what_there_is(kind: object, data: st.DataObject) -> None:
    num_items = data.draw(st.integers(0, 90))
    k = data.draw(st.integers(1, 120))
    rows = st.integers(-2, num_items + 1)
    exclude = data.draw(st.none() | st.lists(rows, max_size=2 * num_items).map(lambda r: np.array(r, dtype=np.int64)))
    eligible = data.draw(
        st.none()
        | st.lists(st.booleans(), min_size=num_items, max_size=num_items).map(
            lambda flags: np.array(flags, dtype=np.bool_)
        )
    )
    # Small integers have no rounding, not even in half precision, so the exact twin must agree to the last tie.
    vectors = np.random.default_rng(num_items).integers(-3, 4, (num_items, 3)).astype(np.float32)
    queries = np.random.default_rng(k).integers(-3, 4, (data.draw(st.integers(1, 3)), 3)).astype(np.float32)
    index = _cached(kind, num_items, vectors)
    scores, found = index.search(queries, k, eligible=eligible, exclude=exclude)
    true_scores, _ = Exact(vectors).search(queries, k, eligible=eligible, exclude=exclude)
    allowed = np.ones(num_items, dtype=bool) if eligible is None else eligible.copy()
    if exclude is not None:
        allowed[[row for row in exclude if 0 <= row < num_items]] = False
    assert ((found >= 0).sum(axis=1) == min(k, allowed.sum())).all()
    for query, values, at in zip(queries, scores, found, strict=True):
        here = at[at >= 0]
        assert allowed[here].all()
        assert len(set(here.tolist())) == len(here)
        assert values[: len(here)].tolist() == (vectors[here] @ query).tolist()
        assert list(zip(-values, at, strict=True)) == sorted(
            zip(-values, at, strict=True), key=lambda pair: (pair[0], pair[1] < 0, pair[1])
        )
    if isinstance(kind, (Flat, HalfPrecision)):
        assert scores.tolist() == true_scores.tolist()


_INDEXES: dict[tuple[object, int], Index] = {}


def _cached(kind: object, num_items: int, vectors: np.ndarray) -> Index:
    if (kind, num_items) not in _INDEXES:
        _INDEXES[kind, num_items] = build(vectors, kind)  # type: ignore[arg-type]
    return _INDEXES[kind, num_items]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(-5, 5, width=32), max_size=400),
    st.integers(1, 60),
)
def test_best_is_a_stable_sort(values: list[float], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    expected = [row for row in np.argsort(-scores, kind="stable") if scores[row] > -np.inf][:k]
    found, rows = best(scores, k)
    assert rows.tolist() == expected
    assert found.tolist() == scores[expected].tolist()


@pytest.mark.parametrize("columns", [1, 7, 1000])
def test_best_among_many_scores(columns: int) -> None:
    scores = np.random.default_rng(columns).integers(0, 5000 // columns, 20_000).astype(np.float32)
    assert best(scores, columns)[1].tolist() == np.argsort(-scores, kind="stable")[:columns].tolist()


def test_saved_and_mapped_it_answers_the_same(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    index.save(path)
    opened = Index.load(path, num_items=NUM_ITEMS, dimension=DIMENSION)
    assert (opened.kind, opened.ntotal, opened.dimension) == (index.kind, NUM_ITEMS, DIMENSION)
    for eligible in (None, np.arange(NUM_ITEMS) % 100 == 0, np.arange(NUM_ITEMS) % 2 == 0):
        for queries in (QUERIES, QUERIES[:1]):
            before, after = (each.search(queries, 10, eligible=eligible) for each in (index, opened))
            assert (before[1] == after[1]).all()
            assert (before[0] == after[0]).all()
    assert np.allclose(opened.reconstruct(np.array([5, 0, 5])), VECTORS[[5, 0, 5]], rtol=1e-3)


ROWS = np.arange(0, NUM_ITEMS, 187)


def test_an_index_fits_the_vectors_it_was_built_from(index: Index) -> None:
    assert (index.misfit(ROWS, VECTORS[ROWS]) <= 1e-6).all()
    assert index.misfit(ROWS[:0], VECTORS[:0]).shape == (0,)


def test_an_index_fits_no_others(index: Index) -> None:
    others = clustered(NUM_ITEMS, 9)[ROWS]
    assert (index.misfit(ROWS, others) >= 0.3 * np.linalg.norm(others, axis=1)).all()
    assert (index.misfit(ROWS, VECTORS[ROWS + 1]) > 0.05).mean() >= 0.95  # of the same clusters, a row off
    assert (index.misfit(ROWS, VECTORS[ROWS] * 1.1) >= 0.03 * np.linalg.norm(VECTORS[ROWS], axis=1)).all()


def test_what_rounds_elsewhere_still_fits(index: Index) -> None:
    noise = np.random.default_rng(5).standard_normal(VECTORS[ROWS].shape).astype(np.float32)
    noise *= 1e-6 * np.linalg.norm(VECTORS[ROWS], axis=1, keepdims=True)
    assert (index.misfit(ROWS, VECTORS[ROWS] + noise) <= 2e-5 * np.linalg.norm(VECTORS[ROWS], axis=1)).all()


def test_misfit_wants_a_vector_a_row(index: Index) -> None:
    with pytest.raises(ValueError, match=r"vectors have shape \[2, 16\], expected \[3, 16\]: one a row"):
        index.misfit(np.arange(3), VECTORS[:2])


def test_codes_of_other_vectors_beside_the_right_ones_do_not_fit() -> None:
    """What is ranked again is right, but the codes, which choose what that is, are of another training."""
    right, other = (build(vectors, IvfPq(lists=32))._index for vectors in (VECTORS, clustered(NUM_ITEMS, 9)))
    mixed = Index(faiss.IndexRefine(other.base_index, right.refine_index))
    assert np.allclose(mixed.reconstruct(ROWS), VECTORS[ROWS], atol=1e-2)
    assert (mixed.misfit(ROWS, VECTORS[ROWS]) > 0.1).mean() >= 0.9


def test_two_parts_of_different_length_are_refused() -> None:
    short = build(VECTORS[:5_000], IvfPq())._index
    long = build(VECTORS, IvfPq())._index
    long.own_fields, codes = False, long.base_index
    long.base_index = short.base_index
    with pytest.raises(ValueError, match="the pq index holds 6000 vectors and 5000 codes; build it again"):
        Index(long)
    long.base_index, long.own_fields = codes, True


def test_reconstruct_refuses_rows_outside(index: Index) -> None:
    assert index.reconstruct(np.array([], dtype=np.int64)).shape == (0, DIMENSION)
    with pytest.raises(ValueError, match=r"rows span -1 to 3, the index holds 0 to 5999"):
        index.reconstruct(np.array([3, -1]))


@pytest.mark.parametrize(
    ("num_items", "dimension", "message"),
    [(9, 4, "holds 10 vectors, expected 9; seal"), (10, 5, "has dimension 4, expected 5; seal")],
)
def test_an_index_of_another_size_is_refused(tmp_path: Path, num_items: int, dimension: int, message: str) -> None:
    path = tmp_path / "index.faiss"
    build(np.ones((10, 4), dtype=np.float32), Flat()).save(path)
    with pytest.raises(ArtifactError, match=f"index.faiss {message}"):
        Index.load(path, num_items=num_items, dimension=dimension)


def test_an_index_of_another_metric_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(ArtifactError, match=r"index\.faiss: the flat index has FAISS metric 1; build it for inner"):
        Index.load(path, num_items=0, dimension=4)


def test_an_index_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    faiss.write_index(faiss.IndexLSH(4, 8), str(path))
    with pytest.raises(ArtifactError, match="type IndexLSH is not supported"):
        Index.load(path, num_items=0, dimension=4)


@pytest.mark.parametrize("content", [b"", b"not an index at all", None])
def test_a_file_that_is_no_index_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "index.faiss"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"index\.faiss cannot be read as a FAISS index .*seal again"):
        Index.load(path, num_items=0, dimension=4)


def test_half_a_file_is_refused(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    index.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=r"index\.faiss cannot be read as a FAISS index"):
        Index.load(path, num_items=NUM_ITEMS, dimension=DIMENSION)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.ones(4, dtype=np.float32)}, r"shape \[4\], expected \[num_queries, 4\]"),
        ({"queries": np.ones((1, 3), dtype=np.float32)}, r"shape \[1, 3\], expected \[num_queries, 4\]"),
        ({"queries": np.full((1, 4), np.nan, dtype=np.float32)}, "NaN or infinity; look at the user tower"),
        ({"k": 0}, "k is 0; ask for at least 1"),
        ({"eligible": np.ones(9, dtype=bool)}, r"eligible is bool \[9\], expected bool \[10\]"),
        ({"eligible": np.ones(10, dtype=np.int64)}, r"eligible is int64 \[10\], expected bool \[10\]"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable, arguments: dict, message: str) -> None:
    found = make(np.ones((10, 4), dtype=np.float32))
    arguments = {"queries": np.ones((1, 4), dtype=np.float32), "k": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        found.search(arguments.pop("queries"), arguments.pop("k"), **arguments)


def test_many_threads_search_at_once(index: Index) -> None:
    expected = [index.search(query[None], 10, exclude=np.arange(i, 300)) for i, query in enumerate(QUERIES)]
    wrong: list[int] = []

    def ask() -> None:
        use_one_thread()
        for _ in range(5):
            for i, query in enumerate(QUERIES):
                scores, rows = index.search(query[None], 10, exclude=np.arange(i, 300))
                if not ((rows == expected[i][1]).all() and (scores == expected[i][0]).all()):
                    wrong.append(i)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
