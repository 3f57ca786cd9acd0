"""How well and how fast each kind of index finds: `python -m benchmarks.index [--items 50000 --dim 64] [--json]`.

Searches are of one query on one thread, as in a server. The floor is one pass over the vectors in memory, the product
`X @ q` of NumPy's BLAS on one thread; the peer is what one would write first, that product and an argpartition.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.table import emit, parser
from recsys.index.build import Flat, HalfPrecision, Hnsw, Ivf, IvfPq, build, measured_recall
from recsys.index.engine import faiss, use_one_thread
from recsys.index.exact import Exact
from recsys.index.search import Index

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SELECTIVITIES = (0.5, 0.05, 0.005, 0.0001)
K = 10


def main() -> None:
    """Builds and searches every kind of index over clustered vectors of uneven length."""
    arguments = parser("index recall and single-query search time against exact search")
    arguments.add_argument("--items", type=int, default=50_000, help="number of items")
    arguments.add_argument("--dim", type=int, default=64, help="length of the vectors")
    arguments.add_argument("--seen", type=int, default=200, help="items that a user has seen, which are left out")
    arguments.add_argument("--queries", type=int, default=300, help="searches timed for each figure")
    arguments.add_argument("--seed", type=int, default=0, help="of vectors, queries and filters")
    said = arguments.parse_args()
    vectors, queries = _space(said.items, said.dim, said.queries, np.random.default_rng(said.seed))
    random = np.random.default_rng(said.seed + 1)
    seen = [random.choice(said.items, min(said.seen, said.items // 2), replace=False) for _ in queries]
    filters = {share: random.random(said.items) < share for share in SELECTIVITIES}

    use_one_thread()
    rows = [_floor(vectors, queries), _peer(vectors, queries, seen)]
    for kind in (Flat(), HalfPrecision(), Hnsw(), Ivf(), IvfPq()):
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        started = time.perf_counter()
        index = build(vectors, kind)
        built = time.perf_counter() - started
        use_one_thread()

        row = {
            "kind": index.kind,
            "build s": built,
            "MB": faiss.serialize_index(index._index).nbytes / 1e6,
            "recall@10": measured_recall(index, vectors, queries, K),
            **_times("", partial(_search, index, queries), len(queries)),
            **_times("seen ", partial(_search, index, queries, seen=seen), len(queries)),
        }
        exact = Exact(vectors)
        for share, eligible in filters.items():
            filtered = partial(_search, index, queries, eligible=eligible)
            row |= _times(f"{share:.4g} ", filtered, len(queries), tail=False)
            found = np.concatenate([filtered(q) for q in range(min(50, len(queries)))])
            true = exact.search(queries[: len(found)], K, eligible=eligible)[1]
            if ((found >= 0) != (true >= 0)).any():
                raise SystemExit(f"{index.kind} does not fill {K} where {share:.4g} of the items are eligible")
            row[f"{share:.4g} recall"] = _overlap(found, true)
        rows.append(row)
    columns = {column: None for row in rows for column in row}
    title = f"{said.items:,} × {said.dim}, k {K}, one query at a time on one thread, µs; {said.seen} seen"
    emit(title, [{column: row.get(column) for column in columns} for row in rows], as_json=said.json)


def _space(items: int, dim: int, queries: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors float32 [items, dim] around a few hundred centres, lengths log-normal, and queries among them."""
    centres = random.standard_normal((max(1, items // 150), dim))

    def points(number: int) -> np.ndarray:
        return centres[random.integers(len(centres), size=number)] + 0.8 * random.standard_normal((number, dim))

    vectors = points(items) * random.lognormal(0, 0.3, (items, 1))
    return vectors.astype(np.float32), points(queries).astype(np.float32)


def _floor(vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    times = _times("", lambda q: vectors @ queries[q], len(queries))
    return {"kind": "floor: X @ q", "build s": None, "MB": vectors.nbytes / 1e6, "recall@10": None, **times}


def _peer(vectors: np.ndarray, queries: np.ndarray, seen: list[np.ndarray]) -> dict[str, Any]:
    def search(q: int, exclude: np.ndarray | None = None) -> np.ndarray:
        scores = vectors @ queries[q]
        if exclude is not None:
            scores[exclude] = -np.inf
        top = np.argpartition(scores, len(scores) - K)[len(scores) - K :]
        return top[np.argsort(-scores[top])]

    row = {"kind": "X @ q, argpartition", "build s": None, "MB": vectors.nbytes / 1e6, "recall@10": 1.0}
    return {
        **row,
        **_times("", search, len(queries)),
        **_times("seen ", lambda q: search(q, seen[q]), len(queries)),
    }


def _times(name: str, search: Callable[[int], Any], number: int, *, tail: bool = True) -> dict[str, float]:
    """Median and, if `tail`, 99th percentile of `number` searches, in microseconds, after some to warm up."""
    for q in range(min(20, number)):
        search(q)
    took = []
    for q in range(number):
        started = time.perf_counter()
        search(q)
        took.append(1e6 * (time.perf_counter() - started))
    p50, p99 = (float(value) for value in np.percentile(took, [50, 99]))
    return {f"{name}p50": p50, f"{name}p99": p99} if tail else {f"{name}p50": p50}


def _search(
    index: Index,
    queries: np.ndarray,
    q: int,
    *,
    seen: list[np.ndarray] | None = None,
    eligible: np.ndarray | None = None,
) -> np.ndarray:
    exclude = None if seen is None else seen[q]
    return index.search(queries[q : q + 1], K, eligible=eligible, exclude=exclude)[1]


def _overlap(found: np.ndarray, true: np.ndarray) -> float | None:
    shared = sum(len(np.intersect1d(f[f >= 0], t)) for f, t in zip(found, true, strict=True))
    return shared / int((true >= 0).sum()) if (true >= 0).any() else None


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():  # BLAS reads these when it is loaded, so start again with them
        command = [sys.executable, "-m", "benchmarks.index", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
    main()
