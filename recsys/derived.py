"""What is computed from a bundle once, when it is first asked for: shared by all who answer from that bundle."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from recsys.attributes import Attributes
from recsys.bundle import Bundle
from recsys.ids import Id, IdMap
from recsys.index.build import Hnsw, Ivf, IvfPq, Kind, at_effort, kind_of
from recsys.index.exact import best
from recsys.index.search import Index
from recsys.plane import Plane, principal_plane
from recsys.texts import Texts

_CHUNK = 1 << 16  # vectors read at a time: what is computed from a million of them needs no copy of them
_POPULAR = 1 << 12  # items in the order of popularity that is kept; who asks for more is answered by a full scan
_REMEMBERED = 1 << 16


class Derived:
    """What one bundle's answers need beside the bundle; many threads may ask at once.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        # Popular items are returned again and again; reading them from Arrow is a fifth of a quick request. Not a
        # method of this object, whose memory would then wait for the garbage collector when a bundle is let go.
        self.said = lru_cache(maxsize=_REMEMBERED)(partial(_said, bundle.item_ids, bundle.attributes))
        """Of one row of the bundle: its id, and what an answer shows of it."""

    def spread(self, query: np.ndarray) -> float:
        """The standard deviation of a query's scores over the bundle's items: √(qᵀ C q), C their vectors' covariance.

        Args:
            query: float32 [D].
        """
        wide = query.astype(np.float64)
        return float(np.sqrt(max(0.0, wide @ self._covariance @ wide)))

    @cached_property
    def _covariance(self) -> np.ndarray:
        """float64 [D, D]."""
        vectors = self._bundle.item_vectors
        total, squares = np.zeros(vectors.shape[1]), np.zeros((vectors.shape[1], vectors.shape[1]))
        for start in range(0, len(vectors), _CHUNK):
            part = vectors[start : start + _CHUNK].astype(np.float64)
            total += part.sum(axis=0)
            squares += part.T @ part
        mean = total / max(1, len(vectors))
        covariance: np.ndarray = squares / max(1, len(vectors)) - np.outer(mean, mean)
        return covariance

    @cached_property
    def popularity_spread(self) -> float:
        """The standard deviation of popularity over the bundle's items."""
        return float(self._bundle.popularity.std(dtype=np.float64)) if len(self._bundle.popularity) else 0.0

    @cached_property
    def most_popular(self) -> np.ndarray:
        """int64 [n]: the rows of the most popular items, in order, ties by row; all items where there are few."""
        return best(self._bundle.popularity, _POPULAR)[1]

    @cached_property
    def texts(self) -> Texts:
        """What is written of the bundle's items."""
        entity, attributes = self._bundle.schema.items, self._bundle.attributes
        return Texts(entity.features if entity else (), attributes.own_table, attributes.num_items)

    @cached_property
    def plane(self) -> Plane:
        """The plane that the items are drawn on, of the bundle's own vectors: what is PUT later does not turn it."""
        return principal_plane(self._bundle.item_vectors)

    @cached_property
    def places(self) -> np.ndarray:
        """float32 [N, 2]: where the bundle's items stand on the plane."""
        return self.plane.places(self._bundle.item_vectors)

    @cached_property
    def hasty_index(self) -> Index | None:
        """The same index searched half as thoroughly, in the same memory; None where it looks at every item anyway."""
        index = self._bundle.index
        kind = kind_of(index)
        match kind:
            case Hnsw():
                less: Kind = replace(kind, effort=max(1, kind.effort // 2))
            case Ivf():
                less = replace(kind, probed_share=kind.probed_share / 2)
            case IvfPq():
                less = replace(kind, probed_share=kind.probed_share / 2, reranked=max(1, kind.reranked // 2))
            case _:
                return None
        hasty = at_effort(index, less)
        at_effort(index, kind)  # what both share says again what it said; an Index reads it once, when it is made
        return hasty

    @cached_property
    def prefix(self) -> int | None:
        """The shortest prefix of vectors that searching may use; None where there is nothing to be won.

        A prefix is scanned in full. That is cheaper where the index, too, looks at every item; a graph or inverted
        lists look at so few that a scan of even a quarter of the numbers would cost many times as much.
        """
        shortest = min(self._bundle.manifest.content["dimensions"], default=0)
        scans = self._bundle.index.kind in ("flat", "fp16")
        return shortest if scans and 0 < shortest < self._bundle.towers.architecture.dimension else None

    def cut(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, D] cut to the prefix, float32 [n, prefix], as the loss that trained it cut them."""
        part = np.ascontiguousarray(vectors[:, : self.prefix], dtype=np.float32)
        if self._bundle.towers.architecture.unit:
            part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        return part

    @cached_property
    def cut_vectors(self) -> np.ndarray:
        """float32 [N, prefix]: the bundle's item vectors, cut."""
        vectors = self._bundle.item_vectors
        made = np.empty((len(vectors), self.prefix or 0), dtype=np.float32)
        for start in range(0, len(vectors), _CHUNK):
            made[start : start + _CHUNK] = self.cut(vectors[start : start + _CHUNK])
        return made


def _said(ids: IdMap, attributes: Attributes, row: int) -> tuple[Id, dict[str, Any]]:
    return ids.id(row), attributes.shown(row)
