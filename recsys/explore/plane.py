"""A map: every item as a point of a plane."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd

from recsys.explore.clusters import Clusters
from recsys.explore.space import Space


def plane(
    space: Space, clusters: Clusters | None = None, *, method: Literal["pca", "umap"] = "pca", seed: int = 0
) -> pd.DataFrame:
    """Every item's place on a map: DataFrame item_id, title, x, y, and cluster and name where clusters are given.

    Both are of vectors of length 1, so that what lies close is alike. "pca" keeps the two directions of the greatest
    variance, in an instant; "umap" (McInnes, Healy and Melville 2018, arXiv 1802.03426) keeps neighbourhoods, takes
    from the shared neighbours what it would search for, but takes a minute or so, much of it to compile.

    Args:
        space: whose items.
        clusters: to colour them by.
        method: how.
        seed: of UMAP.

    Raises:
        ValueError: there is no such method.
        ImportError: "umap" is asked for and the extra `explore` is not installed.
    """
    if method not in ("pca", "umap"):
        raise ValueError(f"there is no map {method!r}; choose 'pca' or 'umap'")
    places = _pca(space.unit_vectors) if method == "pca" else _umap(space, seed)
    frame = space.frame(np.arange(len(space)), x=places[:, 0], y=places[:, 1])
    if clusters is not None:
        frame = frame.assign(cluster=clusters.of, name=clusters.items["name"].to_numpy())
    return frame


def _pca(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, 2]: along the two principal directions (Pearson 1901), each pointing where its largest entry does."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    axes = directions[:, ::-1][:, :2]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], 0))
    places = np.zeros((len(vectors), 2), dtype=np.float32)
    places[:, : axes.shape[1]] = centred @ axes
    return places


def _umap(space: Space, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise ImportError("this map needs umap-learn; install the extra: pip install 'recsys[explore]'") from error
    near = space.neighbours
    own = np.arange(len(space))[:, None]
    rows = np.concatenate([own, near.rows], axis=1)
    distances = np.concatenate([np.zeros((len(space), 1), dtype=np.float32), near.distances], axis=1)
    known: Any = (rows, distances, None)
    made = umap.UMAP(n_neighbors=space.k + 1, precomputed_knn=known, random_state=seed, n_jobs=1, init="pca")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn")  # it could not map further items, which nobody asks
        return np.asarray(made.fit_transform(space.unit_vectors), dtype=np.float32)
