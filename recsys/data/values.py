"""Raw columns turned into ids, times, numbers and features, a whole column at a time, with what did not convert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.schema import Feature, TimeUnit

MILLIS = {"s": 1000, "ms": 1, "us": 0.001}
YEAR_1, YEAR_9999 = -62_135_596_800_000, 253_402_300_799_999  # in milliseconds
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INTEGER = r"^[+-]?\d{1,18}$"


@dataclass(frozen=True)
class Converted:
    """A converted column and what became of each value.

    Attributes:
        values: Arrow array [n], null where there is no value; as many as came in.
        missing: bool [n], nothing was there: null, not a number, or blank text.
        bad: bool [n], something was there that does not convert.
    """

    values: pa.Array
    missing: np.ndarray
    bad: np.ndarray


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The same values without dictionaries, views, decimals or extension types: fewer types to think of."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary_decode())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_null(kind) or _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.string())
    return column


def to_ids(column: pa.Array, integer: bool) -> Converted:
    """Ids as int64 or as strings; text is kept to the letter, so '007' stays itself among strings."""
    if integer:
        return _integers(column)
    if pa.types.is_floating(column.type):
        whole = _integers(column)
        return Converted(whole.values.cast(pa.string()), whole.missing, whole.bad)
    if not (_is_text(column.type) or pa.types.is_integer(column.type)):
        column = column.cast(pa.string())
    if pa.types.is_integer(column.type):
        return Converted(column.cast(pa.string()), _bools(pc.is_null(column)), np.zeros(len(column), dtype=bool))
    missing = _blank(column)
    broken = _bools(pc.match_substring(column, "\n")) & ~missing
    return Converted(_without(column, missing | broken), missing, broken)


def are_integers(kind: pa.DataType) -> bool:
    """Whether ids of this column go back out as integers; floats do: they are integers that once met a null."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def to_numbers(column: pa.Array) -> Converted:
    """Finite float64 values; not a number is missing in a column of numbers and bad in text."""
    if _is_text(column.type):
        missing = _blank(column)
        kept = _without(column, missing)
        try:
            values = kept.cast(pa.float64())
        except pa.ArrowInvalid:
            values = _cast_matching(kept, _NUMBER, pa.float64())
    elif pa.types.is_boolean(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = column.cast(pa.float64(), safe=False)
        missing = _bools(pc.is_null(values, nan_is_null=True))
    else:
        missing = _bools(pc.is_null(column))
        values = pa.nulls(len(column), pa.float64())
    bad = ~_bools(pc.is_finite(values)) & ~missing
    return Converted(_without(values, bad | missing), missing, bad)


def to_millis(column: pa.Array, unit: TimeUnit) -> Converted:
    """Milliseconds since 1970 UTC as int64; times without a zone are UTC, a column of timestamps needs no unit."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        missing = _bools(pc.is_null(column))
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return Converted(column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64()), missing, missing & False)
    if unit == "iso":
        return _iso_millis(column)
    if not pa.types.is_floating(kind):
        whole = _integers(column)
        if not whole.bad.any() or not _is_text(kind):
            return _scaled(whole, unit)
    return _scaled(to_numbers(column), unit)


def to_feature(column: pa.Array, feature: Feature) -> Converted:
    """A feature in the type that `Dataset.item_features` promises."""
    if feature.kind == "numeric":
        return to_numbers(column)
    if feature.kind == "timestamp":
        return to_millis(column, feature.unit)
    if feature.kind == "multi":
        return _multi(column, feature.separator)
    if feature.kind == "vector":
        return _vectors(column)
    return _texts(column)


FEATURE_TYPES: dict[str, pa.DataType] = {
    "categorical": pa.string(),
    "text": pa.string(),
    "multi": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "timestamp": pa.int64(),
    "vector": pa.list_(pa.float32()),
}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _bools(mask: pa.Array) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _blank(text: pa.Array) -> np.ndarray:
    empty = pc.equal(pc.binary_length(text), 0)
    return pc.fill_null(pc.or_(empty, pc.utf8_is_space(text)), True).to_numpy(zero_copy_only=False)


def _without(column: pa.Array, left_out: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(~left_out), column, None) if left_out.any() else column


def _cast_matching(text: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    return _without(text, ~_bools(pc.match_substring_regex(text, pattern))).cast(kind)


def _integers(column: pa.Array) -> Converted:
    if _is_text(column.type):
        missing = _blank(column)
        kept = _without(column, missing)
        try:
            values = kept.cast(pa.int64())
        except pa.ArrowInvalid:
            values = _cast_matching(kept, _INTEGER, pa.int64())
    elif pa.types.is_floating(column.type):
        missing = _bools(pc.is_null(column, nan_is_null=True))
        floats = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.float64)
        whole = np.isfinite(floats) & (np.abs(floats) < 2**53) & (floats == np.floor(floats))
        values = _without(pa.array(np.where(whole, floats, 0).astype(np.int64)), ~whole | missing)
    elif pa.types.is_integer(column.type):
        missing = _bools(pc.is_null(column))
        try:
            values = column.cast(pa.int64())
        except pa.ArrowInvalid:  # uint64 beyond int64
            values = _without(column, _bools(pc.greater(column, pa.scalar(2**63 - 1, pa.uint64())))).cast(pa.int64())
    else:
        missing = _bools(pc.is_null(column))
        values = pa.nulls(len(column), pa.int64())
    return Converted(values, missing, _bools(pc.is_null(values)) & ~missing)


def _scaled(numbers: Converted, unit: TimeUnit) -> Converted:
    scale = MILLIS[unit]
    values = pc.fill_null(numbers.values, 0).to_numpy(zero_copy_only=False)
    far = np.abs(values) > YEAR_9999 / scale
    values = np.where(far, 0, values)
    if values.dtype == np.int64:
        millis = values // 1000 if unit == "us" else values * int(scale)
    else:
        millis = np.rint(values * scale).astype(np.int64)
    bad = numbers.bad | (far | (millis < YEAR_1)) & ~numbers.missing
    return Converted(_without(pa.array(millis), bad | numbers.missing), numbers.missing, bad)


def _iso_millis(column: pa.Array) -> Converted:
    if not _is_text(column.type):
        missing = _bools(pc.is_null(column))
        return Converted(pa.nulls(len(column), pa.int64()), missing, ~missing)
    missing = _blank(column)
    dated = _bools(pc.match_substring_regex(column, r"^\s*\d{4}"))  # pandas would also take 'now' and 'today'
    text = pc.utf8_trim_whitespace(_without(column, ~dated))
    moments = pd.to_datetime(text.to_pandas(), format="ISO8601", errors="coerce", utc=True)
    values = pa.Array.from_pandas(moments).cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())
    return Converted(values, missing, _bools(pc.is_null(values)) & ~missing)


def _texts(column: pa.Array) -> Converted:
    none_bad = np.zeros(len(column), dtype=bool)
    if pa.types.is_floating(column.type):
        whole = _integers(column)
        if not whole.bad.any():  # integers that once met a null: 3 rather than 3.0
            return Converted(whole.values.cast(pa.string()), whole.missing, none_bad)
    if pa.types.is_nested(column.type):
        missing = _bools(pc.is_null(column))
        return Converted(pa.nulls(len(column), pa.string()), missing, ~missing)
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    missing = _blank(text)
    return Converted(_without(text, missing), missing, none_bad)


def _multi(column: pa.Array, separator: str) -> Converted:
    if _is_text(column.type):
        column = pc.split_pattern(column, separator)
    elif not _is_list(column.type):
        single = _texts(column)
        offsets = np.arange(len(column) + 1, dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), single.values)
    else:
        column = column.cast(pa.list_(column.type.value_type))
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    values = _texts(plain(pc.list_flatten(column)))
    there = ~_bools(pc.is_null(values.values))
    counts = np.bincount(parents[there], minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    kept = values.values.filter(pa.array(there)).cast(pa.string())
    missing = counts == 0
    built = pa.ListArray.from_arrays(pa.array(offsets), kept, mask=pa.array(missing))
    return Converted(built, missing, np.zeros(len(column), dtype=bool))


def _vectors(column: pa.Array) -> Converted:
    if _is_text(column.type):
        inside = pc.utf8_trim(column, characters="[]() \t")
        column = pc.split_pattern_regex(inside, r"[,;\s]+")
        column = _without(column, _blank(inside))
    missing = _bools(pc.is_null(column))
    if not _is_list(column.type):
        return Converted(pa.nulls(len(column), pa.list_(pa.float32())), missing, ~missing)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    numbers = to_numbers(plain(pc.list_flatten(column))).values.cast(pa.float32())
    bad = np.bincount(parents[_bools(pc.is_null(numbers))], minlength=len(column)) > 0
    bad |= (lengths == 0) & ~missing
    keep = ~(bad | missing)
    offsets = np.concatenate([[0], np.cumsum(np.where(keep, lengths, 0))]).astype(np.int32)
    kept = numbers.filter(pa.array(keep[parents]))
    return Converted(pa.ListArray.from_arrays(pa.array(offsets), kept, mask=pa.array(~keep)), missing, bad)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
