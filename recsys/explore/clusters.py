"""Groups of items that lie together, at a resolution the user turns, with names that their items suggest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recsys.explore.space import Space

_TOGETHER = 1 << 12  # items whose links are weighed at once
_NAMES = 3  # words and values in a name
_COMMON = 0.15  # a share of a cluster's items that has a word, below which it does not stand for the cluster
_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(
    ["the", "and", "for", "with", "from", "des", "der", "die", "das", "les", "von", "und", "not", "you", "your", "part"]
)


@dataclass(frozen=True)
class Clusters:
    """Every item's cluster.

    Attributes:
        of: int64 [N], 0 for the largest.
        table: DataFrame, a cluster a row, largest first: name, size, share, tightness (the mean cosine of its items
            with its centre), nearest (the cluster whose centre is nearest), examples (titles, the most central first).
        items: DataFrame, an item a row in the order of rows: item_id, title, cluster, name, cosine with its centre.
        modularity: how much denser the links within clusters are than chance (Newman and Girvan 2004), up to 1.
    """

    of: np.ndarray
    table: pd.DataFrame
    items: pd.DataFrame
    modularity: float


def clusters(space: Space, *, resolution: float = 1.0, seed: int = 0) -> Clusters:
    """Communities of the neighbour graph, by the algorithm of Leiden.

    Traag, Waltman and van Eck 2019, "From Louvain to Leiden", doi 10.1038/s41598-019-41695-z. The graph is that of the
    shared K nearest neighbours by cosine, so nothing is searched again; a link is as heavy as the share of neighbours
    that its two ends have in common (Jarvis and Patrick 1973, doi 10.1109/T-C.1973.223640), which a stray link between
    two clusters does not have. Nobody has to say how many clusters there are.

    Args:
        space: whose items.
        resolution: higher gives more and smaller clusters; 1 is modularity as it is defined.
        seed: of the order in which items are visited.

    Raises:
        ValueError: the resolution is not above 0.
        ImportError: the extra `explore` is not installed.
    """
    if not resolution > 0:
        raise ValueError(f"a resolution of {resolution} gives no clusters; 1 is usual, 4 gives more and smaller ones")
    leiden, modularity = _leiden()
    graph = shared_neighbours(space)
    label = np.arange(len(space))
    if graph.nnz:
        label = leiden(resolution=resolution, random_state=seed).fit_predict(graph)
    sizes = np.bincount(label)
    renamed = np.empty(len(sizes), dtype=np.int64)
    renamed[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    of = renamed[label]
    return _described(space, of, float(modularity(graph, of)) if graph.nnz else 0.0)


def shared_neighbours(space: Space) -> Any:
    """The weighted graph of neighbours, a symmetric scipy.sparse CSR matrix [N, N].

    Two items are linked if one is among the other's K nearest; the weight is |A ∩ B| / |A ∪ B| of their neighbours,
    each counted among its own, so above 0.
    """
    count, k = len(space), space.k
    if not k:
        return sparse.csr_matrix((count, count), dtype=np.float32)
    near = space.neighbours.rows
    own = np.concatenate([np.arange(count)[:, None], near], axis=1).astype(np.int32)
    shared = np.empty((count, k), dtype=np.float32)
    for start in range(0, count, _TOGETHER):
        mine, theirs = own[start : start + _TOGETHER], own[near[start : start + _TOGETHER]]
        for place in range(k):  # [n, K + 1] against [n, K + 1]: who of mine is among those of my neighbour's
            both = mine[:, :, None] == theirs[:, place, None, :]
            shared[start : start + _TOGETHER, place] = both.any(axis=2).sum(axis=1)
    weights = shared / (2 * (k + 1) - shared)
    graph = sparse.csr_matrix((weights.ravel(), near.ravel(), np.arange(0, near.size + 1, k)), (count, count))
    return graph.maximum(graph.T).tocsr()


def centres(space: Space, of: np.ndarray) -> np.ndarray:
    """float32 [C, D]: the mean of each cluster's vectors of length 1, scaled to length 1 again."""
    membership = sparse.csr_matrix((np.ones(len(of), dtype=np.float32), (of, np.arange(len(of)))))
    sums = membership @ space.unit_vectors
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30), dtype=np.float32)


def _described(space: Space, of: np.ndarray, modularity: float) -> Clusters:
    middle = centres(space, of)
    cosines = np.einsum("nd,nd->n", space.unit_vectors, middle[of])
    sizes = np.bincount(of, minlength=len(middle))
    order = np.lexsort((-cosines, of))
    starts = np.cumsum(sizes) - sizes
    between = middle @ middle.T
    np.fill_diagonal(between, -np.inf)
    names = names_of(space, of, [str(space.titles[at]) for at in order[starts]])
    table = pd.DataFrame(
        {
            "name": names,
            "size": sizes,
            "share": sizes / max(1, len(of)),
            "tightness": np.bincount(of, cosines, minlength=len(middle)) / np.maximum(sizes, 1),
            "nearest": [names[at] if len(middle) > 1 else "" for at in between.argmax(axis=1)],
            "examples": [
                "; ".join(space.titles[order[start : start + min(size, _NAMES)]])
                for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
            ],
        }
    )
    table.index.name = "cluster"
    items = space.frame(np.arange(len(of)), cluster=of, name=np.array(names, dtype=object)[of], cosine=cosines)
    return Clusters(of, table, items, modularity)


def names_of(space: Space, of: np.ndarray, central: Sequence[str]) -> list[str]:
    """A name for each cluster: the values and words that set its items apart from all others.

    A value or a word counts by p log(p / q): its share p of the cluster's items, and its share q of all (a term of the
    Kullback-Leibler divergence), so that what is frequent here and rare elsewhere comes first.

    Args:
        space: with attributes and titles.
        of: int64 [N], each item's cluster.
        central: the title of each one's most central item, which tells apart those that would be called alike.
    """
    count = int(of.max(initial=-1)) + 1
    sizes = np.bincount(of, minlength=count)
    inside: list[Counter[str]] = [Counter() for _ in range(count)]
    everywhere: Counter[str] = Counter()
    for cluster, said in zip(of.tolist(), _words(space), strict=True):
        inside[cluster].update(said)
        everywhere.update(said)
    names = []
    for cluster, counter in enumerate(inside):
        scored = []
        for word, number in counter.items():
            share, usual = number / sizes[cluster], everywhere[word] / len(of)
            if share >= _COMMON and number > 1 and share > usual:
                scored.append((-share * np.log(share / usual), word))
        chosen = [word for _, word in sorted(scored)[:_NAMES]]
        names.append(" · ".join(chosen) or f"cluster {cluster}")
    repeated = {name for name, number in Counter(names).items() if number > 1}
    return [f"{name}: {central[at]}" if name in repeated else name for at, name in enumerate(names)]


def _words(space: Space) -> list[set[str]]:
    """The values of categorical and multi attributes of every item, and the words of its title."""
    said: list[set[str]] = [
        {word for word in _WORD.findall(str(title).casefold()) if word not in _STOP} for title in space.titles
    ]
    for name, kind in space.kinds.items():
        if kind not in ("categorical", "multi"):
            continue
        for values, words in zip(space.attributes[name].to_numpy(dtype=object), said, strict=True):
            words.update(_values(values))
    return said


def _values(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, np.ndarray | list | tuple) else []


def _leiden() -> tuple[Any, Any]:
    try:
        from sknetwork.clustering import Leiden, get_modularity
    except ImportError as error:
        raise ImportError("clusters need scikit-network; install the extra: pip install 'recsys[explore]'") from error
    return Leiden, get_modularity
