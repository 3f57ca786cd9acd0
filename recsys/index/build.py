"""Building an index: the kinds there are, which one a catalogue of some size wants, and how well it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.index.engine import faiss, gpu_is_usable
from recsys.index.exact import Exact
from recsys.index.search import Index

FLAT_ITEMS = 50_000  # up to here one core scans single precision in a third of a millisecond (D 64)
HALF_PRECISION_ITEMS = 500_000  # up to here it scans half precision in about two
_ADDED = 1 << 18  # vectors handed to a GPU at a time


@dataclass(frozen=True)
class Flat:
    """Exact scan in single precision."""

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * dimension * 4

    def empty(self, num_items: int, dimension: int) -> Any:
        return faiss.IndexFlatIP(dimension)


@dataclass(frozen=True)
class HalfPrecision:
    """Exact scan over vectors rounded to half precision: half the memory, and so faster once it leaves the cache."""

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * dimension * 2

    def empty(self, num_items: int, dimension: int) -> Any:
        return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


@dataclass(frozen=True)
class Hnsw:
    """A navigable graph (Malkov and Yashunin 2016, arXiv 1603.09320), searched directly by inner product.

    The textbook remedy for vectors of unequal length, a further dimension that makes them equally long so that L2
    order is inner-product order (Bachrach et al. 2014, doi 10.1145/2645710.2645741), was measured and is not used:
    queries have 0 there and so lie off the data. Recall@10 at effort 64 (50,000 clustered vectors, D 64): lengths
    log-normal with sigma 0.3, 0.995 direct and 0.716 augmented; sigma 0.7, 0.992 and 0.148.

    Args:
        neighbours: links of a node (M); twice as many on the lowest level.
        build_effort: candidates kept while a node is inserted (efConstruction).
        effort: candidates kept while searching (efSearch).
    """

    neighbours: int = 32
    build_effort: int = 100
    effort: int = 96

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * (dimension * 4 + self.neighbours * 2 * 4 + 16)

    def empty(self, num_items: int, dimension: int) -> Any:
        index = faiss.IndexHNSWFlat(dimension, self.neighbours, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self.build_effort
        index.hnsw.efSearch = self.effort
        return index


@dataclass(frozen=True)
class Ivf:
    """Inverted lists around k-means centroids, half precision inside: least memory, and built on a GPU in seconds.

    Args:
        lists: number of centroids; about 4 √N if None, and never more than N / 39, below which FAISS finds that
            k-means has too few vectors to learn from.
        probed_share: share of the lists that a search visits.
    """

    lists: int | None = None
    probed_share: float = 1 / 16

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * (dimension * 2 + 16) + self._lists(num_items) * dimension * 4

    def empty(self, num_items: int, dimension: int) -> Any:
        lists = self._lists(num_items)
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, lists, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index.nprobe = max(1, round(lists * self.probed_share))
        return index

    def _lists(self, num_items: int) -> int:
        return max(1, min(self.lists or round(4 * num_items**0.5), num_items // 39))


Kind = Flat | HalfPrecision | Hnsw | Ivf


def choose(num_items: int, dimension: int, *, memory: int | None = None) -> Kind:
    """The kind of index for a catalogue: as exact as its size allows.

    Args:
        num_items: how many items it holds.
        dimension: the length of their vectors.
        memory: bytes that the index may take where it serves, if that is bounded.
    """
    if num_items <= FLAT_ITEMS:
        kind: Kind = Flat()
    elif num_items <= HALF_PRECISION_ITEMS:
        kind = HalfPrecision()
    elif gpu_is_usable():  # a graph is built on the CPU: hours for tens of millions of items, against seconds for lists
        kind = Ivf()
    else:
        kind = Hnsw()
    return Ivf() if memory is not None and kind.bytes(num_items, dimension) > memory else kind


def build(vectors: np.ndarray, kind: Kind | None = None) -> Index:
    """Builds an index over item vectors; row i of them is id i of the index.

    Args:
        vectors: float32 [N, D], finite; unit or plain, the metric is inner product either way.
        kind: which kind, with its parameters; `choose` picks one if None.

    Raises:
        ValueError: the vectors are not two-dimensional or hold NaN or infinity; the message names the first such row.
    """
    if vectors.ndim != 2:
        raise ValueError(f"item vectors have shape {list(vectors.shape)}, expected [num_items, dimension]")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if len(broken := (~np.isfinite(vectors).all(axis=1)).nonzero()[0]):
        raise ValueError(
            f"the vectors of {len(broken)} items are not finite, row {broken[0]} first; look at the item tower"
        )
    num_items, dimension = vectors.shape
    kind = kind or choose(num_items, dimension)
    index = kind.empty(num_items, dimension)
    if isinstance(kind, Ivf):
        index = _lists_filled(index, vectors)
    else:
        index.add(vectors)
    return Index(index)


def measured_recall(index: Index, vectors: np.ndarray, queries: np.ndarray, k: int = 10) -> float:
    """The share of the true top k that the index finds, over all queries.

    An item that ties with the k-th counts as true, since either is right.

    Args:
        index: what to measure.
        vectors: float32 [N, D], the vectors it was built over.
        queries: float32 [Q, D].
        k: how many items are asked for.
    """
    wanted = min(k, len(vectors))
    if wanted == 0 or len(queries) == 0:
        raise ValueError(f"recall of {len(vectors)} items and {len(queries)} queries says nothing; give some of each")
    true_scores, _ = Exact(vectors).search(queries, wanted)
    _, rows = index.search(queries, wanted)
    found_scores = np.einsum("qkd,qd->qk", vectors[rows], queries)
    slack = 1e-5 * np.abs(true_scores).max(axis=1, keepdims=True)  # two orders of summation differ by this much
    return float(np.mean(found_scores >= true_scores[:, -1:] - slack))


def _lists_filled(index: Any, vectors: np.ndarray) -> Any:
    """Trains and fills an IVF index on the GPU if there is one, and makes its map from rows to vectors."""
    if not len(vectors):
        index.is_trained = True
    elif gpu_is_usable():
        # Built there, searched here: a GPU index is not safe to search from many threads, takes k and nprobe of no
        # more than 2,048, and cannot be written.
        resources = faiss.StandardGpuResources()
        on_gpu = faiss.index_cpu_to_gpu(resources, 0, index)
        on_gpu.train(vectors)
        for start in range(0, len(vectors), _ADDED):
            on_gpu.add(vectors[start : start + _ADDED])
        probes = index.nprobe
        index = faiss.index_gpu_to_cpu(on_gpu)
        index.nprobe = probes
    else:
        index.train(vectors)
        index.add(vectors)
    index.make_direct_map()
    return index
