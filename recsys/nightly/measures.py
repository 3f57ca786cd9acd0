"""What the gates compare, measured: tonight's rows, vectors, pairs of evaluations, and the lists that users get.

Arrays in, numbers out where it can be so. Whatever draws at random takes a seed, so that a rerun measures the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.data.schema import Entity, Feature
from recsys.evaluate.metrics import Mean, clustered_mean
from recsys.evaluate.ranking import Result
from recsys.ids import Id
from recsys.recommender import Recommender

DAY = 86_400_000  # milliseconds
WEEK = 7  # days that say how many rows are usual: a whole week, so that no weekday is compared with another
RECENT = 28  # days that say which categories are usual: four whole weeks, and no season further back
SAMPLE = 1000  # users whose lists are compared


@dataclass(frozen=True)
class Volume:
    """Rows a day tonight and in base's last week, and the days that each was counted over."""

    tonight: float
    usual: float
    tonight_days: float
    usual_days: float


@dataclass(frozen=True)
class Category:
    """One value of an attribute: its share of base's newest interactions and of tonight's.

    `expected` is how many of tonight's rows it would have made at its former share.
    """

    attribute: str
    value: str
    before: float
    after: float
    expected: float


@dataclass(frozen=True)
class Lists:
    """What some users are recommended by one bundle.

    Attributes:
        bundle: its id.
        users: whose lists they are.
        items: one list a user, best first; empty for whom nothing is left.
        scores: of the same items.
    """

    bundle: str
    users: Sequence[Id]
    items: Sequence[Sequence[Id]]
    scores: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Shift:
    """How far the candidate's answers are from live's, over the same users.

    Attributes:
        users: how many.
        overlap: mean share of items that both lists of a user hold; None if nobody is recommended anything.
        score_ratio: median size of a score under the candidate over that under live; None if live's is 0.
        ks_distance: the largest gap between the two distributions of scores, 0 to 1.
    """

    users: int
    overlap: float | None
    score_ratio: float | None
    ks_distance: float | None


def volume(added: Mapping[str, Any], base: Dataset) -> Volume | None:
    """How many rows a day came, tonight and before; None where either has no times or no rows.

    Tonight begins where base ends, so that a row which arrives weeks late does not stretch the night.

    Args:
        added: what `prepare` counted of tonight's rows.
        base: what they were added to.
    """
    if base.times is None or not len(base) or not added["time_range"] or not added["interactions"]:
        return None
    times = np.asarray(base.times)
    first, last = int(times.min()), int(times.max())
    tonight_days = (added["time_range"][1] - last) / DAY
    usual_days = min(WEEK, (last - first) / DAY)
    if tonight_days <= 0 or usual_days <= 0:
        return None
    rows = int(np.count_nonzero(times > last - usual_days * DAY))
    return Volume(added["interactions"] / tonight_days, rows / usual_days, tonight_days, usual_days)


def categories(base: Dataset, dataset: Dataset) -> list[Category]:
    """Every value of every categorical and multi attribute of items, before and tonight.

    Before are base's last `RECENT` days, or all of it where it has no times. Tonight's interactions are counted as what
    the dataset has more of each item than base. Values are those of base's catalogue before and tonight's after.
    """
    old = np.asarray(base.items)
    tonight = np.bincount(dataset.items, minlength=dataset.num_items)
    tonight[: base.num_items] -= np.bincount(old, minlength=base.num_items)
    if base.times is not None and len(base):
        times = np.asarray(base.times)
        old = old[times > times.max() - RECENT * DAY]
    before = np.bincount(old, minlength=base.num_items)
    tables = base.item_features(), dataset.item_features()
    kept = {feature.name for feature in grouping(dataset.schema.items)}
    found = []
    for feature in grouping(base.schema.items):
        if feature.name not in kept:
            continue
        was = by_value(tables[0].column(feature.name), before)
        now = by_value(tables[1].column(feature.name), tonight)
        for value, rows in sorted(was.items()):
            share = rows / max(1, before.sum())
            after = now.get(value, 0) / max(1, tonight.sum())
            found.append(Category(feature.name, value, share, after, share * float(tonight.sum())))
    return found


def by_value(column: pa.ChunkedArray, counts: np.ndarray) -> dict[str, float]:
    """The sum of the counts [N] of the items that have each value; lists count for each of their values."""
    values, rows = flattened(column)
    encoded = values.dictionary_encode()
    known = encoded.is_valid().to_numpy(zero_copy_only=False)
    codes = pc.fill_null(encoded.indices, 0).to_numpy()[known]
    sums = np.bincount(codes, counts[rows[known]], minlength=len(encoded.dictionary))
    return dict(zip(encoded.dictionary.to_pylist(), sums.tolist(), strict=True))


