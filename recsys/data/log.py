"""The interaction log as columns of codes: read once, batch by batch, broken rows put aside."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.growing_ids import GrowingIds
from recsys.data.quarantine import Quarantine, as_text
from recsys.data.schema import Interactions
from recsys.data.sources import Batch, Source
from recsys.data.values import Converted, are_integers, plain, to_ids, to_millis, to_numbers

PARTS = {"train": 0, "validation": 1, "valid": 1, "val": 1, "test": 2}
_MAX_EVENTS = 1000


@dataclass
class Log:
    """The usable rows of a log, in the log's order.

    Attributes:
        users, items: int32 [n], codes into `user_ids` and `item_ids`, numbered by first appearance in the log.
        times: int64 [n] milliseconds; events: int16 [n]; weights: float32 [n]; parts: int8 [n]; None if not declared.
        event_names: the kinds of event by code.
        origins: where each row came from.
        read: rows that the source had, usable or not.
    """

    users: np.ndarray
    items: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    times: np.ndarray | None
    events: np.ndarray | None
    weights: np.ndarray | None
    parts: np.ndarray | None
    event_names: list[str]
    origins: Origins
    read: int
    decoded_as_cp1252: int

    def __len__(self) -> int:
        return len(self.users)


@dataclass
class Origins:
    """Which row of which source each kept row was; kept by batch, so that millions of rows cost next to nothing."""

    _starts: list[int] = field(default_factory=list)
    _sources: list[str] = field(default_factory=list)
    _rows: list[range | np.ndarray] = field(default_factory=list)
    _total: int = 0

    def add(self, source: str, rows: np.ndarray) -> None:
        """Notes the origin of the next kept rows, by their numbers [n] in the source."""
        if not len(rows):
            return
        first, last = int(rows[0]), int(rows[-1])
        self._starts.append(self._total)
        self._sources.append(source)
        self._rows.append(range(first, last + 1) if last - first + 1 == len(rows) else rows.astype(np.int64))
        self._total += len(rows)

    def of(self, kept: int) -> tuple[str, int]:
        """The source and row number of one kept row."""
        batch = bisect.bisect_right(self._starts, kept) - 1
        return self._sources[batch], int(self._rows[batch][kept - self._starts[batch]])


def read_log(
    source: Source,
    declared: Interactions,
    quarantine: Quarantine,
    seen: Callable[[int], None],
    event_names: Sequence[str] = (),
) -> Log:
    """Reads a log, putting rows that lack or garble a declared column into the quarantine.

    Args:
        source: the log.
        declared: what its columns mean.
        quarantine: where broken rows go.
        seen: told the number of rows of each batch, to show progress.
        event_names: kinds of event that have their codes already; new ones follow.
    """
    optional = (declared.time, declared.event, declared.weight, declared.part)
    names = list(dict.fromkeys([declared.user, declared.item, *(name for name in optional if name)]))
    users, items = _Ids(declared.user_type), _Ids(declared.item_type)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("times", "events", "weights", "parts")}
    event_codes = {name: code for code, name in enumerate(event_names)}
    origins, read, decoded = Origins(), 0, 0
    for batch in source.batches(names):
        columns = {name: plain(batch.columns.column(name)) for name in names}
        converted: dict[str, Converted] = {
            "user id": users.convert(columns[declared.user]),
            "item id": items.convert(columns[declared.item]),
        }
        if declared.time:
            converted["time"] = to_millis(columns[declared.time], declared.unit)
        if declared.weight:
            converted["weight"] = to_numbers(columns[declared.weight])
        if declared.event:
            converted["event"] = _few(columns[declared.event], lambda names: to_ids(names, integer=False))
        if declared.part:
            converted["part"] = _few(columns[declared.part], _parts)
        good = _put_aside(batch, converted, quarantine)
        origins.add(batch.source, batch.rows[good])
        rows = pa.array(good) if not good.all() else None

        def usable(what: str, rows: pa.Array | None = rows, converted: dict[str, Converted] = converted) -> pa.Array:
            return converted[what].values if rows is None else converted[what].values.filter(rows)

        users.add(usable("user id"))
        items.add(usable("item id"))
        if declared.time:
            kept["times"].append(usable("time").to_numpy())
        if declared.weight:
            kept["weights"].append(usable("weight").to_numpy().astype(np.float32))
        if declared.event:
            kept["events"].append(_event_codes(usable("event"), event_codes, declared.event))
        if declared.part:
            kept["parts"].append(usable("part").to_numpy())
        read += batch.columns.num_rows + len(batch.unparsed)
        decoded += batch.decoded_as_cp1252
        seen(batch.columns.num_rows + len(batch.unparsed))
    user_codes, user_ids = users.finish()
    item_codes, item_ids = items.finish()
    return Log(
        users=user_codes,
        items=item_codes,
        user_ids=user_ids,
        item_ids=item_ids,
        times=_joined(kept["times"], np.int64) if declared.time else None,
        events=_joined(kept["events"], np.int16) if declared.event else None,
        weights=_joined(kept["weights"], np.float32) if declared.weight else None,
        parts=_joined(kept["parts"], np.int8) if declared.part else None,
        event_names=list(event_codes),
        origins=origins,
        read=read,
        decoded_as_cp1252=decoded,
    )


class _Ids:
    """One id column: its type is the declared one, or that of the first batch that has values."""

    def __init__(self, declared: str) -> None:
        self._integer = None if declared == "auto" else declared == "integer"
        self._growing: GrowingIds | None = None

    def convert(self, column: pa.Array) -> Converted:
        if self._integer is None and column.null_count < len(column):
            self._integer = are_integers(column.type)
        return to_ids(column, bool(self._integer))

    def add(self, ids: pa.Array) -> None:
        if len(ids):
            self._growing = self._growing or GrowingIds(ids.type)
            self._growing.add(ids)

    def finish(self) -> tuple[np.ndarray, pa.Array]:
        return (self._growing or GrowingIds(pa.int64() if self._integer else pa.string())).finish()


def _put_aside(batch: Batch, converted: dict[str, Converted], quarantine: Quarantine) -> np.ndarray:
    """bool [num_rows]: which rows are usable; the others go to the quarantine with their first reason."""
    unparsed = batch.unparsed
    quarantine.add(
        batch.source,
        [row.row for row in unparsed],
        ["wrong number of columns"] * len(unparsed),
        [row.raw for row in unparsed],
    )
    reasons = [""]
    reason_of = np.zeros(batch.columns.num_rows, dtype=np.int8)
    for what, column in converted.items():
        for rows, reason in ((column.missing, f"missing {what}"), (column.bad, f"unreadable {what}")):
            if rows.any():
                reason_of[rows & (reason_of == 0)] = len(reasons)
                reasons.append(reason)
    good = reason_of == 0
    if good.all():
        return good
    empty = np.logical_and.reduce([column.missing for column in converted.values()])
    reason_of[empty] = len(reasons)
    reasons.append("empty row")
    bad = np.flatnonzero(~good)
    said = [reasons[code] for code in reason_of[bad].tolist()]
    quarantine.add(batch.source, batch.rows[bad], said, as_text(batch.columns.take(pa.array(bad))))
    return good


def _few(column: pa.Array, convert: Callable[[pa.Array], Converted]) -> Converted:
    """Converts a column of few distinct values by converting each of them once."""
    encoded = column.dictionary_encode(null_encoding="encode")
    distinct = convert(encoded.dictionary)
    which = encoded.indices.to_numpy(zero_copy_only=False)
    return Converted(distinct.values.take(encoded.indices), distinct.missing[which], distinct.bad[which])


def _parts(column: pa.Array) -> Converted:
    text = to_ids(column, integer=False)
    lowered = pc.utf8_lower(pc.utf8_trim_whitespace(text.values))
    found = pc.index_in(lowered, value_set=pa.array(list(PARTS)))
    codes = pa.array(list(PARTS.values()), pa.int8()).take(found)
    return Converted(codes, text.missing, ~text.missing & pc.is_null(codes).to_numpy(zero_copy_only=False))


def _event_codes(names: pa.Array, codes: dict[str, int], column: str) -> np.ndarray:
    encoded = names.dictionary_encode()
    for name in encoded.dictionary.to_pylist():
        codes.setdefault(name, len(codes))
    if len(codes) > _MAX_EVENTS:
        raise ValueError(
            f"column {column!r} has over {_MAX_EVENTS} kinds of event, such as {list(codes)[-1]!r}; "
            "is it the event column? Declare another as interactions.event, or none"
        )
    mapped = np.array([codes[name] for name in encoded.dictionary.to_pylist()], dtype=np.int16)
    return mapped[encoded.indices.to_numpy(zero_copy_only=False)] if len(mapped) else np.empty(0, dtype=np.int16)


def _joined(arrays: list[np.ndarray], kind: type) -> np.ndarray:
    joined = np.concatenate([np.empty(0, dtype=kind), *arrays])
    arrays.clear()
    return joined
