"""What the columns of a company's tables mean: declared once, in YAML, and checked before a row is read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml

FeatureKind = Literal["categorical", "multi", "numeric", "text", "timestamp", "vector"]
TimeUnit = Literal["s", "ms", "us", "iso"]
FEATURE_KINDS: tuple[str, ...] = FeatureKind.__args__  # type: ignore[attr-defined]
TIME_UNITS: tuple[str, ...] = TimeUnit.__args__  # type: ignore[attr-defined]
FILTERABLE_KINDS = ("categorical", "multi", "numeric", "timestamp")


class SchemaError(ValueError):
    """The schema says something that cannot be; the message names the key, the value and the nearest valid one."""


@dataclass(frozen=True)
class Feature:
    """One declared feature of an item or a user.

    Args:
        name: what it is called from here on: in filters, in answers, in the towers.
        kind: `categorical` (one value of many), `multi` (a list of values), `numeric`, `text`, `timestamp`, or
            `vector` (a fixed-length list of numbers the user brings, such as a sentence embedding).
        column: the column in the source; the name if left out.
        separator: for `multi`, what separates the values where the source holds text.
        unit: for `timestamp`, seconds, milliseconds or microseconds since 1970, or ISO 8601 text.
        embed: whether the tower uses it.
        show: whether the service returns it with each item.
        model: for `text`, the sentence-transformers model that reads it, by folder or installed package (docs/text.md);
            hashed n-grams if left out.
    """

    name: str
    kind: FeatureKind
    column: str = ""
    separator: str = "|"
    unit: TimeUnit = "s"
    embed: bool = True
    show: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise SchemaError("a feature has an empty name; give it one")
        _one_of(self.kind, FEATURE_KINDS, f"the kind of feature {self.name!r}")
        _one_of(self.unit, TIME_UNITS, f"the unit of feature {self.name!r}")
        if self.model is not None and self.kind != "text":
            raise SchemaError(f"feature {self.name!r} is {self.kind} and has a model; only text is read by one")
        if not self.column:
            object.__setattr__(self, "column", self.name)

    @property
    def filterable(self) -> bool:
        """Whether a request may filter by it."""
        return self.kind in FILTERABLE_KINDS


@dataclass(frozen=True)
class Interactions:
    """The columns of the interaction log.

    Args:
        user, item: the id columns.
        time: when it happened; without one the rows' own order counts.
        event: what happened (view, cart, buy, …), if the log says.
        weight: how much it counts, if the log says.
        part: which part of a given split (train, validation or test) the row belongs to, if it was split before.
        unit: seconds, milliseconds or microseconds since 1970, or ISO 8601 text.
        user_type, item_type: whether ids go back out as strings or integers; `auto` takes the column's own type,
            and text files hold strings.
    """

    user: str
    item: str
    time: str | None = None
    event: str | None = None
    weight: str | None = None
    part: str | None = None
    unit: TimeUnit = "s"
    user_type: Literal["auto", "string", "integer"] = "auto"
    item_type: Literal["auto", "string", "integer"] = "auto"

    def __post_init__(self) -> None:
        _one_of(self.unit, TIME_UNITS, "interactions.unit")
        _one_of(self.user_type, ("auto", "string", "integer"), "interactions.user_type")
        _one_of(self.item_type, ("auto", "string", "integer"), "interactions.item_type")


@dataclass(frozen=True)
class Entity:
    """The table of the items, or of the users: its id column and its features."""

    id: str
    features: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise SchemaError(f"feature {repeated[0]!r} is declared twice; give one of them another name")

    def feature(self, name: str) -> Feature:
        """The feature of that name, or a SchemaError that names the nearest one."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise SchemaError(f"there is no feature {name!r}{nearest(name, [f.name for f in self.features])}")


@dataclass(frozen=True)
class Schema:
    """What the tables of a dataset mean."""

    interactions: Interactions
    items: Entity | None = None
    users: Entity | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a schema from a YAML file."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(yaml.safe_load(file))

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Self:
        """Builds a schema from what YAML or a manifest says; an unknown key is an error that names the nearest."""
        _check_keys(said, cls, "schema")
        if "interactions" not in said:
            raise SchemaError("the schema has no 'interactions'; declare at least its user and item columns")
        return cls(
            interactions=_build(Interactions, said["interactions"], "interactions"),
            items=_entity(said.get("items"), "items"),
            users=_entity(said.get("users"), "users"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain JSON values; `from_dict` reads it back."""
        said: dict[str, Any] = {"interactions": dataclasses.asdict(self.interactions)}
        for name, entity in (("items", self.items), ("users", self.users)):
            if entity is not None:
                features = {
                    # Without the model where there is none, as datasets said it before there were any.
                    f.name: {k: v for k, v in vars(f).items() if k != "name" and (k, v) != ("model", None)}
                    for f in entity.features
                }
                said[name] = {"id": entity.id, "features": features}
        return said


def _entity(said: Any, where: str) -> Entity | None:
    if said is None:
        return None
    _check_keys(said, Entity, where)
    features = said.get("features") or {}
    if not isinstance(features, Mapping):
        raise SchemaError(f"{where}.features must map names to kinds, got {features!r}")
    built = []
    for name, options in features.items():
        options = {"kind": options} if isinstance(options, str) else options
        built.append(_build(Feature, {"name": str(name), **options}, f"{where}.features.{name}"))
    return _build(Entity, {**said, "features": tuple(built)}, where)


def _build(cls: Any, said: Any, where: str) -> Any:
    _check_keys(said, cls, where)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in said]:
        raise SchemaError(f"{where} lacks {missing[0]!r}; add it")
    return cls(**said)


def _check_keys(said: Any, cls: Any, where: str) -> None:
    if not isinstance(said, Mapping):
        raise SchemaError(f"{where} must map keys to values, got {said!r}")
    valid = [f.name for f in dataclasses.fields(cls)]
    for key in said:
        if key not in valid:
            raise SchemaError(f"{where} has no key {key!r}{nearest(str(key), valid)}")


def _one_of(value: str, valid: Sequence[str], what: str) -> None:
    if value not in valid:
        raise SchemaError(f"{what} cannot be {value!r}{nearest(str(value), valid)}")


def nearest(value: str, valid: Sequence[str]) -> str:
    """The end of a message about a value that is none of the valid ones: the nearest of them, and all."""
    near = difflib.get_close_matches(value, valid, n=1, cutoff=0.5)
    listed = ", ".join(valid) or "none"
    return f"; did you mean {near[0]!r}? (valid: {listed})" if near else f"; valid: {listed}"