def flattened(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The values of a column [n] and their rows int64 [n], lists taken apart."""
    values = column.combine_chunks()
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        return values, np.arange(len(values))
    return pc.list_flatten(values), pc.list_parent_indices(values).to_numpy()


def features_lost(base: Dataset, dataset: Dataset) -> dict[str, float]:
    """For each feature of items, the share of base's items that had it and now have it no more."""
    old, new = base.item_features(), dataset.item_features()
    lost = {}
    for name in old.column_names:
        had = _present(old.column(name))
        has = _present(new.column(name))[: len(had)] if name in new.column_names else np.zeros_like(had)
        if had.any():
            lost[name] = float(np.mean(~has[had]))
    return lost


def duplicates(vectors: np.ndarray) -> float:
    """The share of the vectors [n, D] that equal another one in every bit."""
    if not len(vectors):
        return 0.0
    rows = np.ascontiguousarray(vectors)
    whole = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, counts = np.unique(whole, return_counts=True)
    return float(counts[counts > 1].sum() / len(vectors))


def length_spread(vectors: np.ndarray) -> float:
    """The longest vector's length over the median's; infinite where that is 0."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    middle = float(np.median(lengths)) if len(lengths) else 1.0
    return float(lengths.max(initial=0)) / middle if middle else float("inf")


def paired(one: Result, other: Result) -> Mean:
    """The mean difference in NDCG@10, one − other, over the same queries, its interval clustered by user.

    Raises:
        ValueError: they were not asked the same.
    """
    if not np.array_equal(one.users, other.users):
        raise ValueError(
            f"{len(one.users)} and {len(other.users)} queries are not the same, so they make no pairs; "
            "evaluate both under the same conditions"
        )
    return clustered_mean(one.each - other.each, one.users)


def sampled_users(candidate: Bundle, live: Bundle | None = None, *, size: int = SAMPLE, seed: int = 0) -> list[Id]:
    """Users with a history in every bundle given, drawn at random, in the order of their rows."""
    oldest = candidate if live is None else live
    rows = np.flatnonzero(np.diff(oldest.user_offsets))
    ids = oldest.user_ids.array.take(pa.array(np.random.default_rng(seed).permutation(rows)))
    in_candidate = candidate.user_ids.rows(ids.cast(candidate.user_ids.array.type))
    known = in_candidate >= 0
    known[known] = np.diff(candidate.user_offsets)[in_candidate[known]] > 0
    return candidate.user_ids.ids(np.sort(in_candidate[known][:size]))


def lists(bundle: Bundle, users: Sequence[Id], *, k: int = 10) -> Lists:
    """What a bundle recommends to users, as the service would: what they have seen is left out."""
    recommender = Recommender(bundle)
    answers = [recommender.recommend(user_id=user, k=k).items for user in users]
    return Lists(
        bundle.id,
        list(users),
        [[item.item_id for item in items] for items in answers],
        [[item.score for item in items] for items in answers],
    )


def shift(before: Lists, after: Lists) -> Shift:
    """How far two bundles' lists for the same users are apart.

    Raises:
        ValueError: they are not of the same users.
    """
    if list(before.users) != list(after.users):
        raise ValueError("the lists are not of the same users; ask both bundles for the same sample")
    old, new = (np.array([score for one in of.scores for score in one], dtype=np.float64) for of in (before, after))
    some = len(old) > 0 and len(new) > 0
    size = float(np.median(np.abs(old))) if some else 0.0
    shares = overlaps(before, after)
    return Shift(
        users=len(before.users),
        overlap=float(np.mean(shares)) if len(shares) else None,
        score_ratio=float(np.median(np.abs(new))) / size if size else None,
        ks_distance=ks_distance(old, new) if some else None,
    )


def ks_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest gap between two empirical distribution functions (the statistic of Kolmogorov and Smirnov)."""
    values = np.concatenate([one, other])
    at_most = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(at_most[0] - at_most[1]).max())


def overlaps(before: Lists, after: Lists) -> np.ndarray:
    """float64 [n]: for each user with a list, the share of it that both bundles' lists hold."""
    return np.array(
        [
            len(set(old) & set(new)) / max(len(old), len(new))
            for old, new in zip(before.items, after.items, strict=True)
            if old or new
        ]
    )


def grouping(entity: Entity | None) -> list[Feature]:
    """The attributes whose values group items."""
    return [feature for feature in (entity.features if entity else ()) if feature.kind in ("categorical", "multi")]


def _present(column: pa.ChunkedArray) -> np.ndarray:
    """bool [N]: whether a row has a value; an empty list is none."""
    present = column.is_valid()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        present = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
    return present.to_numpy().astype(np.bool_)
