"""What is counted while items are picked: how full a cap is, what a quota lacks, what is like what was picked."""

from __future__ import annotations

import numpy as np

from recsys.attributes import FilterError
from recsys.rules.candidates import Arrangeable
from recsys.rules.said import Cap, Quota, RuleError

# Cosines are told apart to this fraction, so that equal ones are equal in whatever order a machine adds them up.
_COSINE_STEPS = 1 << 24


class CountedQuota:
    """A quota and how much of it is met."""

    def __init__(self, catalogue: Arrangeable, quota: Quota, name: str) -> None:
        self.name = name
        self.missing = quota.least
        try:
            self.mask = catalogue.eligible(quota.filter)  # bool [R]
        except FilterError as error:
            raise RuleError(f"{name}: {error}") from None

    def count(self, row: int) -> None:
        self.missing -= bool(self.missing and self.mask[row])


class CountedCap:
    """A cap, and how many items of each word were picked."""

    def __init__(self, catalogue: Arrangeable, cap: Cap) -> None:
        self._catalogue = catalogue
        self._cap = cap
        self._words: dict[int, frozenset[str]] = {}  # of each candidate that was learned of
        self._holders: dict[str, list[int]] = {}  # the candidates that have a word
        self._picked: dict[str, int] = {}

    def learn(self, candidates: list[int], rows: np.ndarray) -> list[int]:
        """Reads what some candidates have, rows int [n]; returns those that are over the cap already."""
        for at, words in zip(candidates, self._catalogue.values(self._cap.attribute, rows), strict=True):
            self._words[at] = frozenset(words)
            for word in self._words[at]:
                self._holders.setdefault(word, []).append(at)
        return [at for at in candidates if any(map(self._is_full, self._words[at]))]

    def count(self, at: int) -> list[int]:
        """Counts a candidate that was picked, and learned of before; returns all that are over the cap now."""
        for word in self._words[at]:
            self._picked[word] = self._picked.get(word, 0) + 1
        return [other for word in self._words[at] if self._is_full(word) for other in self._holders[word]]

    def full(self) -> list[str]:
        """The words of candidates that no further item may have."""
        return [word for word in self._holders if self._is_full(word)]

    def left(self, full: list[str]) -> np.ndarray:
        """bool [R]: which items have none of these words."""
        return ~self._catalogue.eligible({self._cap.attribute: {"in": full}})

    def _is_full(self, word: str) -> bool:
        return self._picked.get(word, 0) >= self._cap.most


class Diverse:
    """Picks from a pool the item that is best for its relevance and its unlikeness to what was picked (MMR).

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking" (1998), with both sides scaled to one range.

    Args:
        pool: int [P], positions of candidates, best first.
        lifted: float64 [P], their lifted scores.
        vectors: float32 [P, D].
        diversity: λ, above 0.
    """

    def __init__(self, pool: np.ndarray, lifted: np.ndarray, vectors: np.ndarray, diversity: float) -> None:
        self.pool = pool
        span = lifted.max() - lifted.min()
        self._relevance = (1 - diversity) * ((lifted - lifted.min()) / span if span else np.zeros(len(pool)))
        self._directions = _directions(vectors)
        self._diversity = diversity
        # The highest cosine with what was picked; before anything was, all are worth the same, and the first is taken.
        self._nearest = np.full(len(pool), -np.inf)

    def best(self, open_: np.ndarray) -> int | None:
        """The position to pick among candidates that are open, bool [n]; None if none of the pool is."""
        usable = open_[self.pool]
        if not usable.any():
            return None
        value = self._relevance - self._diversity * self._nearest
        return int(self.pool[np.where(usable, value, -np.inf).argmax()])

    def count(self, vector: np.ndarray) -> None:
        """Learns of a picked item's vector, float32 [D]."""
        # Not BLAS, which spreads over cores and sums a row differently by where it stands.
        cosines = np.einsum("nd,d->n", self._directions, _directions(vector[None])[0])
        np.maximum(self._nearest, np.rint(cosines * _COSINE_STEPS) / _COSINE_STEPS, out=self._nearest)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """float64 [n, D]: vectors of length one; zeros stay zeros, alike to nothing."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return wide / np.where(lengths > 0, lengths, 1.0)[:, None]
