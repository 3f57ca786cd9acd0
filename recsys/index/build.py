"""Building an index: the kinds there are, which one a catalogue of some size wants, and how well it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.index.engine import faiss, gpu_is_usable
from recsys.index.exact import Exact
from recsys.index.search import Index

FLAT_ITEMS = 50_000  # up to here one core scans single precision in a third of a millisecond (D 64)
HALF_PRECISION_ITEMS = 500_000  # up to here it scans half precision in about two
_ADDED = 1 << 18  # vectors handed to a GPU at a time
_CENTROIDS = 256  # of a product quantiser: what a byte numbers
_GPU_CODE_BYTES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56)  # codes that FAISS has GPU kernels for
_GPU_PART_SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32)  # likewise, numbers that one of their bytes stands for


class Kind(ABC):
    """A kind of index with its parameters; a configuration names one by its class."""

    @abstractmethod
    def bytes(self, num_items: int, dimension: int) -> int:
        """About how long the file is."""

    @abstractmethod
    def filled(self, vectors: np.ndarray) -> Any:
        """A FAISS index that holds these vectors (contiguous float32 [N, D], finite), set to this kind's effort."""

    def resident(self, num_items: int, dimension: int) -> int:
        """About how many bytes must stay in memory where it serves; the rest of the file may stay on disk."""
        return self.bytes(num_items, dimension)

    def set_effort(self, index: Any) -> None:  # noqa: B027 (an exact scan has none)
        """Makes searches of a FAISS index of this kind as thorough as this kind says."""


@dataclass(frozen=True)
class Flat(Kind):
    """Exact scan in single precision."""

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * dimension * 4

    def filled(self, vectors: np.ndarray) -> Any:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index


@dataclass(frozen=True)
class HalfPrecision(Kind):
    """Exact scan over vectors rounded to half precision: half the memory, and so faster once it leaves the cache."""

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * dimension * 2

    def filled(self, vectors: np.ndarray) -> Any:
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(vectors.shape[1], half, faiss.METRIC_INNER_PRODUCT)
        index.add(vectors)
        return index


