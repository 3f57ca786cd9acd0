"""A Dataset: encoded interactions sorted by user and time, the id maps and features beside them, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifacts import ArtifactError, Manifest, read_manifest, verify
from recsys.data.schema import Schema
from recsys.ids import IdMap

KIND = "dataset"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """What `prepare` wrote, opened.

    Interactions of user row u stand at positions `user_offsets[u]` to `user_offsets[u + 1]`, oldest first; ties keep
    the log's order. Rows of items and users are numbered by first appearance in time, those that only a table lists
    follow. A dataset that was added to a base keeps the base's rows and numbers new ones in the same way behind them,
    so the rows of the base are a prefix.

    Attributes:
        user_offsets: int64 [num_users + 1].
        items: int32 [num_interactions], item rows.
        times: int64 [num_interactions], milliseconds since 1970 UTC; None if the log has no time.
        events: int16 [num_interactions], indices into `event_names`; None if the log has none.
        weights: float32 [num_interactions]; None if the log has none.
        parts: int8 [num_interactions], 0 train, 1 validation, 2 test; None unless a split was given.
    """

    path: Path
    manifest: Manifest
    schema: Schema
    user_ids: IdMap
    item_ids: IdMap
    user_offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    events: np.ndarray | None
    weights: np.ndarray | None
    parts: np.ndarray | None

    @classmethod
    def open(cls, path: Path | str, *, check: bool = True) -> Dataset:
        """Opens a prepared dataset.

        Args:
            path: the directory that `prepare` wrote.
            check: whether to compare every file with its sha256 first.

        Raises:
            ArtifactError: it is not a dataset, is damaged, or its arrays contradict each other.
        """
        path = Path(path)
        manifest = (verify if check else read_manifest)(path, KIND, FORMAT_VERSION)

        def array(name: str) -> Any:
            file = path / f"{name}.npy"
            return np.load(file, mmap_mode="r") if file.exists() else None

        dataset = cls(
            path=path,
            manifest=manifest,
            schema=Schema.from_dict(manifest.content["schema"]),
            user_ids=IdMap.load(path / "user_ids.arrow"),
            item_ids=IdMap.load(path / "item_ids.arrow"),
            user_offsets=array("user_offsets"),
            items=array("items"),
            times=array("times"),
            events=array("events"),
            weights=array("weights"),
            parts=array("parts"),
        )
        dataset._refuse_contradictions()
        return dataset

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def event_names(self) -> list[str]:
        """The kinds of event, in the order of their codes."""
        return list(self.manifest.content["event_names"])

    @property
    def user_rows(self) -> np.ndarray:
        """int32 [num_interactions]: the user row of every interaction."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.user_offsets))

    def item_features(self) -> pa.Table:
        """One row an item, one column a declared feature, null where the catalogue says nothing.

        Columns are string (categorical, text), list<string> (multi), float64 (numeric), int64 milliseconds
        (timestamp) and list<float32> (vector).
        """
        return self._features("item_features.parquet", self.num_items)

    def user_features(self) -> pa.Table:
        """One row a user, columns as `item_features`."""
        return self._features("user_features.parquet", self.num_users)

    def _features(self, name: str, rows: int) -> pa.Table:
        if not (self.path / name).exists():  # none are declared
            return pa.table({"row": pa.nulls(rows)}).select([])
        return pq.read_table(self.path / name)

    def _refuse_contradictions(self) -> None:
        for name in ("user_offsets", "items"):
            if getattr(self, name) is None:
                raise ArtifactError(f"{self.path / name}.npy is missing; prepare the dataset again")
        said = self.manifest.content
        for name, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if ids.digest != said[name]:
                raise ArtifactError(f"{self.path / name}.arrow is not the id map of this dataset; prepare it again")
        if len(self.user_offsets) != self.num_users + 1 or self.user_offsets[-1] != len(self.items):
            raise ArtifactError(f"{self.path / 'user_offsets.npy'} does not fit the interactions; prepare it again")
        if len(self.items) and not 0 <= int(self.items.min()) <= int(self.items.max()) < self.num_items:
            raise ArtifactError(f"{self.path / 'items.npy'} holds rows outside the id map; prepare the dataset again")
        for name in ("times", "events", "weights", "parts"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.items):
                raise ArtifactError(
                    f"{self.path / name}.npy has {len(values)} rows, not {len(self.items)}; prepare again"
                )
