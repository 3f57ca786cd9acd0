"""Whether the doctor's finders find what was planted, beside the naive way, and what a whole doctor costs:
`python -m benchmarks.explore [--items 50000 --dim 64] [--json]`.

The floor of a doctor is one exact pass over the catalogue, every item's 16 nearest by blocks of BLAS; each part is told
as so many of it. Precision and recall are of items, and of clusters of pairs of items that stand in one.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from benchmarks.table import emit, parser
from recsys.data.planted import Planted, planted
from recsys.explore.attributes import guess
from recsys.explore.clusters import clusters
from recsys.explore.collapse import collapse
from recsys.explore.doctor import FLOOR, examine
from recsys.explore.drift import drift
from recsys.explore.duplicates import duplicates
from recsys.explore.outliers import outliers
from recsys.explore.space import Space

FIXED = 0.95  # the cosine that one would write down
NAIVE_CLUSTERS = 8  # what k-means is given where nobody says how many, as in scikit-learn
COUNTED = 3.0  # standard deviations from which on a length is an outlier
MOVED = 0.02  # share of items that the newer of two spaces moves elsewhere


@dataclass(frozen=True)
class Score:
    """How well one way found what was planted."""

    finder: str
    way: str
    found: int
    planted: int
    precision: float
    recall: float


def main() -> None:
    """Prints both tables."""
    arguments = parser("planted truth found, and the doctor's time")
    arguments.add_argument("--items", type=int, default=50_000, help="of the catalogue")
    arguments.add_argument("--dim", type=int, default=64, help="of the vectors")
    arguments.add_argument("--users", type=int, default=10_000, help="who are recommended something")
    arguments.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    said = arguments.parse_args()
    made = planted(said.items, said.dim, unused=said.dim // 16, users=said.users, seed=said.seed)
    space = Space.made(made.vectors, **made.known)
    title = f"planted in {said.items:,} × {said.dim}"
    emit(title, [vars(one) for one in scores(made, space, said.seed)], as_json=said.json)
    fresh = Space.made(made.vectors, **made.known)  # so that every part is computed again
    report = examine(fresh)
    floor = report.seconds[FLOOR]
    rows: list[dict[str, Any]] = [
        {"part": name, "seconds": seconds, "× floor": seconds / floor} for name, seconds in report.seconds.items()
    ]
    total = sum(report.seconds.values())
    rows.append({"part": "together", "seconds": total, "× floor": total / floor})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    emit(f"doctor of {said.items:,} × {said.dim}, {said.users:,} users, peak {peak:.1f} GB", rows, as_json=said.json)


def scores(made: Planted, space: Space, seed: int = 0) -> list[Score]:
    """Each finder, then its naive way, on one planted catalogue."""
    random = np.random.default_rng(seed)
    found = duplicates(space)
    pairs = random.integers(len(space), size=(2, 16 * len(space)))
    near = np.einsum("nd,nd->n", space.unit_vectors[pairs[0]], space.unit_vectors[pairs[1]]) >= FIXED
    sampled = np.zeros(len(space), dtype=bool)
    sampled[pairs[:, near & (pairs[0] != pairs[1])].ravel()] = True
    far = outliers(space)
    z = (space.lengths - space.lengths.mean()) / space.lengths.std()
    grouped = clusters(space)
    placed = ~made.outlier
    _, plain = kmeans2(space.vectors, NAIVE_CLUSTERS, minit="points", rng=seed)
    filled = collapse(space)
    unused = filled.dimensions["unused"].to_numpy()
    lost = space.vectors.shape[1] - int(np.linalg.matrix_rank(space.vectors))
    naive = np.zeros_like(unused)
    naive[np.argsort(np.abs(space.vectors).mean(axis=0))[:lost]] = True
    moved, old, new = _moved(space, random)
    drifted = drift(old, new).items
    churned = np.zeros(len(space), dtype=bool)
    churned[drifted.loc[drifted["churn"] > 0.5, "item_id"].to_numpy().astype(int)] = True
    apart = np.einsum("nd,nd->n", old.unit_vectors, new.unit_vectors) < 0.5
    return [
        _of("duplicates", "ratio of neighbours, chosen", found.group_of >= 0, made.duplicate),
        _of("duplicates", f"cosine ≥ {FIXED}", space.neighbours.cosines[:, 0] >= FIXED, made.duplicate),
        _of("duplicates", f"cosine ≥ {FIXED} of random pairs, 16 an item", sampled, made.duplicate),
        _of("outliers", "local outlier factor, chosen", far.factor > far.threshold, made.outlier),
        _of("outliers", f"length beyond {COUNTED:.0f} deviations", np.abs(z) > COUNTED, made.outlier),
        _of_pairs("clusters", "Leiden, shared neighbours", grouped.of[placed], made.cluster[placed]),
        _of_pairs("clusters", f"k-means, k {NAIVE_CLUSTERS}", plain[placed], made.cluster[placed]),
        _of("collapsed dimensions", "variance", unused, made.unused),
        _of("collapsed dimensions", "numpy's matrix_rank", naive, made.unused),
        *_guesses(made, space),
        _of("moved items", "churn of neighbours > 0.5", churned, moved),
        _of("moved items", "cosine < 0.5, not rotated", apart, moved),
    ]


def _of(finder: str, way: str, found: np.ndarray, truth: np.ndarray) -> Score:
    both = int((found & truth).sum())
    number, there = int(found.sum()), int(truth.sum())
    return Score(finder, way, number, there, both / number if number else 0.0, both / there if there else 1.0)


def _of_pairs(finder: str, way: str, found: np.ndarray, truth: np.ndarray) -> Score:
    """Over pairs of items: how many of those in one cluster belong together, and the other way round."""

    def pairs(counts: np.ndarray) -> int:
        return int((counts * (counts - 1) // 2).sum())

    _, cells = np.unique(np.stack([found, truth]), axis=1, return_counts=True)
    both, mine, theirs = pairs(cells), pairs(np.bincount(found)), pairs(np.bincount(truth))
    return Score(finder, way, len(np.unique(found)), len(np.unique(truth)), both / max(1, mine), both / max(1, theirs))


def _guesses(made: Planted, space: Space) -> list[Score]:
    """Of the values that the catalogue does not tell: an outlier's is anybody's guess, and so is not counted."""
    missing = space.attributes["genre"].isna().to_numpy() & ~made.outlier
    truth = made.genre[missing]
    guessed = np.full(len(space), None, dtype=object)
    table = guess(space, "genre").missing
    guessed[table["item_id"].to_numpy().astype(int)] = table["guess"].to_numpy(dtype=object)
    told = np.array([one is not None for one in guessed[missing]])
    right = int((guessed[missing] == truth).sum())
    values, counts = np.unique(space.attributes["genre"].dropna().to_numpy(dtype=str), return_counts=True)
    most = int((truth == values[counts.argmax()]).sum())
    number = int(missing.sum())
    return [
        Score(
            "missing genre", "vote of ten neighbours", int(told.sum()), number, right / int(told.sum()), right / number
        ),
        Score("missing genre", "most frequent value", number, number, most / number, most / number),
    ]


def _moved(space: Space, random: np.random.Generator) -> tuple[np.ndarray, Space, Space]:
    """Which items move, bool [N]; the space before; and the same trained anew, as it were: rotated, noisy, moved."""
    size = space.vectors.shape[1]
    rotation = np.linalg.qr(random.standard_normal((size, size)))[0]
    vectors = space.vectors.astype(np.float64)
    at = random.choice(len(space), round(MOVED * len(space)), replace=False)
    moved = np.zeros(len(space), dtype=bool)
    moved[at] = True
    vectors[at] = vectors[random.permutation(at)]
    noisy = vectors + 0.02 * random.standard_normal(vectors.shape) * space.lengths[:, None] / np.sqrt(size)
    said = {"ids": space.ids, "titles": space.titles}
    return moved, Space.made(space.vectors, **said), Space.made((noisy @ rotation).astype(np.float32), **said)


if __name__ == "__main__":
    main()
