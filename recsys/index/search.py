"""One way to search, whatever kind of FAISS index lies below: always exactly k items where k are eligible."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from recsys.artifacts import ArtifactError
from recsys.index.engine import faiss
from recsys.index.exact import best, checked, unfilled

# Where no more than this share of the items is eligible, their vectors are gathered and scored exactly. Measured on one
# core, D 64: at 5 % of 50,000 items 90 µs against 140 µs for FAISS's scan with a selector; at 50 % gathering loses.
# A graph would also lose recall to so narrow a filter, so for it some thousands are always gathered; inverted lists
# give a vector back in 1 to 2.5 µs and scan all their items in 8 to 20 ns each, so they gather fewer. What is quantised
# keeps its vectors in the file, where each that is gathered may cost a read.
GATHERED_SHARE = 1 / 16
GATHERED_ITEMS_HNSW = 2_000
GATHERED_SHARE_IVF = 1 / 128
# A graph keeps this share of the items as candidates at most: to score every item costs less than more of them, at 9 ns
# an item and 2 µs a candidate (a million, D 64, one core).
CANDIDATES_HNSW = 1 / 200
_LISTS_LOOKED_IN = 8  # for one row: the list it was put in is the nearest, unless rounding made a near one nearer
_CHUNK = 1 << 16  # vectors gathered at a time, so that a fallback over millions of items stays within cache and memory


class Index:
    """A FAISS index over item vectors, whose rows are its ids, compared by inner product.

    Searching is safe from many threads: nothing here changes after construction. FAISS spreads over cores by itself
    where it can; a server wants `recsys.index.engine.use_one_thread`.

    Args:
        index: an inner-product IndexFlat, IndexScalarQuantizer, IndexHNSW, IndexIVF (with its direct map made), or
            IndexRefine of an IndexIVFPQ and an IndexScalarQuantizer.

    Raises:
        ValueError: it is none of these, or of another metric, or its two parts hold different numbers of vectors.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        self.kind = _kind_of(index)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"the {self.kind} index has FAISS metric {index.metric_type}; build it for inner product")
        # Where the vectors are, in the order of rows, and the inverted lists, if it has them: for most kinds itself.
        self._stored: Any = index
        self._lists: Any = index if self.kind == "ivf" else None
        if self.kind == "pq":
            self._stored, self._lists = faiss.downcast_index(index.refine_index), faiss.downcast_index(index.base_index)
            if {self._stored.ntotal, self._lists.ntotal} != {index.ntotal}:
                raise ValueError(
                    f"the pq index holds {self._stored.ntotal} vectors and {self._lists.ntotal} codes; build it again"
                )
        # Read once: another Index over the same lists or graph may search them harder.
        self._effort = (
            index.hnsw.efSearch if self.kind == "hnsw" else self._lists.nprobe if self._lists is not None else 0
        )
        self._reranked = index.k_factor if self.kind == "pq" else 1
        # float32 [N, D], in place, where they are kept as they are
        flat = index if self.kind == "flat" else faiss.downcast_index(index.storage) if self.kind == "hnsw" else None
        self._vectors = None if flat is None else flat.get_xb()
        self._codes = None  # uint8 [N, 2 D], in place
        if self.kind in ("fp16", "pq") and index.ntotal:
            size = index.ntotal * self._stored.code_size
            codes = faiss.rev_swig_ptr(self._stored.codes.data(), size)
            self._codes = codes.reshape(index.ntotal, self._stored.code_size)

    @classmethod
    def load(cls, path: Path, *, num_items: int, dimension: int) -> Self:
        """Opens an index written by `save`, memory-mapped where its kind allows.

        Args:
            path: the file.
            num_items: how many items the artefact it belongs to says it holds.
            dimension: the length of their vectors, likewise.

        Raises:
            ArtifactError: the file cannot be read as an index or holds something else than expected.
        """
        try:
            raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ArtifactError(f"{path} cannot be read as a FAISS index ({_first_line(error)}); seal again") from None
        if raw.ntotal != num_items:
            raise ArtifactError(f"{path} holds {raw.ntotal} vectors, expected {num_items}; seal the bundle again")
        if raw.d != dimension:
            raise ArtifactError(f"{path} has dimension {raw.d}, expected {dimension}; seal the bundle again")
        try:
            return cls(raw)
        except ValueError as error:
            raise ArtifactError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Writes the index as one file."""
        faiss.write_index(self._index, str(path))

    @property
    def ntotal(self) -> int:
        """How many items it holds."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return int(self._index.d)

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows, as the index holds them (rounded where it stores half precision).

        Args:
            rows: int [n], each from 0 to ntotal − 1.

        Returns:
            float32 [n, D].

        Raises:
            ValueError: a row lies outside the index.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        if len(rows) == 0:
            return np.empty((0, self.dimension), dtype=np.float32)
        if rows.min() < 0 or rows.max() >= self.ntotal:
            raise ValueError(f"rows span {rows.min()} to {rows.max()}, the index holds 0 to {self.ntotal - 1}")
        return self._decoded(rows)

    def misfit(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """How far what the index holds for some rows is from what it would hold, had it been built from these vectors.

        Comparing with `reconstruct` would not do: what an index rounds or quantises is far from the vectors it was
        built from, and yet theirs. So each vector is encoded again, and the figure is by how much worse the index's
        own code describes it. That is a difference of distances, not of codes, since on another machine a vector that
        lies between two centroids may round to the other one, which describes it as well.

        Args:
            rows: int [n], each from 0 to ntotal − 1.
            vectors: float32 [n, D], the vectors that these rows are said to have.

        Returns:
            float32 [n], in units of the vectors: about 0 where the index was built from them; their length, or √2
            times it, where it was built from others.

        Raises:
            ValueError: a row lies outside the index, or the vectors are not one a row.
        """
        held = self.reconstruct(rows)
        if vectors.shape != held.shape:
            raise ValueError(f"vectors have shape {list(vectors.shape)}, expected {list(held.shape)}: one a row")
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if len(held) == 0:
            return np.empty(0, dtype=np.float32)
        again = vectors if self.kind in ("flat", "hnsw") else _rounded(vectors)
        apart = np.linalg.norm(held - vectors, axis=1) - np.linalg.norm(again - vectors, axis=1)
        if self.kind == "pq":
            apart = np.maximum(apart, self._misfit_of_codes(np.asarray(rows), vectors))
        return np.maximum(apart, 0).astype(np.float32)

    def _misfit_of_codes(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """As `misfit`, of quantised codes [n]; the vector's own length where no list near it has the row."""
        lists, quantizer = self._lists.invlists, self._lists.quantizer
        nearest = quantizer.search(vectors, min(_LISTS_LOOKED_IN, self._lists.nlist))[1]
        apart = np.linalg.norm(vectors, axis=1)
        for place, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
            for number in nearest[place].tolist():
                size = lists.list_size(number)
                if size == 0 or not (at := (faiss.rev_swig_ptr(lists.get_ids(number), size) == row).nonzero()[0]).size:
                    continue
                code_size = self._lists.code_size
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * code_size).reshape(size, code_size)
                residual = (vector - quantizer.reconstruct(number))[None]
                pq = self._lists.pq
                held, again = pq.decode(codes[at[:1]].copy()), pq.decode(pq.compute_codes(residual))
                apart[place] = np.linalg.norm(held - residual) - np.linalg.norm(again - residual)
                break
        return apart

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        eligible: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items with the highest inner product with each query.

        Args:
            queries: float32 [Q, D], finite.
            k: how many items a query gets, at least 1.
            eligible: bool [N], the items that may be returned; all of them if None.
            exclude: int [E], rows that no query of this call gets, such as what one user has seen; repeated rows and
                rows outside the index (the −1 of an unknown id) do no harm.

        Returns:
            scores float32 [Q, k], descending, and rows int64 [Q, k], ascending among equal scores; −inf and −1 fill
            up where, and only where, fewer than k items may be returned.

        Raises:
            ValueError: an argument has the wrong shape or type, or a query is not finite.
        """
        queries, exclude = checked(queries, k, eligible, exclude, self.ntotal, self.dimension)
        if self.ntotal == 0:
            return unfilled(len(queries), k)
        share = 1.0
        if eligible is not None:
            count = int(np.count_nonzero(eligible))
            share = count / self.ntotal
            gathered = (GATHERED_SHARE_IVF if self._lists is not None else GATHERED_SHARE) * self.ntotal
            if count <= (max(gathered, GATHERED_ITEMS_HNSW) if self.kind == "hnsw" else gathered):
                return self._gathered(queries, k, _allowed(self.ntotal, eligible, exclude).nonzero()[0])
        if self.kind == "flat" and len(queries) == 1:
            return self._scanned(queries, k, eligible, exclude)
        if self.kind == "hnsw" and (eligible is not None or (exclude is not None and len(exclude))):
            return self._walked(queries, k, eligible, exclude, share)
        return self._searched(queries, k, eligible, exclude, share)

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows int64 [n] within the index, float32 [n, D]."""
        vectors: np.ndarray
        if self._codes is None:
            vectors = self._stored.reconstruct_batch(rows)
        else:  # eight times faster than reconstruct_batch, which sets up a decoder for every row
            vectors = self._stored.sa_decode(self._codes[rows])
        return vectors

    def _scanned(
        self, query: np.ndarray, k: int, eligible: np.ndarray | None, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One query [1, D] against every vector, then the choice.

        28 µs at 3,700 items with 200 excluded, where the search with a selector takes 38 µs. FAISS's product, unlike
        NumPy's, stays on the calling thread.
        """
        scores = np.empty(self.ntotal, dtype=np.float32)
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(scores), faiss.swig_ptr(query), self._vectors, query.shape[1], len(scores)
        )
        if eligible is not None:
            scores = np.where(eligible, scores, np.float32(-np.inf))
        if exclude is not None:
            scores[exclude] = -np.inf
        return _padded(*best(scores, k), k)

    def _gathered(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact search among the rows `allowed` [n], ascending."""
        scores = np.empty((len(queries), len(allowed)), dtype=np.float32)
        for start in range(0, len(allowed), _CHUNK):
            vectors = self._decoded(allowed[start : start + _CHUNK])
            for query, row in zip(queries, scores, strict=True):
                part = row[start : start + _CHUNK]
                faiss.fvec_inner_products_ny(
                    faiss.swig_ptr(part), faiss.swig_ptr(query), faiss.swig_ptr(vectors), len(query), len(part)
                )
        found, rows = unfilled(len(queries), k)
        for q, row in enumerate(scores):
            values, at = best(row, k)
            found[q, : len(at)], rows[q, : len(at)] = values, allowed[at]
        return found, rows

    def _walked(
        self, queries: np.ndarray, k: int, eligible: np.ndarray | None, exclude: np.ndarray | None, share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """A graph's search, of which what may not be returned is left out.

        A graph finds the nearest items, whether they may be returned or not. Where that has nothing to do with where
        they lie, looking at 1 / share times as many is enough; but a filter by department leaves who stands in another
        one with nothing near that passes, and the k that a selector then gives are whatever the walk came by: recall
        falls to 0.3 and less while k is filled. So the search is for candidates, all that lie nearest, and what may be
        returned is counted: with half as many among them as an unfiltered search looks at, the best k are as good as
        its. With fewer, as many more are looked at, or every item is, whatever costs less.
        """
        scores, rows = unfilled(len(queries), k)
        effort = max(self._effort, k + k // 4)
        # What a user has seen lies close to the user's own vector, so excluded items stand where a walk looks first.
        first = effort / share + (0 if exclude is None else len(exclude))
        wanted, most = np.full(len(queries), first), CANDIDATES_HNSW * self.ntotal
        left = np.ones(len(queries), dtype=bool)  # without an answer yet
        for _ in range(2):
            if not (walking := (left & (wanted <= most)).nonzero()[0]).size:
                break
            depth = int(wanted[walking].max())
            found = self._index.search(queries[walking], depth, params=faiss.SearchParametersHNSW(efSearch=depth))
            for q, near_scores, near in zip(walking.tolist(), *found, strict=True):
                allowed = near >= 0
                if eligible is not None:
                    allowed &= eligible[near]
                if exclude is not None:
                    allowed &= ~np.isin(near, exclude)
                at = allowed.nonzero()[0]
                if len(at) < max(effort // 2, k):
                    wanted[q] = 1.25 * depth * effort / max(1, len(at))
                    continue
                at = at[np.lexsort((near[at], -near_scores[at]))[:k]]
                scores[q], rows[q], left[q] = near_scores[at], near[at], False
        for q in left.nonzero()[0].tolist():
            one_scores, one_rows = self._scanned(queries[q : q + 1], k, eligible, exclude)
            scores[q], rows[q] = one_scores[0], one_rows[0]
        return scores, rows

    def _searched(
        self, queries: np.ndarray, k: int, eligible: np.ndarray | None, exclude: np.ndarray | None, share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's own search; what it leaves unfilled is searched again, exactly."""
        depth = min(k, self.ntotal)  # FAISS would keep a heap of k, however few items there are
        selector, bits = self._selector(eligible, exclude)
        num_excluded = 0 if exclude is None else len(exclude)
        parameters = self._parameters(selector, depth, num_excluded, share)
        scores, rows = self._index.search(queries, depth, params=parameters)
        if (starved := (rows[:, -1] < 0).nonzero()[0]).size:
            if self._lists is not None:  # every list is visited
                everywhere = self._probing(selector, self._lists.nlist, depth, num_excluded)
                scores[starved], rows[starved] = self._index.search(queries[starved], depth, params=everywhere)
            else:
                allowed = _allowed(self.ntotal, eligible, exclude).nonzero()[0]
                scores[starved], rows[starved] = self._gathered(queries[starved], depth, allowed)
        del bits  # the selector points into it
        scores[rows < 0] = -np.inf  # where FAISS says the least float
        order = np.lexsort((rows, -scores))
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        if depth == k:
            return scores, rows
        filled = unfilled(len(queries), k)
        filled[0][:, :depth], filled[1][:, :depth] = scores, rows
        return filled

    def _selector(self, eligible: np.ndarray | None, exclude: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
        """A FAISS selector of what may be returned, and the memory it points into."""
        if eligible is None and exclude is None:
            return None, None
        if eligible is None and self.kind in ("hnsw", "ivf", "pq"):  # they visit few items: do not touch a bit for each
            return faiss.IDSelectorNot(faiss.IDSelectorBatch(exclude)), None
        bits = np.packbits(_allowed(self.ntotal, eligible, exclude), bitorder="little")
        return faiss.IDSelectorBitmap(bits), bits

    def _parameters(self, selector: Any, k: int, num_excluded: int, share: float) -> Any:
        """How hard to search: a filter that passes one item of n is answered by looking at n times as many.

        What a user has seen lies close to the user's own vector, so excluded items stand where the search looks first.
        """
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=min(max(self._effort, k), self.ntotal))
        if self._lists is not None:
            a_list = max(1.0, self.ntotal / self._lists.nlist)
            probes = self._effort / share + 4 * num_excluded / a_list
            return self._probing(selector, int(min(np.ceil(probes), self._lists.nlist)), k, num_excluded)
        return faiss.SearchParameters(sel=selector)

    def _probing(self, selector: Any, probes: int, k: int, num_excluded: int) -> Any:
        """FAISS's parameters of a search that visits `probes` lists.

        Codes tell far items apart less well than near ones, so what is excluded is made good by as many candidates.
        """
        lists = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        if self.kind == "ivf":
            return lists
        reranked = self._reranked + num_excluded / k
        return faiss.IndexRefineSearchParameters(k_factor=reranked, base_index_params=lists)


def _kind_of(index: Any) -> str:
    for kind, form in (
        ("flat", faiss.IndexFlat),
        ("fp16", faiss.IndexScalarQuantizer),
        ("hnsw", faiss.IndexHNSW),
        ("ivf", faiss.IndexIVF),
    ):
        if isinstance(index, form):
            return kind
    if (
        isinstance(index, faiss.IndexRefine)
        and isinstance(faiss.downcast_index(index.base_index), faiss.IndexIVFPQ)
        and isinstance(faiss.downcast_index(index.refine_index), faiss.IndexScalarQuantizer)
    ):
        return "pq"
    raise ValueError(f"an index of type {type(index).__name__} is not supported; use recsys.index.build")


def _rounded(vectors: np.ndarray) -> np.ndarray:
    """float32 [n, D] as half precision keeps them."""
    return vectors.astype(np.float16).astype(np.float32)


def _allowed(num_items: int, eligible: np.ndarray | None, exclude: np.ndarray | None) -> np.ndarray:
    """bool [num_items]: what may be returned."""
    allowed = np.ones(num_items, dtype=np.bool_) if eligible is None else eligible.copy()
    if exclude is not None:
        allowed[exclude] = False
    return allowed


def _padded(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) == k:
        return scores[None], rows[None]
    filled_scores, filled_rows = unfilled(1, k)
    filled_scores[0, : len(rows)], filled_rows[0, : len(rows)] = scores, rows
    return filled_scores, filled_rows


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
