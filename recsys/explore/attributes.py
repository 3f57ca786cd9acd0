"""Attribute values that are missing, or look wrong, from an item's neighbours; and how often such a guess is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys.explore.space import Space, spread
from recsys.index.exact import Exact
from recsys.model.embed import Catalogue

HELD_OUT = 2000  # items whose value is guessed although it is known
_FEW = 3  # neighbours of a value's items, on average, below which it is a name rather than an attribute
_SURE = 0.8  # share of the neighbours' votes for a value from which on an item without it is suspected


@dataclass(frozen=True)
class Guessed:
    """What neighbours say of one attribute.

    Attributes:
        name: of the attribute.
        missing: DataFrame, items without a value: item_id, title, guess, share (of the votes), surest first.
        suspects: DataFrame, items whose neighbours agree on a value that it has not: item_id, title, has, guess, share.
        accuracy: share of held-out items for whom the guess is right (of a multi-valued attribute: is among theirs).
        majority: the same of guessing the most frequent value.
        held_out: how many were guessed to measure it.
        hidden: whether the item tower embedded them again without the attribute; if not, their vectors may hold what
            was to be guessed, and the accuracy is an upper bound.
    """

    name: str
    missing: pd.DataFrame
    suspects: pd.DataFrame
    accuracy: float
    majority: float
    held_out: int
    hidden: bool


def guessable(space: Space) -> list[str]:
    """The attributes that neighbours can be asked about: of words, and each value of several items."""
    names = []
    for name, kind in space.kinds.items():
        if kind in ("categorical", "multi"):
            values = [one for said in _said(space, name) for one in said]
            if len(values) >= _FEW * len(set(values)) and len(set(values)) > 1:
                names.append(name)
    return names


def guess(space: Space, name: str, *, k: int = 10, held_out: int = HELD_OUT) -> Guessed:
    """Guesses an attribute from the nearest items by cosine, and measures how often that is right.

    Each of the k nearest that has a value votes for it with its cosine. The accuracy is of items that have one, asked
    as if they had not: where a bundle is at hand, the item tower embeds them again without the attribute, so that
    their vectors do not give the answer away.

    Args:
        space: with attributes.
        name: of a categorical or multi-valued one.
        k: neighbours asked, at most K.
        held_out: items to measure with.

    Raises:
        ValueError: there is no such attribute, or it is of another kind, or nobody has a value.
    """
    words = [one for one, kind in space.kinds.items() if kind in ("categorical", "multi")]
    if name not in words:
        raise ValueError(f"{name!r} is no attribute of words; choose from {', '.join(words) or 'none'}")
    said = _said(space, name)
    has = np.array([bool(values) for values in said], dtype=bool)
    if not has.any():
        raise ValueError(f"no item has a value of {name!r}, so there is nothing to guess from")
    near = space.neighbours
    rows, cosines = near.rows[:, :k], near.cosines[:, :k]
    votes = [_vote(said, one, weights) for one, weights in zip(rows, cosines, strict=True)]
    missing = np.array([row for row in np.flatnonzero(~has) if votes[row][0] is not None], dtype=np.int64)
    missing = missing[np.argsort([-votes[row][1] for row in missing], kind="stable")]
    suspects = np.array(
        [
            row
            for row in np.flatnonzero(has)
            if votes[row][1] >= _SURE and votes[row][0] not in said[row] and space.k >= k
        ],
        dtype=np.int64,
    )
    suspects = suspects[np.argsort([-votes[row][1] for row in suspects], kind="stable")]
    asked = spread(np.flatnonzero(has), held_out)
    hidden = space.bundle is not None
    if hidden:
        unknown = _embedded_without(space, name, asked)
        found = Exact(space.unit_vectors).search(unknown, min(k + 1, len(space)))
        guesses = []
        for own, scores, at in zip(asked.tolist(), *found, strict=True):
            others = (at != own) & (at >= 0)
            guesses.append(_vote(said, at[others][:k], scores[others][:k])[0])
    else:
        guesses = [votes[row][0] for row in asked]
    most = Counter(value for values in said for value in values).most_common(1)[0][0]
    return Guessed(
        name=name,
        missing=_frame(space, missing, votes),
        suspects=_frame(space, suspects, votes, has=[", ".join(said[row]) for row in suspects]),
        accuracy=float(np.mean([one in said[row] for one, row in zip(guesses, asked, strict=True)])),
        majority=float(np.mean([most in said[row] for row in asked])),
        held_out=len(asked),
        hidden=hidden,
    )


def _frame(space: Space, rows: np.ndarray, votes: Sequence[tuple[str | None, float]], **more: Any) -> pd.DataFrame:
    return space.frame(rows, **more, guess=[votes[row][0] for row in rows], share=[votes[row][1] for row in rows])


def _vote(said: Sequence[tuple[str, ...]], rows: np.ndarray, cosines: np.ndarray) -> tuple[str | None, float]:
    """The value that neighbours [k] vote for, and its share of the votes of those that have any."""
    weights: dict[str, float] = defaultdict(float)
    total = 0.0
    for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
        weight = max(cosine, 1e-6)
        total += weight if said[row] else 0.0
        for value in said[row]:
            weights[value] += weight
    if not weights:
        return None, 0.0
    value, weight = max(weights.items(), key=lambda pair: (pair[1], pair[0]))
    return value, weight / total


def _said(space: Space, name: str) -> list[tuple[str, ...]]:
    """The words that each item [N] has of an attribute."""
    column = space.attributes[name].to_numpy(dtype=object)
    return [
        (value,)
        if isinstance(value, str) and value
        else tuple(map(str, value))
        if isinstance(value, np.ndarray | list | tuple)
        else ()
        for value in column
    ]


def _embedded_without(space: Space, name: str, rows: np.ndarray) -> np.ndarray:
    """float32 [n, D], of length 1: the vectors of some items as the tower makes them without an attribute."""
    bundle = space.bundle
    assert bundle is not None
    table = bundle.attributes.table(rows)
    at = table.column_names.index(name)
    table = table.set_column(at, name, pa.nulls(len(rows), table.schema.field(name).type))
    catalogue = Catalogue(bundle.item_encoder.encode(table), bundle.trained[rows], rows)
    vectors = catalogue.embed(bundle.towers).numpy()
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return unit
