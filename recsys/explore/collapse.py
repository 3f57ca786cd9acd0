"""Whether the vectors use the space they have, and whether they agree with what users did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.explore.space import Space

_PAIRS = 200_000  # random pairs, and pairs that were taken one after the other: a mean of them is known to 0.3 %
_UNUSED = 1e-3  # of the mean variance, below which a direction or a dimension says nothing


@dataclass(frozen=True)
class Collapse:
    """How the vectors fill their space.

    Attributes:
        rank: effective rank of the centred vectors, 1 to D.
        of: D.
        dimensions: DataFrame, a dimension a row: variance, share, unused.
        directions: float64 [D], the share of variance along each principal direction, largest first.
        unused: how many directions hold less than a thousandth of the mean variance.
        mean_cosine: of two items drawn at random: 0 where they point everywhere, 1 where all point one way.
        uniformity: log E exp(−2 ‖a − b‖²) over random pairs of length 1; lower is more uniform.
        ideal: the uniformity of D dimensions evenly filled.
        alignment: E ‖a − b‖² over items that users took one after the other; lower is better. None without histories.
        apart: the same over such items, paired anew at random: what alignment would be if histories said nothing.
        coherence: 1 − alignment / apart: 0 where the vectors know nothing of the histories.
        deviations: by how many standard errors alignment is below `apart`.
    """

    rank: float
    of: int
    dimensions: pd.DataFrame
    directions: np.ndarray
    unused: int
    mean_cosine: float
    uniformity: float
    ideal: float
    alignment: float | None
    apart: float | None
    coherence: float | None
    deviations: float | None

    @property
    def rank_share(self) -> float:
        """The effective rank as a share of the dimensions."""
        return self.rank / max(1, self.of)


def collapse(space: Space, *, seed: int = 0) -> Collapse:
    """Measures how the vectors fill their space.

    The rank is of the vectors as they are, since a score sums over all of their length; cosine, uniformity and
    alignment are of vectors of length 1, as Wang and Isola 2020, "Understanding Contrastive Representation Learning
    through Alignment and Uniformity on the Hypersphere", arXiv 2005.10242, define them (α 2, t 2). Their positive
    pairs are here two items that a user took one after the other.

    Args:
        space: whose items.
        seed: of the random pairs.
    """
    vectors, random = space.vectors, np.random.default_rng(seed)
    size = vectors.shape[1]
    variance = vectors.var(axis=0, dtype=np.float64)
    directions = np.sort(np.maximum(np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)).reshape(size, size)), 0))
    directions = directions[::-1] / max(float(directions.sum()), 1e-30)
    one, other = random.integers(len(vectors), size=(2, _PAIRS))
    one, other = one[one != other], other[one != other]
    squares = _squares(space, one, other)
    alignment = apart = coherence = deviations = None
    first, second = _following(space, random)
    if len(first) > 1:
        near, mixed = _squares(space, first, second), _squares(space, first, random.permutation(second))
        alignment, apart = float(near.mean()), float(mixed.mean())
        coherence = 1 - alignment / max(apart, 1e-30)
        error = np.sqrt((near.var() + mixed.var()) / len(near))
        deviations = float((apart - alignment) / max(float(error), 1e-30))
    return Collapse(
        rank=effective_rank(vectors),
        of=size,
        dimensions=pd.DataFrame(
            {
                "variance": variance,
                "share": variance / max(float(variance.sum()), 1e-30),
                "unused": variance <= _UNUSED * variance.mean(),
            }
        ).rename_axis("dimension"),
        directions=directions,
        unused=int((directions <= _UNUSED / size).sum()),
        mean_cosine=mean_cosine(vectors),
        uniformity=float(np.log(np.mean(np.exp(-2 * squares)))) if len(squares) else 0.0,
        ideal=_uniform(size),
        alignment=alignment,
        apart=apart,
        coherence=coherence,
        deviations=deviations,
    )


def effective_rank(vectors: np.ndarray) -> float:
    """How many directions the vectors [n, D] spread over: exp of the entropy of the normalised singular values.

    Roy and Vetterli 2007, The effective rank: a measure of effective dimensionality (EUSIPCO), of the centred matrix:
    1 for a line, min(n − 1, D) for vectors that fill their space evenly; 0 where all are equal.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    # Of the D × D Gram matrix: its eigenvalues are the squares, and n may be millions.
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred), 0))
    values = values[values > 1e-7 * values.max(initial=0)]  # the rest is rounding
    shares = values / values.sum() if len(values) else values
    return float(np.exp(-(shares @ np.log(shares)))) if len(values) else 0.0


def mean_cosine(vectors: np.ndarray) -> float:
    """The mean cosine of two vectors drawn at random from [n, D], those of length 0 left out; exact, not sampled.

    The squared length of the sum of unit vectors is n and twice the sum over pairs.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit = vectors[lengths > 0] / lengths[lengths > 0, None]
    total = unit.sum(axis=0)
    return float((total @ total - len(unit)) / (len(unit) * (len(unit) - 1))) if len(unit) > 1 else 0.0


def _squares(space: Space, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    unit = space.unit_vectors
    return 2 - 2 * np.einsum("nd,nd->n", unit[one], unit[other]).astype(np.float64)


def _following(space: Space, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Items that a user took one after the other: item rows [n] and [n], at most _PAIRS, drawn at random."""
    follows = np.ones(max(0, len(space.history) - 1), dtype=bool)
    borders = space.user_offsets[1:-1]
    follows[borders[(borders > 0) & (borders < len(space.history))] - 1] = False
    at = np.flatnonzero(follows)
    at = at[space.history[at] != space.history[at + 1]]
    if len(at) > _PAIRS:
        at = np.sort(random.choice(at, _PAIRS, replace=False))
    return space.history[at], space.history[at + 1]


def _uniform(size: int) -> float:
    """log E exp(−2 ‖a − b‖²) of two points drawn evenly from the sphere of `size` dimensions, by integration."""
    if size < 2:
        return float(np.log((1 + np.exp(-8)) / 2))
    angles = (np.arange(4096) + 0.5) * np.pi / 4096
    density = np.sin(angles) ** (size - 2)
    return float(np.log((np.exp(-4 + 4 * np.cos(angles)) @ density) / density.sum()))
