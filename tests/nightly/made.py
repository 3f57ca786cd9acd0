"""Datasets and results made by hand, whose figures can be worked out on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifacts import Manifest
from recsys.data.dataset import Dataset
from recsys.data.schema import Schema
from recsys.evaluate.metrics import Mean, clustered_mean
from recsys.evaluate.ranking import Conditions, Result, Slice
from recsys.ids import IdMap

DAY = 86_400_000
CONDITIONS = Conditions(
    split="given cuts",
    part="test",
    period=("2026-11-20", "2026-11-21"),
    num_queries=4,
    num_users=4,
    num_targets=4,
    num_asked=4,
    dropped_targets=0,
    repeated_targets=0,
    dropped_queries=0,
    sample=None,
    num_candidates=1000,
    include_seen=False,
)


def dataset(
    folder: Path, items: Sequence[int], brands: Sequence[Any], *, days: Sequence[float] | None = None, **columns: Any
) -> Dataset:
    """One user's interactions with items, whose brand is as given; columns are further features, of their own kind."""
    folder.mkdir(parents=True)
    features = {"brand": "categorical"} | {name: kind for name, (kind, _) in columns.items()}
    table = {"brand": pa.array(brands, pa.string())} | {name: pa.array(values) for name, (_, values) in columns.items()}
    pq.write_table(pa.table(table), folder / "item_features.parquet")
    said = {"interactions": {"user": "user", "item": "item"}, "items": {"id": "item", "features": features}}
    return Dataset(
        path=folder,
        manifest=Manifest("dataset", 1, "", "", "", {"event_names": []}, {}),
        schema=Schema.from_dict(said),
        user_ids=IdMap.of(["u0"]),
        item_ids=IdMap.of([f"i{row}" for row in range(len(brands))]),
        user_offsets=np.array([0, len(items)]),
        items=np.array(items, dtype=np.int32),
        times=None if days is None else np.rint(np.array(days) * DAY).astype(np.int64),
        events=None,
        weights=None,
        parts=None,
    )


def result(
    each: Sequence[float] | np.ndarray,
    *,
    users: Sequence[int] | np.ndarray | None = None,
    coverage: float = 0.01,
    slices: Mapping[str, Mean | None] | None = None,
    **conditions: Any,
) -> Result:
    """A scorer that got these NDCG@10, one query a user unless users are given."""
    asked = np.arange(len(each)) if users is None else np.array(users)
    mean = clustered_mean(np.array(each, dtype=np.float64), asked)
    return Result(
        conditions=replace(CONDITIONS, **{"num_queries": len(each)} | conditions),
        accuracy={f"{name}@10": mean for name in ("ndcg", "recall", "hit_rate", "mrr")},
        catalogue={"coverage@10": coverage, "novelty@10": 3.0, "popularity_lift@10": None},
        slices={
            name: Slice(0, 0) if mean is None else Slice(7, 5, {"ndcg@10": mean, "recall@10": mean})
            for name, mean in (slices or {}).items()
        },
        seconds=1.0,
        each=np.array(each, dtype=np.float64),
        users=asked,
    )


def added(**said: Any) -> dict[str, Any]:
    """What `prepare` counts of a night's rows."""
    return {
        "interactions_read": 100,
        "interactions": 100,
        "users": 3,
        "items": 2,
        "rejected": {},
        "tables": {},
        "time_range": [10 * DAY, 11 * DAY],
    } | said
