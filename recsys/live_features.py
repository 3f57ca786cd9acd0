"""What is said of an item between two bundles: checked against the schema, then laid out as a table's rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.data.schema import Feature, Schema, nearest
from recsys.data.values import FEATURE_TYPES, MILLIS, YEAR_1, YEAR_9999, to_feature
from recsys.data.vocabulary import FeatureEncoder

_MOST = 1e300  # JSON knows larger integers, a float does not
_SHOWN = 60  # characters of a value that a message repeats
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FeatureError(ValueError):
    """A feature that the schema does not declare, or a value that it cannot have; the message says what to give."""


def checked_features(
    schema: Schema, features: Mapping[str, Any], encoder: FeatureEncoder | None = None
) -> dict[str, Any]:
    """The features of one item as the schema declares them: plain JSON values, fit to be stored and to be read later.

    Values are in the schema's own units, as they would stand in the company's table: a timestamp in seconds where the
    schema says seconds. Moments may always be ISO 8601 text, too. A null, a blank text or an empty list is no value.

    Args:
        schema: what is declared of items.
        features: by feature name.
        encoder: the bundle's, where there is one: it knows how long vectors are.

    Returns:
        By feature name; checking it again changes nothing.

    Raises:
        FeatureError: a feature is not declared, or its value is of another type than declared.
    """
    declared = {feature.name: feature for feature in (schema.items.features if schema.items else ())}
    learnt = {} if encoder is None else encoder.learnt
    checked = {}
    for name, value in features.items():
        if name not in declared:
            raise FeatureError(f"there is no feature {name!r}{nearest(str(name), list(declared))}")
        if value is None:
            continue
        plain = _checked(declared[name], value, learnt.get(name, {}).get("dimension"))
        if plain is not None:
            checked[name] = plain
    return checked


def table_of(schema: Schema, said: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The features of some items as `Dataset.item_features` has them: one row an item, one column a feature.

    Args:
        schema: what is declared of items.
        said: for each item, what `checked_features` returned.
    """
    columns = {}
    for feature in schema.items.features if schema.items else ():
        values = [features.get(feature.name) for features in said]
        if feature.kind == "timestamp":
            values = [None if value is None else _millis(feature, value) for value in values]
        column = pa.array(values, FEATURE_TYPES[feature.kind])
        if feature.kind in ("categorical", "text", "multi"):
            column = to_feature(column, feature).values.cast(FEATURE_TYPES[feature.kind])
        columns[feature.name] = column
    return pa.table(columns)


def _checked(feature: Feature, value: Any, dimension: int | None) -> Any:
    match feature.kind:
        case "categorical":
            return _text(feature, value, "give text", integers=True)
        case "text":
            return _text(feature, value, "give text", integers=False)
        case "multi":
            values = value.split(feature.separator) if isinstance(value, str) else value
            if not isinstance(values, (list, tuple)):
                raise _unfit(feature, value, "give a list of texts")
            texts = [_text(feature, one, "give a list of texts", integers=True) for one in values if one is not None]
            return [text for text in texts if text is not None] or None
        case "numeric":
            return _number(feature, value, "give a number")
        case "vector":
            return _vector(feature, value, dimension)
        case "timestamp":
            if isinstance(value, str) and not value.strip():
                return None
            moment = _moment(feature, value)
            if not YEAR_1 <= _millis(feature, moment) <= YEAR_9999:
                raise _unfit(feature, value, f"is it in {feature.unit}? give a moment of the years 1 to 9999")
            return moment


def _text(feature: Feature, value: Any, expected: str, *, integers: bool) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and integers:
        return str(value)
    if not isinstance(value, str):
        raise _unfit(feature, value, expected)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _unfit(feature, value, "give text that UTF-8 can hold") from None
    return value.strip() or None


def _number(feature: Feature, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MOST:
        raise _unfit(feature, value, expected)
    return value


def _vector(feature: Feature, value: Any, dimension: int | None) -> list[float]:
    expected = f"give a list of {dimension or 'finite'} numbers"
    if not isinstance(value, (list, tuple)) or not value or (dimension is not None and len(value) != dimension):
        raise _unfit(feature, value, expected)
    numbers = [_number(feature, number, expected) for number in value]
    if max(map(abs, numbers)) > float(np.finfo(np.float32).max):
        raise _unfit(feature, value, expected)
    return numbers


def _moment(feature: Feature, value: Any) -> Any:
    """A moment in the declared unit."""
    asked = "ISO 8601 text" if feature.unit == "iso" else f"a number ({feature.unit} since 1970) or ISO 8601 text"
    if isinstance(value, str):
        try:
            millis = _since_1970(value.strip())
        except ValueError:
            raise _unfit(feature, value, f"give {asked}") from None
        if feature.unit == "iso":
            return value.strip()
        scaled = millis / MILLIS[feature.unit]
        return int(scaled) if scaled.is_integer() else scaled
    if feature.unit == "iso":
        raise _unfit(feature, value, f"give {asked}")
    return _number(feature, value, f"give {asked}")


def _millis(feature: Feature, value: Any) -> int:
    """A moment in the declared unit as milliseconds since 1970, rounded as `recsys.data.values.to_millis` rounds."""
    if feature.unit == "iso":
        return _since_1970(value)
    if isinstance(value, int):
        return value // 1000 if feature.unit == "us" else value * int(MILLIS[feature.unit])
    return round(value * MILLIS[feature.unit])


def _since_1970(text: str) -> int:
    moment = datetime.fromisoformat(text)
    micros = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    return micros // 1000 if micros >= 0 else -(-micros // 1000)  # towards 1970, as Arrow cuts them


def _unfit(feature: Feature, value: Any, expected: str) -> FeatureError:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return FeatureError(f"feature {feature.name!r} is {feature.kind}: {expected}, got {shown}")
