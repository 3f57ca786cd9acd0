"""Whether filters of any selectivity fill k, how well, and how fast: `python -m benchmarks.filters [--items 1000000]`.

A catalogue in departments of clusters, its vectors of uneven length, is filtered as a request filters it: by
`Attributes.eligible`, then `Index.search`, one query at a time on one thread. Each share of the catalogue is asked for
twice: by `brand`, which has nothing to do with the vectors, and by `shelf`, which is where an item stands: neighbours
pass or fail together, and most queries stand where everything near them fails. That is what starves a graph.

Recall is against exact search. Indexes that take long to build are kept below `--cache`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.table import emit, parser
from recsys.attributes import Attributes
from recsys.data.schema import Entity, Feature
from recsys.index.build import Flat, HalfPrecision, Hnsw, Kind, build
from recsys.index.engine import faiss, use_one_thread
from recsys.index.exact import Exact
from recsys.index.search import Index

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
BRANDS = {"half": 0.5, "twentieth": 0.05, "two-hundredth": 0.005, "ten-thousandth": 0.0001}  # of the catalogue
KINDS: dict[str, Kind] = {"flat": Flat(), "fp16": HalfPrecision(), "hnsw": Hnsw()}
CLUSTER, DEPARTMENT = 150, 100  # items a cluster, clusters a department
K = 10


@dataclass(frozen=True)
class Shop:
    """A synthetic catalogue.

    Attributes:
        vectors: float32 [N, D].
        queries: float32 [Q, D], points like those of the items.
        attributes: `brand`, and `shelf`, from 0 to 1 along departments and their clusters.
    """

    vectors: np.ndarray
    queries: np.ndarray
    attributes: Attributes

    @classmethod
    def drawn(cls, items: int, dim: int, queries: int, seed: int) -> Shop:
        """Draws one; equal arguments give equal items."""
        random = np.random.default_rng(seed)
        clusters = max(1, items // CLUSTER)
        departments = random.standard_normal((clusters // DEPARTMENT + 1, dim))
        centres = departments[np.arange(clusters) // DEPARTMENT] + random.standard_normal((clusters, dim))

        def points(cluster: np.ndarray) -> np.ndarray:
            return (centres[cluster] + 0.8 * random.standard_normal((len(cluster), dim))).astype(np.float32)

        cluster = random.integers(clusters, size=items)
        vectors = points(cluster) * random.lognormal(0, 0.3, (items, 1)).astype(np.float32)
        shares = np.array(list(BRANDS.values()))
        brand = random.choice([*BRANDS, "other"], size=items, p=[*shares, 1 - shares.sum()])
        table = pa.table({"brand": brand, "shelf": (cluster + random.random(items)) / clusters})
        entity = Entity("item_id", (Feature("brand", "categorical"), Feature("shelf", "numeric")))
        asked = points(random.integers(clusters, size=queries))
        return cls(vectors, asked, Attributes(entity, table, items))


def filters() -> dict[str, Mapping[str, Any]]:
    """What is asked for, by a name that says what share of the catalogue passes."""
    asked: dict[str, Mapping[str, Any]] = {}
    for brand, share in BRANDS.items():
        asked[f"brand {share:.4g}"] = {"brand": brand}
        asked[f"shelf {share:.4g}"] = {"shelf": {"lt": share}}
    return asked


def built(shop: Shop, name: str, cache: Path) -> Index:
    """The index of one kind, from the cache if it is there and is of these vectors."""
    number, dim = shop.vectors.shape
    if name != "hnsw":
        return build(shop.vectors, KINDS[name])
    file = cache / f"{name}-{number}x{dim}.faiss"
    if file.exists():
        index = Index.load(file, num_items=number, dimension=dim)
        sample = np.arange(0, number, max(1, number // 1000))
        if index.misfit(sample, shop.vectors[sample]).max() < 1e-3:
            return index
    print(f"building {file}: minutes for a million items", file=sys.stderr)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = build(shop.vectors, KINDS[name])
    use_one_thread()
    cache.mkdir(parents=True, exist_ok=True)
    index.save(file)
    return index


def timed(ask: Callable[[int], Any], number: int) -> tuple[float, float]:
    """Median and 99th percentile of `number` calls in milliseconds, after a few to warm up."""
    took = []
    for place in [*range(min(3, number)), *range(number)]:
        started = time.perf_counter()
        ask(place)
        took.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(took[min(3, number) :], [50, 99])
    return float(p50), float(p99)


def recalls(shop: Shop, rows: np.ndarray, true: np.ndarray) -> np.ndarray:
    """For each query that anything passes for, the share of its rows [Q, k] that score no less than the true k-th."""
    shares = []
    for found, right, query in zip(rows, true, shop.queries, strict=True):
        if (right := right[right >= 0]).size:
            least = (shop.vectors[right] @ query).min()
            scores = shop.vectors[found[found >= 0]] @ query
            shares.append(np.count_nonzero(scores >= least - 1e-5 * abs(least)) / len(right))
    return np.array(shares)


def _evaluated(shop: Shop, filter: Mapping[str, Any], _: int) -> np.ndarray:
    return shop.attributes.eligible(filter)


def _searched(shop: Shop, index: Index, eligible: np.ndarray | None, found: np.ndarray, q: int) -> None:
    """Searches for one query, and notes what it found."""
    found[q] = index.search(shop.queries[q : q + 1], K, eligible=eligible)[1][0]


def main() -> None:
    """Builds or loads the indexes, asks every one under every filter, and prints the table."""
    arguments = parser("filters of any selectivity: latency of filter and search, recall, and whether k is filled")
    arguments.add_argument("--items", type=int, default=1_000_000, help="number of items")
    arguments.add_argument("--dim", type=int, default=64, help="length of the vectors")
    arguments.add_argument("--queries", type=int, default=200, help="searches for each figure")
    arguments.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of index")
    arguments.add_argument("--cache", type=Path, default=Path("build/filters"), help="where built indexes are kept")
    arguments.add_argument("--seed", type=int, default=0, help="of vectors, queries and attributes")
    said = arguments.parse_args()
    use_one_thread()
    shop = Shop.drawn(said.items, said.dim, said.queries, said.seed)
    indexes = {name: built(shop, name, said.cache) for name in said.kinds}
    exact, rows = Exact(shop.vectors), []
    for name, filter in {"none": {}, **filters()}.items():
        eligible = shop.attributes.eligible(filter) if filter else None
        evaluation = timed(partial(_evaluated, shop, filter), 50) if filter else (0.0, 0.0)
        true = exact.search(shop.queries, K, eligible=eligible)[1]
        for kind, index in indexes.items():
            found = np.full((len(shop.queries), K), -1)
            ask = partial(_searched, shop, index, eligible, found)
            p50, p99 = timed(ask, len(shop.queries))
            shares = recalls(shop, found, true)
            rows.append(
                {
                    "kind": kind,
                    "filter": name,
                    "passing": said.items if eligible is None else int(eligible.sum()),
                    "filter p50 ms": evaluation[0],
                    "filter p99 ms": evaluation[1],
                    "search p50 ms": p50,
                    "search p99 ms": p99,
                    "recall@10": float(np.mean(shares)) if len(shares) else None,
                    "worst": float(np.min(shares)) if len(shares) else None,
                    "filled": "yes" if ((found >= 0) == (true >= 0)).all() else "no",
                }
            )
    rows.sort(key=lambda row: said.kinds.index(row["kind"]))
    title = f"{said.items:,} × {said.dim}, k {K}, one query at a time on one thread"
    emit(title, rows, as_json=said.json)


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():  # BLAS reads these when it is loaded, so start again with them
        command = [sys.executable, "-m", "benchmarks.filters", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
    main()
