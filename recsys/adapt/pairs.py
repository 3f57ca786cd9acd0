"""Pairs of items to learn from, mined from training: taken together, and near in text but never taken together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, in_training

_SMOOTHING = 0.75  # of how often items occur
_CELLS = 1 << 22  # similarities held at a time


@dataclass(frozen=True)
class Mining:
    """What counts as a pair.

    Args:
        window: items are together where one user took them with fewer than this many others between them.
        hours: and, where the log has times, within so many hours; any number if left out.
        least: users who took both, at least.
        positives: of each item, the most that are learnt.
        negatives: hard negatives of each pair.
        below: a hard negative is at most this share as near in text as the positive is.
    """

    window: int = 5
    hours: float | None = None
    least: int = 2
    positives: int = 5
    negatives: int = 1
    below: float = 0.95

    def __post_init__(self) -> None:
        for name, value, floor in (
            ("window", self.window, 1),
            ("least", self.least, 1),
            ("positives", self.positives, 1),
            ("negatives", self.negatives, 0),
        ):
            if value < floor:
                raise ValueError(f"mining.{name} is {value}; give at least {floor}")
        if self.hours is not None and self.hours <= 0:
            raise ValueError(f"mining.hours is {self.hours}; give more than 0, or leave it out")
        if not 0 < self.below <= 1:
            raise ValueError(f"mining.below is {self.below}; choose a share above 0, up to 1")


@dataclass(frozen=True)
class Pairs:
    """What is learnt.

    Attributes:
        anchor: int64 [n], item rows.
        positive: int64 [n], rows of items taken together with them.
        negative: int64 [n, k], rows of items near in text and never together with the anchor; −1 where there is none.
    """

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    def __len__(self) -> int:
        return len(self.anchor)


def together(dataset: Dataset, cuts: Cuts, mining: Mining) -> sparse.csr_array:
    """How many users took two items together in training, symmetric int64 sparse [N, N], nothing on its diagonal.

    A user counts once for a pair, however often they took it, so that nobody speaks for all.
    """
    trained = in_training(dataset, cuts)
    users, items = dataset.user_rows[trained].astype(np.int64), np.asarray(dataset.items)[trained].astype(np.int64)
    times = None if dataset.times is None else np.asarray(dataset.times)[trained]
    count, found = dataset.num_items, []
    for step in range(1, mining.window + 1):
        first, second = slice(None, -step), slice(step, None)
        kept = (users[first] == users[second]) & (items[first] != items[second])
        if mining.hours is not None and times is not None:
            kept &= np.abs(times[second] - times[first]) <= mining.hours * 3_600_000
        low, high = np.minimum(items[first], items[second])[kept], np.maximum(items[first], items[second])[kept]
        found.append(np.stack([users[first][kept], low * count + high]))
    _, pair = np.unique(np.concatenate(found, axis=1), axis=1)
    pair, times_taken = np.unique(pair, return_counts=True)
    half = sparse.csr_array((times_taken, (pair // count, pair % count)), shape=(count, count))
    return (half + half.T).tocsr()


def pointwise_information(counts: sparse.csr_array) -> sparse.csr_array:
    """log(p(i, j) / (p(i) · p(j))) of pairs that are together, float64 sparse [N, N].

    Pointwise mutual information (Church and Hanks, 1990), each p(j) smoothed by the power 0.75, without which the
    rarest pairs come first (Levy, Goldberg and Dagan, 2015, "Improving Distributional Similarity with Lessons Learned
    from Word Embeddings", section 3.2).
    """
    coo = counts.tocoo()
    of_item = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    share, smoothed = of_item / max(of_item.sum(), 1), of_item**_SMOOTHING
    smoothed /= max(smoothed.sum(), 1)
    row, column = coo.coords
    information = np.log(coo.data / coo.data.sum() / (share[row] * smoothed[column])) if coo.nnz else coo.data
    return sparse.csr_array((information, (row, column)), shape=counts.shape)


def mined(dataset: Dataset, cuts: Cuts, texts: list[str | None], vectors: np.ndarray, mining: Mining) -> Pairs:
    """Pairs of items with different texts.

    Positives: of each item, the most informative of those with at least `least` users and a positive pointwise
    information. Hard negatives: of the other items of the training part with a text, the nearest to the anchor in the
    encoder's own vectors, but not those that are false: whoever was ever together with it, has the same text, or is
    nearer to it than `below` times the positive is (the positive-aware filter TopK-PercPos of Moreira et al., 2024,
    "NV-Retriever", arXiv 2407.15831, section 4.2, where it is 95 %; mining with the encoder at hand is as in Wang et
    al., 2022, "GPL", arXiv 2112.07577).

    Args:
        dataset: the log.
        cuts: where training ends; nothing after that is looked at.
        texts: of each item, or None.
        vectors: of the texts, of length 1, float32 [N, width]; zeros where there is none.
        mining: what counts.
    """
    counts = together(dataset, cuts, mining)
    has_text = np.array([bool(text) for text in texts])
    codes = np.unique([text or "" for text in texts], return_inverse=True)[1]
    seen = np.zeros(dataset.num_items, dtype=bool)
    seen[np.asarray(dataset.items)[in_training(dataset, cuts)]] = True
    anchor, positive = _positives(counts, has_text, codes, mining)
    negative = np.full((len(anchor), mining.negatives), -1, dtype=np.int64)
    if mining.negatives and len(anchor):
        candidates = np.flatnonzero(has_text & seen)
        step = max(1, _CELLS // max(1, len(candidates)))
        for start in range(0, len(anchor), step):
            some = slice(start, start + step)
            negative[some] = _negatives(anchor[some], positive[some], candidates, counts, codes, vectors, mining)
    return Pairs(anchor, positive, negative)


def _positives(
    counts: sparse.csr_array, has_text: np.ndarray, codes: np.ndarray, mining: Mining
) -> tuple[np.ndarray, np.ndarray]:
    information = pointwise_information(counts).tocoo()
    row, column = (place.astype(np.int64) for place in information.coords)
    users = np.asarray(counts[row, column]).ravel()
    kept = (users >= mining.least) & (information.data > 0) & has_text[row] & has_text[column]
    kept &= codes[row] != codes[column]
    row, column, value = row[kept], column[kept], information.data[kept]
    order = np.lexsort((column, -value, row))
    row, column = row[order], column[order]
    start = np.searchsorted(row, row)  # where each item's own begin
    chosen = np.arange(len(row)) - start < mining.positives
    return row[chosen], column[chosen]


def _negatives(
    anchor: np.ndarray,
    positive: np.ndarray,
    candidates: np.ndarray,
    counts: sparse.csr_array,
    codes: np.ndarray,
    vectors: np.ndarray,
    mining: Mining,
) -> np.ndarray:
    """int64 [n, negatives], the nearest candidates that are no false negatives; −1 behind."""
    near = vectors[anchor] @ vectors[candidates].T
    limit = mining.below * (vectors[anchor] * vectors[positive]).sum(axis=1)
    met = counts[anchor][:, candidates].tocoo()
    near[met.coords[0], met.coords[1]] = -np.inf
    near[(codes[anchor][:, None] == codes[candidates]) | (near > limit[:, None])] = -np.inf
    kept = min(mining.negatives, len(candidates))
    best = np.argpartition(-near, kept - 1, axis=1)[:, :kept]  # sorting all of a catalogue takes ten times as long
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(near, best, axis=1), axis=1, kind="stable"), axis=1)
    found = np.full((len(anchor), mining.negatives), -1, dtype=np.int64)
    found[:, :kept] = np.where(np.isfinite(np.take_along_axis(near, best, axis=1)), candidates[best], -1)
    return found
