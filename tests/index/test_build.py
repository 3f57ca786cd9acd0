"""Which index is built, how well it finds, and the way over the GPU (faked where there is none)."""

import subprocess
import sys

import numpy as np
import pytest

from recsys.index import build as building
from recsys.index import engine
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, build, choose, measured_recall
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
    assert choose(10_000, 64, memory=2_000_000_000) == Flat()


def test_a_gpu_picks_lists_for_millions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "gpu_is_usable", lambda: True)
    assert choose(10_000_000, 64) == Ivf()
    assert choose(10_000, 64) == Flat()


@pytest.mark.parametrize("kind", [Flat(), HalfPrecision(), Hnsw(), Ivf()])
@pytest.mark.parametrize("num_items", [500, 5_000])
def test_the_bytes_promised_are_those_written(kind: Flat | HalfPrecision | Hnsw | Ivf, num_items: int) -> None:
    vectors = RANDOM.standard_normal((num_items, 16)).astype(np.float32)
    written = faiss.serialize_index(build(vectors, kind)._index).nbytes
    assert written == pytest.approx(kind.bytes(num_items, 16), rel=0.05, abs=3_000)


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
    for kind in (Flat(), HalfPrecision(), Hnsw(), Ivf()):
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


def test_lists_are_built_on_the_gpu_and_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def back(on_gpu: _Gpu) -> object:
        calls.append("back")
        on_gpu.index.nprobe = 1  # type: ignore[attr-defined]
        return on_gpu.index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda resources, device, index: _Gpu(index, calls), raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", back, raising=False)
    monkeypatch.setattr(building, "_ADDED", 300)
    index = build(VECTORS, Ivf(lists=8, probed_share=0.5))
    assert calls == ["train 500", "add 300", "add 200", "back"]
    assert isinstance(index, Index)
    assert index.ntotal == 500
    assert index._index.nprobe == 4  # kept across the way back
    assert np.allclose(index.reconstruct(np.array([499])), VECTORS[[499]], atol=0.01)


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
