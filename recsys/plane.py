"""A map of vectors: the plane through them that shows most of how they differ (principal components)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 16  # vectors at a time: what is computed from a million of them needs no copy of them
_ROUNDING = 1e-12  # of vectors of length 1: less variance than this is none


@dataclass(frozen=True)
class Plane:
    """Where vectors of D numbers, scaled to length 1, stand on a plane.

    Attributes:
        mean: float64 [D], of the vectors that the plane was laid through.
        axes: float64 [2, D], orthonormal, the one that shows more first; noughts where there is no second.
        explained: what share of the variance each of both shows.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: tuple[float, float]

    def places(self, vectors: np.ndarray) -> np.ndarray:
        """The places of vectors [n, D], float32 [n, 2]; the vectors' lengths say nothing."""
        made = np.empty((len(vectors), 2), dtype=np.float32)
        for start in range(0, len(vectors), _CHUNK):
            made[start : start + _CHUNK] = (_unit(vectors[start : start + _CHUNK]) - self.mean) @ self.axes.T
        return made


def principal_plane(vectors: np.ndarray) -> Plane:
    """The plane of the two largest principal components of vectors [n, D], each scaled to length 1 first.

    Length goes with popularity where scores are inner products, and would be all that the map shows. An axis points to
    where its largest part is positive, so that the same vectors always give the same map.

    Source: K. Pearson, 1901, "On lines and planes of closest fit to systems of points in space".
    """
    count, dimension = vectors.shape
    total, squares = np.zeros(dimension), np.zeros((dimension, dimension))
    for start in range(0, count, _CHUNK):
        part = _unit(vectors[start : start + _CHUNK])
        total += part.sum(axis=0)
        squares += part.T @ part
    mean = total / max(1, count)
    variances, directions = np.linalg.eigh(squares / max(1, count) - np.outer(mean, mean))  # ascending
    variances = np.maximum(variances, 0.0)
    axes, shares = np.zeros((2, dimension)), [0.0, 0.0]
    for at in range(min(2, dimension)):
        axis, variance = directions[:, -1 - at], variances[-1 - at]
        if variance > _ROUNDING:
            axes[at] = axis * np.sign(axis[np.abs(axis).argmax()])
            shares[at] = float(variance / variances.sum())
    return Plane(mean, axes, (shares[0], shares[1]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return wide
