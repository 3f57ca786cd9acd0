"""Items PUT since a bundle was sealed, made into rows like its own: features as a table, vectors by its item tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.bundle import Bundle
from recsys.live_features import FeatureError, checked_features, table_of
from recsys.model.embed import Catalogue

Said = Mapping[str, Any]  # features by name, as they were PUT


@dataclass(frozen=True)
class LiveRows:
    """M items with the features that they were PUT with, row by row.

    Attributes:
        ids: their ids, as text.
        said: what each was PUT with.
        bundle_rows: int64 [M], the bundle's row of each; −1 where it has none.
        table: [M] rows, a column a feature, as `Dataset.item_features` has them.
        vectors: float32 [M, D].
        needless: items left out, with what they were PUT with: their features say what the bundle's own say.
        ignored: by item, why something that was PUT of it cannot be used with this bundle.
    """

    ids: list[str]
    said: list[Said]
    bundle_rows: np.ndarray
    table: pa.Table
    vectors: np.ndarray
    needless: dict[str, Said] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    @classmethod
    def none(cls, bundle: Bundle) -> LiveRows:
        """No items at all."""
        vectors = np.empty((0, bundle.towers.architecture.dimension), dtype=np.float32)
        return cls([], [], np.empty(0, dtype=np.int64), table_of(bundle.schema, []), vectors)

    def updated(self, bundle: Bundle, put: Mapping[str, tuple[Said, int]]) -> LiveRows:
        """The rows of other items; what was made for these and holds for those is not made again.

        Args:
            bundle: the one that these rows were made for.
            put: features and the bundle's row (−1 where it has none) by item id, in the order of the rows to be.
        """
        place = {item_id: at for at, item_id in enumerate(self.ids)}
        order: dict[str, int] = {}  # places in these rows with the fresh ones behind them
        needless: dict[str, Said] = {}
        fresh: list[str] = []
        for item_id, (said, _) in put.items():
            at = place.get(item_id)
            if at is not None and _same(self.said[at], said):
                order[item_id] = at
            elif (before := self.needless.get(item_id)) is not None and _same(before, said):
                needless[item_id] = said
            else:
                order[item_id] = len(self.ids) + len(fresh)
                fresh.append(item_id)
        ignored = {item_id: why for item_id, why in self.ignored.items() if item_id in put and item_id not in fresh}
        table, vectors, unneeded = _made(bundle, {item_id: put[item_id] for item_id in fresh}, ignored)
        for at in unneeded:
            del order[fresh[at]]
            needless[fresh[at]] = put[fresh[at]][0]
        taken = np.fromiter(order.values(), dtype=np.int64, count=len(order))
        if table.num_columns:
            table = pa.concat_tables([self.table, table]).take(pa.array(taken)).combine_chunks()
        return LiveRows(
            ids=list(order),
            said=[put[item_id][0] for item_id in order],
            bundle_rows=np.array([put[item_id][1] for item_id in order], dtype=np.int64),
            table=table,
            vectors=np.concatenate([self.vectors, vectors])[taken],
            needless=needless,
            ignored=ignored,
        )


def embed_features(bundle: Bundle, table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """The item tower's vectors of features, float32 [n, D].

    Args:
        bundle: whose tower.
        table: one row an item, a column a feature.
        rows: int64 [n], the bundle's rows of these items, whose ids speak where training knew them; −1 for none.
    """
    trained = (rows >= 0) & bundle.trained[np.maximum(rows, 0)]
    codes = bundle.item_encoder.encode(table)
    vectors: np.ndarray = Catalogue(codes, trained, np.maximum(rows, 0)).embed(bundle.towers).numpy()
    return vectors


def _made(
    bundle: Bundle, put: dict[str, tuple[Said, int]], ignored: dict[str, str]
) -> tuple[pa.Table, np.ndarray, list[int]]:
    """Table and vectors of items, and the places among them that nobody needs; tells `ignored` what cannot be used."""
    if not put:
        nothing = LiveRows.none(bundle)
        return nothing.table, nothing.vectors, []
    usable = []
    for item_id, (said, _) in put.items():
        usable.append(_usable(bundle, item_id, said, ignored))
    rows = np.array([row for _, row in put.values()], dtype=np.int64)
    table = table_of(bundle.schema, usable)
    vectors = embed_features(bundle, table, rows)
    unneeded = np.zeros(len(rows), dtype=bool)
    known = np.flatnonzero(rows >= 0)
    if len(known) and table.num_columns:
        own = bundle.attributes.table(rows[known]).to_pylist()
        unneeded[known] = [a == b for a, b in zip(own, table.take(pa.array(known)).to_pylist(), strict=True)]
    elif len(known):
        unneeded[known] = True  # no features are declared, so none differ
    infinite = ~np.isfinite(vectors).all(axis=1)
    for at, item_id in enumerate(put):
        if infinite[at]:
            ignored[item_id] = f"item {item_id!r}: its features give no finite vector; PUT smaller numbers"
    return table, vectors, np.flatnonzero(unneeded | infinite).tolist()


def _usable(bundle: Bundle, item_id: str, said: Said, ignored: dict[str, str]) -> Said:
    """The features that the bundle's schema still declares so: it may have changed since they were PUT."""
    try:
        return checked_features(bundle.schema, said, bundle.item_encoder)
    except FeatureError as error:
        ignored[item_id] = f"item {item_id!r}: {error}"
    kept: dict[str, Any] = {}
    for name, value in said.items():
        try:
            kept |= checked_features(bundle.schema, {name: value}, bundle.item_encoder)
        except FeatureError:
            continue  # told above, of the first
    return kept


def _same(a: Said, b: Said) -> bool:
    return a is b or a == b
