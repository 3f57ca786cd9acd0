"""What training knew of what the test asks, and whether a bundle and its dataset speak of the same things."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.attributes import Attributes
from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, Split, in_training, queries_of
from recsys.explore.dial import split_said
from recsys.explore.drift import shared_rows
from recsys.explore.duplicates import Duplicates, duplicates
from recsys.explore.space import Space, as_objects, spread, titles_of

_USERS = 2000  # users whose histories are compared by id
_EXAMPLES = 5


@dataclass(frozen=True)
class Leaks:
    """What was found beside a dataset.

    Attributes:
        table: DataFrame, a question a row: question, count, of, share; indexed by a short name.
        trained_until, allowed_until: the newest interaction that training saw, and the newest of the training part,
            milliseconds since 1970; None where unknown.
        unlawful: DataFrame, items that training knew although only held-out interactions have them.
        twins: DataFrame, test targets of which the user had taken a near-duplicate before: user_id, item_id, title,
            twin_id, twin_title.
        renamed: DataFrame, items whose title is another one in the dataset: item_id, title, in_dataset.
        split: that was asked under; None if none is known, and only ids were compared.
    """

    table: pd.DataFrame
    trained_until: int | None
    allowed_until: int | None
    unlawful: pd.DataFrame
    twins: pd.DataFrame
    renamed: pd.DataFrame
    split: Split | None


def leaks(space: Space, dataset: Dataset, *, split: Split | None = None, found: Duplicates | None = None) -> Leaks:
    """Looks for test rows in what training saw, for near-duplicates across the cut, and for ids that mean other things.

    Histories that a bundle serves from hold all interactions, those of the test part too; that is no leak. A leak is
    an item that training knew although the training part has it nowhere, a newest training interaction after the
    training part's end, or a test target that has a near-duplicate in its own query's history: then the figures
    measure copying.

    Args:
        space: of a bundle.
        dataset: the one it was trained on, or sealed with; compared by id.
        split: that cut it; that of the bundle's evaluation if left out.
        found: duplicates, if they were sought before.

    Raises:
        ValueError: the space is of no bundle.
    """
    bundle = space.bundle
    if bundle is None:
        raise ValueError("these vectors are of no bundle, so nothing says what they were trained on")
    rows: dict[str, tuple[str, int, int]] = {}
    other = _of(space, dataset)
    one, two = shared_rows(space.ids, other.ids)
    renamed = np.flatnonzero(space.titles[one] != other.titles[two])
    rows["unknown items"] = ("items of the bundle that the dataset does not have", len(space) - len(one), len(space))
    rows["renamed items"] = ("shared items that have another title in the dataset", len(renamed), len(one))
    rows["other histories"] = ("shared users whose history is another one in the dataset", *_histories(space, other))
    split = split or split_said(space)
    until, allowed = bundle.manifest.content.get("trained_until"), None
    unlawful, twins = np.arange(0), pd.DataFrame(columns=["user_id", "item_id", "title", "twin_id", "twin_title"])
    if split is not None:
        cuts = split.cut(dataset)
        training = in_training(dataset, cuts)
        if dataset.times is not None and training.any():
            allowed = int(np.asarray(dataset.times)[training].max())
        learnt = np.bincount(np.asarray(dataset.items)[training], minlength=dataset.num_items) > 0
        held = np.bincount(np.asarray(dataset.items)[~training], minlength=dataset.num_items) > 0
        only_held = held[two] & ~learnt[two]
        unlawful = one[bundle.trained[one] & only_held]
        rows["items known too early"] = (
            "items that only held-out interactions have, and that training knew", len(unlawful), int(only_held.sum()),
        )  # fmt: skip
        twins, asked = _twins(space, dataset, cuts, found or duplicates(space))
        rows["twins across the cut"] = (
            "test targets of which the user had taken a near-duplicate before", len(twins), asked,
        )  # fmt: skip
    table = pd.DataFrame(
        [
            {"check": name, "question": said, "count": count, "of": of, "share": count / max(1, of)}
            for name, (said, count, of) in rows.items()
        ]
    ).set_index("check")
    return Leaks(
        table=table,
        trained_until=until,
        allowed_until=allowed,
        unlawful=space.frame(unlawful),
        twins=twins,
        renamed=space.frame(one[renamed], in_dataset=other.titles[two[renamed]]),
        split=split,
    )


def _histories(space: Space, other: Space) -> tuple[int, int]:
    """How many of the shared users' histories, by id, do not begin those in the dataset, and of how many."""
    u, v = shared_rows(space.user_ids, other.user_ids)
    apart, few = 0, spread(np.arange(len(u)), _USERS)
    for a, b in zip(u[few].tolist(), v[few].tolist(), strict=True):
        mine, theirs = space.ids[space.seen(a)], other.ids[other.seen(b)]
        apart += bool(len(mine) > len(theirs) or (mine != theirs[: len(mine)]).any())
    return apart, len(few)


def _twins(space: Space, dataset: Dataset, cuts: Cuts, found: Duplicates) -> tuple[pd.DataFrame, int]:
    """Test targets whose query's history holds another item of their group of duplicates, and how many were asked."""
    one, two = shared_rows(space.ids, np.array(dataset.item_ids.array.to_pylist(), dtype=object))
    group = np.full(dataset.num_items, -1, dtype=np.int64)
    mine = np.full(dataset.num_items, -1, dtype=np.int64)
    group[two], mine[two] = found.group_of[one], one
    queries = queries_of(dataset, cuts, "test")
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    rows = []
    for at in np.flatnonzero(group[queries.targets] >= 0).tolist():
        user, end, target = int(queries.user[owner[at]]), int(queries.end[owner[at]]), int(queries.targets[at])
        before = np.asarray(dataset.items[dataset.user_offsets[user] : end])
        alike = before[(group[before] == group[target]) & (before != target)]
        if len(alike) and target not in before:
            a, b = mine[target], mine[alike[-1]]
            rows.append([dataset.user_ids.id(user), space.ids[a], space.titles[a], space.ids[b], space.titles[b]])
    return pd.DataFrame(rows, columns=["user_id", "item_id", "title", "twin_id", "twin_title"]), len(queries.targets)


def _of(space: Space, dataset: Dataset) -> Space:
    """A dataset's items and users, called as the bundle calls them."""
    attributes = Attributes(dataset.schema.items, dataset.item_features(), dataset.num_items)
    ids = as_objects(dataset.item_ids.array.to_pylist())
    return Space.made(
        np.empty((dataset.num_items, 0), dtype=np.float32),
        ids=ids,
        titles=titles_of(attributes, attributes.frame(), ids),
        user_ids=as_objects(dataset.user_ids.array.to_pylist()),
        user_offsets=np.asarray(dataset.user_offsets),
        history=np.asarray(dataset.items),
        name=str(dataset.path),
    )
