"""A dataset as people look at it: its interactions by id and moment, and what a split makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, HeldOut, queries_of

PARTS = ("train", "validation", "test")


def interactions(dataset: Dataset, cuts: Cuts | None = None) -> pd.DataFrame:
    """Every interaction, by user, and of a user the oldest first.

    Args:
        dataset: an opened dataset.
        cuts: of a split; then each row says its part.

    Returns:
        DataFrame, an interaction a row: user_id, item_id; and where the dataset has them, time (UTC), event, weight.
        With cuts also part, a categorical of `PARTS`.
    """
    columns: dict[str, Any] = {
        "user_id": dataset.user_ids.array.take(pa.array(dataset.user_rows)).to_pandas(),
        "item_id": dataset.item_ids.array.take(pa.array(np.asarray(dataset.items))).to_pandas(),
    }
    if dataset.times is not None:
        columns["time"] = pd.to_datetime(np.asarray(dataset.times), unit="ms", utc=True)
    if dataset.events is not None:
        columns["event"] = pd.Categorical.from_codes(np.asarray(dataset.events), dataset.event_names)
    if dataset.weights is not None:
        columns["weight"] = np.asarray(dataset.weights)
    if cuts is not None:
        columns["part"] = pd.Categorical.from_codes(_part(dataset, cuts), list(PARTS))
    return pd.DataFrame(columns)


def parts(dataset: Dataset, cuts: Cuts) -> pd.DataFrame:
    """What each part of a split holds, and how much of it training has never met.

    Args:
        dataset: an opened dataset.
        cuts: of a split.

    Returns:
        DataFrame indexed by part: interactions, share, users, items, new_users and new_items (of those, the ones that
        training does not have), queries (held-out questions that have a history; 0 for train), and where the dataset
        has times the first and the last moment, `from` and `to`.
    """
    part, users, items = _part(dataset, cuts), dataset.user_rows, np.asarray(dataset.items)
    learnt = [np.unique(rows[part == 0]) for rows in (users, items)]
    asked: dict[str, HeldOut] = {"validation": "validation", "test": "test"}
    rows = []
    for code, name in enumerate(PARTS):
        inside = part == code
        own = [np.unique(rows[inside]) for rows in (users, items)]
        row: dict[str, Any] = {
            "part": name,
            "interactions": int(inside.sum()),
            "share": inside.mean() if len(inside) else 0.0,
            "users": len(own[0]),
            "items": len(own[1]),
            "new_users": len(np.setdiff1d(own[0], learnt[0])),
            "new_items": len(np.setdiff1d(own[1], learnt[1])),
            "queries": len(queries_of(dataset, cuts, asked[name])) if name in asked else 0,
        }
        if dataset.times is not None:
            times = np.asarray(dataset.times)[inside]
            row["from"], row["to"] = (pd.to_datetime(one, unit="ms", utc=True) for one in _ends(times))
        rows.append(row)
    return pd.DataFrame(rows).set_index("part")


def _part(dataset: Dataset, cuts: Cuts) -> np.ndarray:
    """int8 [num_interactions], indices into PARTS."""
    lengths, at = np.diff(dataset.user_offsets), np.arange(len(dataset))
    held = [at >= np.repeat(starts, lengths) for starts in (cuts.validation_start, cuts.test_start)]
    return held[0].astype(np.int8) + held[1].astype(np.int8)


def _ends(times: np.ndarray) -> tuple[int | None, int | None]:
    return (int(times.min()), int(times.max())) if len(times) else (None, None)