@dataclass(frozen=True)
class Hnsw(Kind):
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

    def filled(self, vectors: np.ndarray) -> Any:
        if cagra_is_usable() and len(vectors) > 4 * self.neighbours:
            index = self._from_gpu(vectors)
        else:
            index = faiss.IndexHNSWFlat(vectors.shape[1], self.neighbours, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = self.build_effort
            # By inner product, pruning leaves an item 2.6 of its 64 links, and half of the items none that lead to
            # them, so that no effort finds them: a million's recall stayed below 0.99. The memory is the same.
            index.keep_max_size_level0 = True
            index.add(vectors)
        self.set_effort(index)
        return index

    def _from_gpu(self, vectors: np.ndarray) -> Any:
        """A CAGRA graph (Ootomo et al. 2024, arXiv 2308.15136) built on the GPU, as an HNSW index for the CPU.

        Its upper levels are made here, over one item in `neighbours`: without them a search would start from random
        items, and no two searches need agree.
        """
        config = faiss.GpuIndexCagraConfig()
        config.graph_degree = 2 * self.neighbours
        config.intermediate_graph_degree = 4 * self.neighbours
        dimension = vectors.shape[1]
        there = faiss.GpuIndexCagra(faiss.StandardGpuResources(), dimension, faiss.METRIC_INNER_PRODUCT, config)
        there.train(vectors)
        index = faiss.IndexHNSWCagra(dimension, self.neighbours, faiss.METRIC_INNER_PRODUCT)
        index.base_level_only = False
        index.hnsw.efConstruction = self.build_effort
        there.copyTo(index)
        return index

    def set_effort(self, index: Any) -> None:
        index.hnsw.efSearch = self.effort


@dataclass(frozen=True)
class Ivf(Kind):
    """Inverted lists around k-means centroids, half precision inside: least memory, and built on a GPU in seconds.

    Args:
        lists: number of centroids; about 4 √N if None, and never more than N / 39, below which FAISS finds that
            k-means has too few vectors to learn from.
        probed_share: share of the lists that a search visits.
    """

    lists: int | None = None
    probed_share: float = 1 / 16

    def bytes(self, num_items: int, dimension: int) -> int:
        return num_items * (dimension * 2 + 16) + _lists(self.lists, num_items) * dimension * 4

    def filled(self, vectors: np.ndarray) -> Any:
        num_items, dimension = vectors.shape
        lists, half = _lists(self.lists, num_items), faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, lists, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index = _lists_filled(index, vectors, vectors)
        index.make_direct_map()
        self.set_effort(index)
        return index

    def set_effort(self, index: Any) -> None:
        index.nprobe = max(1, round(index.nlist * self.probed_share))


@dataclass(frozen=True)
class IvfPq(Kind):
    """Inverted lists of product-quantised codes (Jégou, Douze and Schmid 2011, doi 10.1109/TPAMI.2010.57), whose best
    are ranked again by their vectors in half precision.

    The codes alone find too little: among the ten of largest estimated score, 0.51 (8 bytes for D 64) to 0.89 (32
    bytes) of the true ten; ten times as many candidates ranked again give 0.97 to 0.98 (50,000 clustered vectors, a
    64th of the lists). What is ranked again stays in the mapped file, where a search touches the vectors of
    10 k candidates and no others, so that what must be in memory is the codes: a fifth of `Ivf`'s.

    Args:
        code_bytes: length of a code, a divisor of the dimension; the largest up to a quarter of it if None.
        reranked: candidates ranked again, as a multiple of k.
        lists, probed_share: as `Ivf`.
    """

    code_bytes: int | None = None
    reranked: int = 10
    lists: int | None = None
    probed_share: float = 1 / 16

    def bytes(self, num_items: int, dimension: int) -> int:
        return self.resident(num_items, dimension) + num_items * dimension * 2

    def resident(self, num_items: int, dimension: int) -> int:
        centroids = _lists(self.lists, num_items) + _CENTROIDS
        return num_items * (self._code_bytes(dimension) + 8) + centroids * dimension * 4

    def filled(self, vectors: np.ndarray) -> Any:
        (num_items, dimension), code_bytes = vectors.shape, self._code_bytes(vectors.shape[1])
        lists, quantizer = _lists(self.lists, num_items), faiss.IndexFlatIP(dimension)
        codes = faiss.IndexIVFPQ(quantizer, dimension, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        codes.own_fields = True
        quantizer.this.disown()
        codes.pq.cp.min_points_per_centroid = 1  # no word of warning for a small catalogue: its vectors rank
        # Of fewer vectors than a byte numbers, each is its own centroid.
        few = 0 < num_items < _CENTROIDS
        sample = np.resize(vectors, (_CENTROIDS, dimension)) if few else vectors
        on_gpu = not few and code_bytes in _GPU_CODE_BYTES and dimension // code_bytes in _GPU_PART_SIZES
        codes = _lists_filled(codes, vectors, sample, may_use_gpu=on_gpu)
        half = HalfPrecision().filled(vectors)
        index = faiss.IndexRefine(codes, half)
        for part in (codes, half):
            part.this.disown()
        index.own_fields = index.own_refine_index = True
        self.set_effort(index)
        return index

    def set_effort(self, index: Any) -> None:
        index.k_factor = self.reranked
        codes = faiss.downcast_index(index.base_index)
        codes.nprobe = max(1, round(codes.nlist * self.probed_share))

    def _code_bytes(self, dimension: int) -> int:
        if self.code_bytes is None:
            return max(size for size in range(1, max(1, dimension // 4) + 1) if dimension % size == 0)
        if self.code_bytes < 1 or dimension % self.code_bytes:
            raise ValueError(
                f"code_bytes is {self.code_bytes}, which does not divide {dimension} dimensions; choose another"
            )
        return self.code_bytes


def _lists(wanted: int | None, num_items: int) -> int:
    return max(1, min(wanted or round(4 * num_items**0.5), num_items // 39))


def kind_of(index: Index) -> Kind:
    """The kind that would build an index like this one, over as many items."""
    raw = index._index
    match index.kind:
        case "flat":
            return Flat()
        case "fp16":
            return HalfPrecision()
        case "hnsw":
            return Hnsw(raw.hnsw.nb_neighbors(1), raw.hnsw.efConstruction, raw.hnsw.efSearch)
        case "ivf":
            return Ivf(raw.nlist, raw.nprobe / raw.nlist)
    codes = faiss.downcast_index(raw.base_index)
    return IvfPq(codes.code_size, round(raw.k_factor), codes.nlist, codes.nprobe / codes.nlist)


def at_effort(index: Index, kind: Kind) -> Index:
    """The same items, lists and links, searched as thoroughly as another kind of its class says; they share memory."""
    kind.set_effort(index._index)
    return Index(index._index)


def turned(index: Index, vectors: np.ndarray) -> Index:
    """An index like another, over the same items in a rotated space.

    A graph keeps its links, since a rotation changes no inner product; the others are built again, in seconds.

    Args:
        index: of the items before the rotation; it stays as it is.
        vectors: float32 [N, D], the rotated ones.
    """
    if index.kind != "hnsw" or not len(vectors):
        return build(vectors, kind_of(index))
    raw = faiss.deserialize_index(faiss.serialize_index(index._index))
    stored = faiss.downcast_index(raw.storage)
    faiss.rev_swig_ptr(stored.get_xb(), vectors.size).reshape(vectors.shape)[:] = vectors
    return Index(raw)


def choose(num_items: int, dimension: int, *, memory: int | None = None) -> Kind:
    """The kind of index for a catalogue: as exact as its size allows.

    `recsys.index.advise` measures on the vectors themselves; this only counts.

    Args:
        num_items: how many items it holds.
        dimension: the length of their vectors.
        memory: bytes that the index may take where it serves, if that is bounded.
    """
    if num_items <= FLAT_ITEMS:
        kind: Kind = Flat()
    elif num_items <= HALF_PRECISION_ITEMS:
        kind = HalfPrecision()
    elif gpu_is_usable() and not cagra_is_usable():
        kind = Ivf()  # a graph is built on the CPU: hours for tens of millions of items, against seconds for lists
    else:
        kind = Hnsw()
    for smaller in (Ivf(), IvfPq()):
        if memory is not None and kind.resident(num_items, dimension) > memory:
            kind = smaller
    return kind


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
    kind = kind or choose(*vectors.shape)
    return Index(kind.filled(vectors))


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
    _, rows = index.search(queries, wanted)
    return recall_of(rows, vectors, queries, exact_scores(vectors, queries, wanted))


def exact_scores(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k highest scores of each query [Q, k], descending."""
    return Exact(vectors).search(queries, k)[0]


def recall_of(rows: np.ndarray, vectors: np.ndarray, queries: np.ndarray, true_scores: np.ndarray) -> float:
    """The share of found rows [Q, k] that score no less than the true k-th, whatever they were found with.

    Args:
        rows: int64 [Q, k], none of them −1.
        vectors: float32 [N, D].
        queries: float32 [Q, D].
        true_scores: float32 [Q, k], from `exact_scores`.
    """
    found_scores = np.einsum("qkd,qd->qk", vectors[rows], queries)
    slack = 1e-5 * np.abs(true_scores).max(axis=1, keepdims=True)  # two orders of summation differ by this much
    return float(np.mean(found_scores >= true_scores[:, -1:] - slack))


def _lists_filled(index: Any, vectors: np.ndarray, sample: np.ndarray, *, may_use_gpu: bool = True) -> Any:
    """Trains an IVF index on a sample and fills it, on the GPU if there is one and it may."""
    if not len(vectors):
        index.is_trained = True
    elif may_use_gpu and gpu_is_usable():
        # Built there, searched here: a GPU index is not safe to search from many threads and cannot be written. Its
        # effort is set when it is back, since more than 2,048 probes are refused there.
        there = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        there.train(sample)
        for start in range(0, len(vectors), _ADDED):
            there.add(vectors[start : start + _ADDED])
        index = faiss.index_gpu_to_cpu(there)
    else:
        index.train(sample)
        index.add(vectors)
    return index


def cagra_is_usable() -> bool:
    """Whether this FAISS has NVIDIA's graph index, as its `gpu-cuvs` flavour does, and sees a GPU."""
    return gpu_is_usable() and hasattr(faiss, "GpuIndexCagra")
