"""Which index is built, how well it finds, and the way over the GPU (faked where there is none)."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.index import build as building
from recsys.index import engine
from recsys.index.build import (
    Flat,
    HalfPrecision,
    Hnsw,
    Ivf,
    IvfPq,
    Kind,
    at_effort,
    build,
    choose,
    kind_of,
    measured_recall,
)
from recsys.index.engine import faiss
from recsys.index.search import Index

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((500, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("num_items", "kind"),
    [(0, Flat()), (50_000, Flat()), (50_001, HalfPrecision()), (500_000, HalfPrecision()), (500_001, Hnsw())],
)
def test_the_size_picks_the_kind(num_items: int, kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "gpu_is_usable", lambda: False)
    assert choose(num_items, 64) == kind


def test_scarce_memory_picks_lists() -> None:
    assert choose(10_000_000, 64, memory=2_000_000_000) == Ivf()
    assert choose(10_000_000, 64, memory=1_000_000_000) == IvfPq()
    assert choose(10_000, 64, memory=2_000_000_000) == Flat()


def test_a_gpu_picks_lists_for_millions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "gpu_is_usable", lambda: True)
    assert choose(10_000_000, 64) == Ivf()
    assert choose(10_000, 64) == Flat()
    monkeypatch.setattr(building, "cagra_is_usable", lambda: True)
    assert choose(10_000_000, 64) == Hnsw()


@pytest.mark.parametrize("kind", [Flat(), HalfPrecision(), Hnsw(), Ivf(), IvfPq()])
@pytest.mark.parametrize("num_items", [500, 5_000])
def test_the_bytes_promised_are_those_written(kind: Kind, num_items: int) -> None:
    vectors = RANDOM.standard_normal((num_items, 16)).astype(np.float32)
    written = faiss.serialize_index(build(vectors, kind)._index).nbytes
    assert written == pytest.approx(kind.bytes(num_items, 16), rel=0.05, abs=3_000)


def test_only_codes_need_to_be_resident() -> None:
    assert IvfPq().resident(10_000_000, 64) < 0.3 * Ivf().resident(10_000_000, 64)
    assert IvfPq().bytes(10_000_000, 64) - IvfPq().resident(10_000_000, 64) == 10_000_000 * 128
    assert all(kind.resident(10_000, 64) == kind.bytes(10_000, 64) for kind in (Flat(), HalfPrecision(), Hnsw(), Ivf()))


def test_codes_are_a_quarter_of_the_dimension_or_what_divides_it() -> None:
    assert [IvfPq()._code_bytes(size) for size in (64, 60, 50, 7, 3)] == [16, 15, 10, 1, 1]
    assert IvfPq(code_bytes=32)._code_bytes(64) == 32
    with pytest.raises(ValueError, match="code_bytes is 5, which does not divide 8 dimensions; choose another"):
        build(VECTORS, IvfPq(code_bytes=5))


@pytest.mark.parametrize(
    "kind",
    [Flat(), HalfPrecision(), Hnsw(8, 50, 20), Ivf(lists=6, probed_share=0.5), IvfPq(2, 7, lists=6, probed_share=0.5)],
)
def test_an_index_tells_its_kind(kind: Kind, tmp_path: Path) -> None:
    build(VECTORS, kind).save(tmp_path / "index")
    assert kind_of(Index.load(tmp_path / "index", num_items=500, dimension=8)) == kind


@pytest.mark.parametrize(
    ("little", "much"),
    [
        (Hnsw(2, effort=1), Hnsw(2, effort=400)),
        (Ivf(lists=12, probed_share=1 / 12), Ivf(lists=12, probed_share=1)),
        (IvfPq(2, 1, lists=12, probed_share=1 / 12), IvfPq(2, 50, lists=12, probed_share=1)),
    ],
)
def test_effort_is_changed_without_building_again(little: Kind, much: Kind) -> None:
    quick = build(VECTORS, little)
    before = quick.search(VECTORS, 10)[1]
    thorough = at_effort(quick, much)
    assert kind_of(thorough) == much
    recalls = [measured_recall(index, VECTORS, VECTORS) for index in (quick, thorough)]
    assert recalls[0] + 0.03 < recalls[1]
    assert (quick.search(VECTORS, 10)[1] == before).all()


def test_recall_counts_what_is_missing() -> None:
    vectors = np.eye(4, dtype=np.float32)
    queries = np.array([[4, 3, 2, 1]], dtype=np.float32)
    assert measured_recall(build(vectors, Flat()), vectors, queries, k=2) == 1.0
    shuffled = build(vectors[[0, 3, 2, 1]], Flat())  # finds rows 0 and 3, of which only 0 is right
    assert measured_recall(shuffled, vectors, queries, k=2) == 0.5


def test_recall_is_generous_to_ties() -> None:
    vectors = np.ones((50, 4), dtype=np.float32)
    backwards = build(vectors, Hnsw())
    assert measured_recall(backwards, vectors, vectors[:3], k=10) == 1.0


def test_recall_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="recall of 500 items and 0 queries says nothing"):
        measured_recall(build(VECTORS, Flat()), VECTORS, VECTORS[:0])


def test_every_kind_finds_among_clusters() -> None:
    centres = RANDOM.standard_normal((40, 24))
    vectors = (centres[RANDOM.integers(40, size=8_000)] + 0.4 * RANDOM.standard_normal((8_000, 24))).astype(np.float32)
    for kind in (Flat(), HalfPrecision(), Hnsw(), Ivf(), IvfPq()):
        assert measured_recall(build(vectors, kind), vectors, vectors[:200]) >= 0.95, kind


def test_vectors_that_are_not_finite_are_refused() -> None:
    broken = VECTORS.copy()
    broken[[7, 9], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match="vectors of 2 items are not finite, row 7 first; look at the item tower"):
        build(broken)
    with pytest.raises(ValueError, match=r"shape \[8\], expected \[num_items, dimension\]"):
        build(broken[0])


def test_doubles_and_slices_are_taken() -> None:
    index = build(VECTORS.astype(np.float64)[::2])
    assert np.allclose(index.reconstruct(np.arange(250)), VECTORS[::2])


class _Gpu:
    """Stands for an index on a GPU: passes on to the CPU index that it was made of, and notes what was asked."""

    def __init__(self, index: object, calls: list[str]) -> None:
        self.index, self.calls = index, calls

    def train(self, vectors: np.ndarray) -> None:
        self.calls.append(f"train {len(vectors)}")
        self.index.train(vectors)  # type: ignore[attr-defined]

    def add(self, vectors: np.ndarray) -> None:
        self.calls.append(f"add {len(vectors)}")
        self.index.add(vectors)  # type: ignore[attr-defined]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stand-in for a GPU was asked."""
    calls: list[str] = []

    def there(resources: object, device: int, index: Any) -> _Gpu:
        assert index.nprobe == 1, "FAISS refuses more than 2,048 on a GPU, so effort is set afterwards"
        return _Gpu(index, calls)

    def back(on_gpu: _Gpu) -> object:
        calls.append("back")
        return on_gpu.index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", there, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", back, raising=False)
    monkeypatch.setattr(building, "_ADDED", 300)
    return calls


