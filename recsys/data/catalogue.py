"""The tables of items and users: their features, read once and laid out row by row as the id map says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.quarantine import Quarantine, as_text
from recsys.data.schema import Entity
from recsys.data.sources import Source
from recsys.data.values import FEATURE_TYPES, plain, to_feature, to_ids

_SLICE = 1 << 18


@dataclass
class Catalogue:
    """One table of items or users, without rows that lack an id or repeat one.

    Attributes:
        ids: [n], unique.
        features: [n] rows, a column a declared feature.
        values_not_read: by column, how many values are null because they could not be read.
        read: rows that the source had, usable or not.
    """

    ids: pa.Array
    features: pa.Table
    values_not_read: Counter[str]
    read: int
    decoded_as_cp1252: int

    def rows_of(self, ids: pa.Array) -> pa.Array:
        """int32 [n]: where the given ids [n] stand in the table, null where they do not."""
        return pc.index_in(ids, value_set=self.ids.cast(ids.type))

    def write(self, path: Path, ids: pa.Array, old: Path | None = None) -> int:
        """Writes the features of the given ids, in their order, to a Parquet file; null where nobody knows any.

        Args:
            path: the file.
            ids: [n].
            old: such a file of the first of these ids: where the table no longer lists one, its old features stay.

        Returns:
            How many ids had features in the old file and are gone from the table.
        """
        rows, gone = self.rows_of(ids), 0
        kept = _slices(old, self.features.schema) if old else iter(())
        with pq.ParquetWriter(path, self.features.schema) as writer:
            for start in range(0, len(rows), _SLICE):
                chosen = rows.slice(start, _SLICE)
                before = next(kept, self.features.schema.empty_table())
                place = np.arange(len(chosen))
                stays = pc.is_null(chosen).to_numpy(zero_copy_only=False) & (place < before.num_rows)
                chosen = pc.if_else(pa.array(stays), pa.array(len(self.ids) + place), chosen)
                writer.write_table(pa.concat_tables([self.features, before]).take(chosen))
                told = [column.is_valid().to_numpy() for column in before.columns]
                gone += int(np.count_nonzero(np.logical_or.reduce(told) & stays[: before.num_rows]))
        return gone


def _slices(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """A table's rows, `_SLICE` at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_SLICE):
            yield pa.Table.from_batches([batch]).cast(schema)


def read_catalogue(
    source: Source, entity: Entity, kind: pa.DataType, what: str, quarantine: Quarantine, seen: Callable[[int], None]
) -> Catalogue:
    """Reads a table of items or users.

    Args:
        source: the table.
        entity: what its columns mean.
        kind: the type of the log's ids, which the table's are turned into.
        what: "items" or "users", for reasons.
        quarantine: where rows without a usable id, and all but the first of equal ids, go.
        seen: told the number of rows of each batch, to show progress.
    """
    names = list(dict.fromkeys([entity.id, *(feature.column for feature in entity.features)]))
    schema = pa.schema([(feature.name, FEATURE_TYPES[feature.kind]) for feature in entity.features])
    all_ids: list[pa.Array] = []
    tables: list[pa.Table] = []
    known = pa.array([], type=kind)
    values_not_read: Counter[str] = Counter()
    read = decoded = 0
    for batch in source.batches(names):
        unparsed = batch.unparsed
        quarantine.add(
            batch.source,
            [row.row for row in unparsed],
            [f"wrong number of columns ({what})"] * len(unparsed),
            [row.raw for row in unparsed],
        )
        ids = to_ids(plain(batch.columns.column(entity.id)), pa.types.is_integer(kind))
        reasons = np.full(len(ids.values), "", dtype=object)
        reasons[ids.missing] = f"missing id in the table of {what}"
        reasons[ids.bad] = f"unreadable id in the table of {what}"
        usable = reasons == ""
        kept = np.flatnonzero(usable)
        within = ids.values.filter(pa.array(usable)).dictionary_encode()
        position = within.indices.to_numpy(zero_copy_only=False)
        repeated = np.ones(len(kept), dtype=bool)
        repeated[np.unique(position, return_index=True)[1]] = False
        repeated |= pc.is_in(within.dictionary, value_set=known).to_numpy(zero_copy_only=False)[position]
        reasons[kept[repeated]] = f"repeated id in the table of {what}"
        good = reasons == ""
        if not good.all():
            bad = np.flatnonzero(~good)
            raw = as_text(batch.columns.take(pa.array(bad)))
            quarantine.add(batch.source, batch.rows[bad], reasons[bad].tolist(), raw)
        columns = []
        for feature in entity.features:
            converted = to_feature(plain(batch.columns.column(feature.column)), feature)
            if number := int(np.count_nonzero(converted.bad & good)):
                values_not_read[f"{what}.{feature.name}"] += number
            columns.append(converted.values.cast(FEATURE_TYPES[feature.kind]).filter(pa.array(good)))
        fresh = ids.values.filter(pa.array(good))
        known = pa.concat_arrays([known, fresh])
        all_ids.append(fresh)
        if columns:
            tables.append(pa.Table.from_arrays(columns, schema=schema))
        read += batch.columns.num_rows + len(unparsed)
        decoded += batch.decoded_as_cp1252
        seen(batch.columns.num_rows + len(unparsed))
    features = pa.concat_tables(tables) if tables else schema.empty_table()
    return Catalogue(known, features, values_not_read, read, decoded)
