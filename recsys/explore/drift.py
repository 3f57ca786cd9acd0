"""What became of items and users from one bundle to the next; whoever is in both is matched by id, never by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys.explore.space import Space, spread
from recsys.ids import IdMap
from recsys.spaces import Comparison, compare_vectors

NEAREST = 10  # neighbours whose change is counted
USERS = 2000  # users whose lists are compared, evenly spaced
_EXAMPLES = 3


@dataclass(frozen=True)
class Drift:
    """How far a space is from an older one, over what both know.

    Attributes:
        comparison: of the spaces as a whole, and the rotation; see `recsys.spaces.compare`.
        items: DataFrame, a shared item a row, the most changed first: item_id, title, churn (share of its nearest
            that are other items now), cosine (of its vector then and now, after the best rotation), length (now over
            then), before, after (titles of the nearest).
        users: DataFrame, a shared user a row, the most changed first: user_id, churn (of the list), before, after.
        churn, list_churn: their means; None where nobody is in both.
        centroid: ‖mean then − mean now, rotated‖ over the mean length then.
        length: the mean length now over then.
        retitled: share of shared items that carry another title now: far above 0, ids were shuffled.
        added, removed: items that only the newer, and only the older, knows.
    """

    comparison: Comparison
    items: pd.DataFrame
    users: pd.DataFrame
    churn: float
    list_churn: float | None
    centroid: float
    length: float
    retitled: float
    added: int
    removed: int


def drift(old: Space, new: Space) -> Drift:
    """Compares two spaces of which both may have been cut, trained or sealed anew.

    Neighbours are by cosine, from each space's own shared pass, those left out that only one side knows. Lengths and
    centroids are compared after the rotation that brings the newer space nearest to the older (Schönemann 1966; see
    `recsys.spaces.rotation_onto`), since two trainings may agree on everything but where the axes point.

    Args:
        old: the space before.
        new: the space after.

    Raises:
        ValueError: they share fewer than two items, or have no dimension in common.
    """
    one, other = shared_rows(old.ids, new.ids)
    if len(one) < 2:
        raise ValueError(f"{old.name} and {new.name} share {len(one)} items; there is no drift to measure")
    both = [size for size in (old.dimensions or (old.vectors.shape[1],)) if size in _sizes(new)]
    if not both:
        raise ValueError(f"{old.name} and {new.name} have no dimension in common, so their vectors do not compare")
    size = max(both)
    then, now = _cut(old, old.vectors[one], size), _cut(new, new.vectors[other], size)
    u, v = shared_rows(old.user_ids, new.user_ids)
    asking = np.isin(u, old.users) & np.isin(v, new.users)
    u, v = u[asking], v[asking]
    few = spread(np.arange(len(u)), USERS)
    comparison = compare_vectors(
        then,
        now,
        _cut(old, old.user_vectors[u[few]], size) if len(u) else then[:0],
        _cut(new, new.user_vectors[v[few]], size) if len(u) else now[:0],
        sorted(one for one in _sizes(new) if one <= size),
    )
    turned = now @ comparison.rotation
    lengths = np.linalg.norm(then, axis=1), np.linalg.norm(now, axis=1)
    to_new = np.full(len(old), -1, dtype=np.int64)
    to_new[one] = other
    known = np.zeros(len(new), dtype=bool)
    known[other] = True
    near = min(NEAREST, max(1, len(one) // 4))  # of few items, ten would be most of them
    before = _first(to_new[old.neighbours.rows[one]], near)
    after = _first(np.where(known[new.neighbours.rows[other]], new.neighbours.rows[other], -1), near)
    churn = _churn(before, after)
    order = np.argsort(-churn, kind="stable")
    items = new.frame(
        other[order],
        churn=churn[order],
        cosine=(np.einsum("nd,nd->n", then, turned) / np.maximum(lengths[0] * lengths[1], 1e-30))[order],
        length=(lengths[1] / np.maximum(lengths[0], 1e-30))[order],
        before=_named(new, before[order]),
        after=_named(new, after[order]),
    )
    users, list_churn = _users(old, new, u[few], v[few], to_new)
    return Drift(
        comparison=comparison,
        items=items,
        users=users,
        churn=float(churn.mean()),
        list_churn=list_churn,
        centroid=float(np.linalg.norm(then.mean(axis=0) - turned.mean(axis=0)) / max(lengths[0].mean(), 1e-30)),
        length=float(lengths[1].mean() / max(lengths[0].mean(), 1e-30)),
        retitled=float(np.mean(old.titles[one] != new.titles[other])),
        added=len(new) - len(one),
        removed=len(old) - len(one),
    )


def _users(
    old: Space, new: Space, u: np.ndarray, v: np.ndarray, to_new: np.ndarray
) -> tuple[pd.DataFrame, float | None]:
    columns = ["user_id", "churn", "before", "after"]
    if not len(u):
        return pd.DataFrame(columns=columns), None
    then, after = old.lists_of(u).items, new.lists_of(v).items
    before = np.where(then >= 0, to_new[then], -1)
    churn = _churn(before, after, whole=(then >= 0).sum(axis=1))
    order = np.argsort(-churn, kind="stable")
    named = _named(new, before[order]), _named(new, after[order])
    frame = pd.DataFrame(dict(zip(columns, (new.user_ids[v[order]], churn[order], *named), strict=True)))
    return frame, float(churn.mean())


def _first(rows: np.ndarray, count: int) -> np.ndarray:
    """The first so many of neighbours int64 [n, K] that are not −1; −1 fills up."""
    order = (rows < 0).argsort(axis=1, kind="stable")[:, :count]
    return np.take_along_axis(rows, order, 1)


def _churn(before: np.ndarray, after: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray:
    """float64 [n]: the share of `before` [n, k] that is not in `after` [n, k]; −1 is no item."""
    kept = ((before[:, :, None] == after[:, None, :]) & (before[:, :, None] >= 0)).any(axis=2).sum(axis=1)
    of = (before >= 0).sum(axis=1) if whole is None else whole
    churn: np.ndarray = 1 - kept / np.maximum(of, 1)
    return np.where(of > 0, churn, 0.0)


def _named(space: Space, rows: np.ndarray) -> list[str]:
    """The titles of the first few rows of each line, [n, k]."""
    return ["; ".join(space.titles[row[row >= 0][:_EXAMPLES]]) for row in rows]


def shared_rows(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in each of the ids that both have."""
    if not len(old) or not len(new):
        return np.arange(0), np.arange(0)
    known = IdMap(pa.array(new.tolist()))
    values = pa.array(old.tolist())
    if known.is_integer != pa.types.is_integer(values.type):
        return np.arange(0), np.arange(0)
    rows = known.rows(values)
    return np.flatnonzero(rows >= 0), rows[rows >= 0]


def _sizes(space: Space) -> tuple[int, ...]:
    return space.dimensions or (space.vectors.shape[1],)


def _cut(space: Space, vectors: np.ndarray, size: int) -> np.ndarray:
    cut = np.ascontiguousarray(vectors[:, :size])
    if space.unit and size < vectors.shape[1]:
        cut /= np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-30)
    return cut