def test_lists_are_built_on_the_gpu_and_brought_back(gpu: list[str]) -> None:
    index = build(VECTORS, Ivf(lists=8, probed_share=0.5))
    assert gpu == ["train 500", "add 300", "add 200", "back"]
    assert isinstance(index, Index)
    assert index.ntotal == 500
    assert index._index.nprobe == 4
    assert np.allclose(index.reconstruct(np.array([499])), VECTORS[[499]], atol=0.01)


def test_codes_are_built_on_the_gpu_and_brought_back(gpu: list[str], tmp_path: Path) -> None:
    kind = IvfPq(code_bytes=4, lists=8, probed_share=1.0)
    build(VECTORS, kind).save(tmp_path / "index")
    assert gpu == ["train 500", "add 300", "add 200", "back"]
    index = Index.load(tmp_path / "index", num_items=500, dimension=8)
    assert kind_of(index) == kind
    assert (index.misfit(np.arange(500), VECTORS) < 1e-6).all()
    assert measured_recall(index, VECTORS, VECTORS[:50]) >= 0.95


@pytest.mark.parametrize(("dimension", "code_bytes", "num_items"), [(10, 10, 500), (10, 5, 500), (8, 4, 200)])
def test_codes_that_a_gpu_cannot_make_are_made_here(gpu: list[str], dimension, code_bytes, num_items) -> None:
    vectors = RANDOM.standard_normal((num_items, dimension)).astype(np.float32)
    assert build(vectors, IvfPq(code_bytes=code_bytes)).ntotal == num_items
    assert gpu == []


@pytest.fixture
def cagra(gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Likewise, of FAISS's flavour with cuVS: its graph is made by HNSW on the CPU."""

    class Config:
        graph_degree, intermediate_graph_degree = 64, 128

    class Graph:
        def __init__(self, resources: object, dimension: int, metric: int, config: Config) -> None:
            assert config.graph_degree <= config.intermediate_graph_degree
            assert metric == faiss.METRIC_INNER_PRODUCT
            self.degree = config.graph_degree

        def train(self, vectors: np.ndarray) -> None:
            gpu.append(f"train {len(vectors)}")
            self.vectors = vectors

        def copyTo(self, index: Any) -> None:
            gpu.append(f"copy degree {self.degree}, base only {index.base_level_only}")
            index.add(self.vectors)

    monkeypatch.setattr(faiss, "GpuIndexCagraConfig", Config, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexCagra", Graph, raising=False)
    return gpu


def test_a_graph_is_built_on_the_gpu_and_opens_without(cagra: list[str], tmp_path: Path, monkeypatch) -> None:
    kind = Hnsw(neighbours=8, build_effort=50, effort=70)
    build(VECTORS, kind).save(tmp_path / "index")
    assert cagra == ["train 500", "copy degree 16, base only False"]
    monkeypatch.undo()
    index = Index.load(tmp_path / "index", num_items=500, dimension=8)
    assert (index.kind, kind_of(index)) == ("hnsw", kind)
    assert measured_recall(index, VECTORS, VECTORS[:50]) >= 0.99
    assert (index.search(VECTORS[:50], 10)[1] == index.search(VECTORS[:50], 10)[1]).all()
    eligible = np.arange(500) % 2 == 0
    assert (index.search(VECTORS[:5], 10, eligible=eligible)[1] % 2 == 0).all()


def test_a_graph_of_next_to_nothing_is_built_here(cagra: list[str]) -> None:
    assert build(VECTORS[:100], Hnsw()).ntotal == 100
    assert build(VECTORS[:0], Hnsw()).ntotal == 0
    assert cagra == []


def test_without_cuvs_a_graph_is_built_here(gpu: list[str]) -> None:
    assert not building.cagra_is_usable()
    assert build(VECTORS, Hnsw()).kind == "hnsw"
    assert gpu == []


def test_no_gpu_is_used_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert not engine.gpu_is_usable()


def test_without_faiss_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['faiss'] = None; import recsys.index.exact; import recsys.index.search"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "pip install 'recsys[cpu]'" in failed.stderr
    assert "search" in failed.stderr


def test_no_torch_comes_along() -> None:
    code = "import sys; import recsys.index.build; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
