"""A Space: item vectors with what is known of the items, and their nearest neighbours, found once for every finder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from recsys.attributes import Attributes
from recsys.bundle import Bundle
from recsys.index.exact import Exact, best

K = 16  # neighbours of an item: as many as a graph of communities and a vote want
LIST = 10  # items of a user's list
USERS = 10_000  # users whose lists are made, evenly spaced, where there are more
_BLOCK = 1 << 12  # queries between two words of progress
_TOGETHER = 256  # users scored at once


@dataclass(frozen=True)
class Neighbours:
    """The K nearest other items of every item, by cosine; nearest first.

    By cosine and not by inner product, since length says how popular an item is, and it is asked what it is like.

    Attributes:
        rows: int64 [N, K].
        distances: float32 [N, K], ‖a − b‖ of the vectors scaled to length 1: √(2 − 2 cos), from 0 to 2.
    """

    rows: np.ndarray
    distances: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """float32 [N, K]."""
        cosines: np.ndarray = 1 - self.distances**2 / 2
        return cosines


@dataclass(frozen=True)
class Lists:
    """What some users are recommended: the best items by inner product, as the service scores, without those seen.

    Attributes:
        users: int64 [U], rows.
        items: int64 [U, n], item rows, best first; −1 where nothing is left.
        scores: float32 [U, n].
    """

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Space:
    """Item vectors and what is known of the items; `Space.of` makes one of a bundle.

    Nothing in it changes; what is computed is kept, so that the finders share it.

    Attributes:
        vectors: float32 [N, D], as they are scored by inner product; of length 1 or not.
        ids: external ids [N].
        titles: str [N], what to call each item: what its bundle shows of it, or its id.
        attributes: DataFrame, a row an item in the same order, a column a declared attribute.
        kinds: each attribute's kind, as the schema declares it.
        popularity: float32 [N], each item's share of the newest interactions; None if unknown.
        user_vectors: float32 [U, D]; zeros for a user without a history.
        user_ids: external ids [U].
        user_offsets: int64 [U + 1]; user u took what stands between offsets u and u + 1, oldest first.
        history: int [interactions], item rows.
        dimensions: what vectors may be cut to, the full one first.
        unit: whether vectors are of length 1, so that what is cut is scaled again.
        name: of the bundle.
        bundle: that it was made of, if it was.
        say: told of each step that takes long.
    """

    vectors: np.ndarray
    ids: np.ndarray
    titles: np.ndarray
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)
    kinds: Mapping[str, str] = field(default_factory=dict)
    popularity: np.ndarray | None = None
    user_vectors: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    user_ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    user_offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    history: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    dimensions: tuple[int, ...] = ()
    unit: bool = False
    name: str = "these vectors"
    bundle: Bundle | None = None
    say: Callable[[str], None] = lambda line: None

    @classmethod
    def of(cls, bundle: Bundle, *, say: Callable[[str], None] = lambda line: None) -> Self:
        """The space of a bundle's items.

        Args:
            bundle: opened.
            say: told of each step that takes long, a line each.
        """
        ids = as_objects(bundle.item_ids.array.to_pylist())
        frame = bundle.attributes.frame()
        return cls(
            vectors=np.asarray(bundle.item_vectors),
            ids=ids,
            titles=titles_of(bundle.attributes, frame, ids),
            attributes=frame,
            kinds={f.name: f.kind for f in bundle.schema.items.features} if bundle.schema.items else {},
            popularity=bundle.popularity,
            user_vectors=np.asarray(bundle.user_vectors),
            user_ids=as_objects(bundle.user_ids.array.to_pylist()),
            user_offsets=np.asarray(bundle.user_offsets),
            history=np.asarray(bundle.history_items),
            dimensions=tuple(int(size) for size in bundle.manifest.content["dimensions"]),
            unit=bool(bundle.manifest.content["unit"]),
            name=bundle.id,
            bundle=bundle,
            say=say,
        )

    @classmethod
    def made(cls, vectors: np.ndarray, **known: Any) -> Self:
        """A space of bare vectors, float32 [N, D]; items are called by their rows unless `known` says better."""
        rows = np.arange(len(vectors))
        said: dict[str, Any] = {"ids": rows, "titles": as_objects([f"item {row}" for row in rows])} | known
        return cls(vectors=np.ascontiguousarray(vectors, dtype=np.float32), **said)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def unit_vectors(self) -> np.ndarray:
        """float32 [N, D], each scaled to length 1; one of length 0 stays so."""
        scaled: np.ndarray = self.vectors / np.maximum(self.lengths, 1e-30)[:, None]
        return scaled

    @cached_property
    def lengths(self) -> np.ndarray:
        """float32 [N]."""
        return np.linalg.norm(self.vectors, axis=1)

    @cached_property
    def k(self) -> int:
        """How many neighbours an item has: K, or all the others of a small catalogue."""
        return max(0, min(K, len(self) - 1))

    @cached_property
    def neighbours(self) -> Neighbours:
        """The one exact pass over the catalogue that every finder shares.

        Blocks of queries times all vectors in BLAS, and a selection by block maxima: on two cores as fast as FAISS's
        exact scan of as many queries, and for items that were never an index's own (a cosine is no inner product
        where lengths differ). The distances of what was found are computed again from differences: of two vectors
        that are all but equal, 1 − cos keeps no digit in single precision.
        """
        unit, k = self.unit_vectors, self.k
        rows = np.empty((len(self), k), dtype=np.int64)
        distances = np.empty((len(self), k), dtype=np.float32)
        exact = Exact(unit)
        for start in range(0, len(self) if k else 0, _BLOCK):
            self.say(f"neighbours of {len(self):,} items: {start / len(self):.0%}")
            own = np.arange(start, min(start + _BLOCK, len(self)))
            found = exact.search(unit[own], k + 1)[1]
            # Its own row goes last; among more equal vectors than there are places it is not there: the last goes.
            last = (found == own[:, None]).argsort(axis=1, kind="stable")
            near = np.take_along_axis(found, last[:, :k], 1)
            apart = np.empty((len(own), k), dtype=np.float32)
            for place in range(k):
                apart[:, place] = np.linalg.norm(unit[near[:, place]] - unit[own], axis=1)
            order = apart.argsort(axis=1, kind="stable")
            rows[own], distances[own] = np.take_along_axis(near, order, 1), np.take_along_axis(apart, order, 1)
        return Neighbours(rows, distances)

    @cached_property
    def occurrences(self) -> np.ndarray:
        """int64 [N]: in how many other items' K nearest each one stands."""
        return np.bincount(self.neighbours.rows.ravel(), minlength=len(self))

    @cached_property
    def users(self) -> np.ndarray:
        """int64: the rows of users with a history; none where users have no vectors."""
        return np.flatnonzero(np.diff(self.user_offsets)) if len(self.user_vectors) else np.arange(0)

    @cached_property
    def lists(self) -> Lists:
        """The lists of up to USERS users with a history, evenly spaced over their rows."""
        return self.lists_of(spread(self.users, USERS))

    def lists_of(self, users: np.ndarray, k: int = LIST) -> Lists:
        """The lists of some users, by exact search.

        Args:
            users: int64 [U], rows of users with a history.
            k: items of a list.
        """
        self.say(f"lists of {len(users):,} users")
        k = min(k, len(self))
        items = np.full((len(users), k), -1, dtype=np.int64)
        scores = np.full((len(users), k), -np.inf, dtype=np.float32)
        for start in range(0, len(users), _TOGETHER):
            block = self.user_vectors[users[start : start + _TOGETHER]] @ self.vectors.T
            for at, user in enumerate(users[start : start + _TOGETHER].tolist()):
                block[at, self.seen(user)] = -np.inf
                found, rows = best(block[at], k)
                scores[start + at, : len(rows)], items[start + at, : len(rows)] = found, rows
        return Lists(users, items, scores)

    def seen(self, user: int) -> np.ndarray:
        """The item rows that a user row took, oldest first."""
        return self.history[self.user_offsets[user] : self.user_offsets[user + 1]]

    def frame(self, rows: np.ndarray, **columns: Any) -> pd.DataFrame:
        """Some items for people to look at: item id and title, then further columns.

        Args:
            rows: int [n].
            columns: values [n] by name.
        """
        rows = np.asarray(rows, dtype=np.int64)
        return pd.DataFrame({"item_id": self.ids[rows], "title": self.titles[rows], **columns})


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most so many of the values [n], evenly spaced."""
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(np.int64))]


def as_objects(values: list[Any]) -> np.ndarray:
    """Python values as one array of objects, so that ids stay what they are."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def titles_of(attributes: Attributes, frame: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    """What to call each item [N]: the first text or word that an answer shows of it, else its id."""
    shown = [f for f in (attributes.entity.features if attributes.entity else ()) if f.show]
    words = [f.name for f in shown if f.kind == "text"] + [f.name for f in shown if f.kind == "categorical"]
    titles = as_objects([str(value) for value in ids])
    for name in reversed(words):
        column = frame[name].to_numpy(dtype=object)
        there = np.array([isinstance(value, str) and bool(value) for value in column], dtype=bool)
        titles[there] = column[there]
    return titles
