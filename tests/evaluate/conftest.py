"""Datasets made of lists, for tests whose answers are worked out by hand."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recsys.artifacts import Manifest
from recsys.data.dataset import Dataset
from recsys.data.schema import Interactions, Schema
from recsys.ids import IdMap

# Read when numba is first imported, by ranx: compiling its metrics takes a hundred seconds, interpreting them one.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

Toy = Callable[..., Dataset]


@pytest.fixture(scope="session")
def toy() -> Toy:
    def make(histories: list[list[int]], num_items: int, times: list[list[int]] | None = None) -> Dataset:
        """One history a user, oldest first; without times, an interaction happens on the day of its position."""
        days = times or [list(range(len(history))) for history in histories]
        return Dataset(
            path=Path("toy"),
            manifest=Manifest("dataset", 1, "", "", "", {"event_names": []}, {}),
            schema=Schema(interactions=Interactions(user="user", item="item"), items=None, users=None),
            user_ids=IdMap.of([f"u{user}" for user in range(len(histories))]),
            item_ids=IdMap.of([f"i{item}" for item in range(num_items)]),
            user_offsets=np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64),
            items=np.array([item for history in histories for item in history], dtype=np.int32),
            times=np.array([day * 86_400_000 for user in days for day in user], dtype=np.int64),
            events=None,
            weights=None,
            parts=None,
        )

    return make
