"""What the service says, as frozen objects, and the errors that it or the way to it can give. No HTTP happens here.

Whatever a newer service adds is ignored; whatever this client needs and does not find is an error that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Id = str | int
T = TypeVar("T")
Reader = Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to change in a request: where, as a path such as history/3/item_id, and what to change."""

    at: str
    change: str


class RecommendationError(Exception):
    """A call that has no answer.

    Attributes:
        status: the HTTP status; None where no answer came at all.
        detail: what happened, or what to change.
        faults: each thing to change, where the service lists several.
        request_id: what to look for in the service's log.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, faults: Sequence[Fault] = (), request_id: str | None = None
    ) -> None:
        said = [str(status)] if status is not None else []
        named = [f"(request {request_id})"] if request_id else []
        super().__init__(" ".join([*said, detail, *named]))
        self.detail = detail
        self.status = status
        self.faults = tuple(faults)
        self.request_id = request_id


class Unavailable(RecommendationError):
    """The service cannot be reached or has no room; trying again later may help, changing the request will not.

    Attributes:
        tries: how often it was asked.
        retry_after_s: for how many seconds it said it would stay so, where it said.
    """

    def __init__(
        self,
        detail: str,
        *,
        tries: int = 1,
        retry_after_s: float | None = None,
        status: int | None = None,
        faults: Sequence[Fault] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail, status=status, faults=faults, request_id=request_id)
        self.tries = tries
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Pull:
    """An item of the history and its share in why another was recommended."""

    item_id: Id
    share: float


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an answer; `because` and `rank_before_rules` only where the query asked to explain."""

    item_id: Id
    score: float
    rank: int
    attributes: Mapping[str, Any]
    because: tuple[Pull, ...] | None = None
    rank_before_rules: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, best first.

    Attributes:
        bundle: the bundle that gave it.
        strategy: personalised, history, popular or similar; a newer service may know others.
        items: best first.
        unknown_items: ids of the query that the bundle does not know, and so could not use.
        relaxed: rules that could not be kept, such as "caps" or "quotas[0]".
        degraded: what the service left out because it was busy.
    """

    bundle: str
    strategy: str
    items: tuple[Item, ...]
    unknown_items: tuple[Id, ...] = ()
    relaxed: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why an item is not in a list."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class WhyNot:
    """Where an item stands for a query; the ranks start at 1 and are None where it has none."""

    bundle: str
    item_id: Id
    in_list: bool
    rank: int | None
    rank_among_eligible: int | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """How many events were new, and how many the service had already; after a retry, some are both."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class ItemState:
    """Whether an item may be recommended."""

    item_id: Id
    available: bool


@dataclass(frozen=True, slots=True)
class LiveBundle:
    """The bundle in use, and what its manifest says."""

    bundle: str
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KnownItem:
    """An item of the live catalogue, and whether it may be recommended."""

    item_id: Id
    attributes: Mapping[str, Any]
    available: bool


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of items.

    Attributes:
        name: in filters and answers.
        kind: categorical, multi, numeric, text, timestamp or vector.
        shown: whether answers show it.
        filterable: whether a filter may name it.
        values: of words, the most common ones, and how many items have each.
        distinct: of words, how many different ones there are.
        least: of numbers and moments, the smallest.
        most: the largest, likewise.
    """

    name: str
    kind: str
    shown: bool
    filterable: bool
    values: tuple[tuple[str, int], ...] = ()
    distinct: int | None = None
    least: float | str | None = None
    most: float | str | None = None


@dataclass(frozen=True, slots=True)
class ItemMap:
    """Where items stand on a plane, the most popular first; `codes` are places in `values`, −1 for none of them."""

    bundle: str
    items: tuple[Id, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    values: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()


class Unreadable(ValueError):
    """An answer that is not what the contract says."""


def answer(said: Any) -> Answer:
    """An `Answer` of its JSON; raises Unreadable, as all of these do."""
    return Answer(
        bundle=_text(said, "bundle"),
        strategy=_text(said, "strategy"),
        items=tuple(_item(each) for each in _list(said, "items")),
        unknown_items=tuple(_list(said, "unknown_items", least=False)),
        relaxed=tuple(_list(said, "relaxed", least=False)),
        degraded=tuple(_list(said, "degraded", least=False)),
    )


def answers(said: Any) -> list[Answer | RecommendationError]:
    """The answers of a batch, in the order of the queries; a query that was refused has its error there."""
    found: list[Answer | RecommendationError] = []
    for each in _list(said, "answers"):
        if isinstance(each, Mapping) and "items" not in each and "status" in each:
            found.append(problem(each))
        else:
            found.append(answer({"bundle": _text(said, "bundle"), **_object(each)}))
    return found


def why_not(said: Any) -> WhyNot:
    """A `WhyNot` of its JSON."""
    return WhyNot(
        bundle=_text(said, "bundle"),
        item_id=_id(said),
        in_list=_get(said, "in_list", bool),
        rank=_rank(said, "rank"),
        rank_among_eligible=_rank(said, "rank_among_eligible"),
        reasons=tuple(Reason(_text(each, "reason"), _text(each, "detail")) for each in _list(said, "reasons")),
    )


def accepted(said: Any) -> Accepted:
    """An `Accepted` of its JSON."""
    return Accepted(_whole(said, "accepted"), _whole(said, "duplicates"))


def item_state(said: Any) -> ItemState:
    """An `ItemState` of its JSON."""
    return ItemState(_id(said), _get(said, "available", bool))


def bundle(said: Any) -> LiveBundle:
    """A `LiveBundle` of its JSON."""
    return LiveBundle(_text(said, "bundle"), dict(_object(_object(said).get("about", {}))))


def known_items(said: Any) -> list[KnownItem]:
    """A list of `KnownItem` of its JSON."""
    return [
        KnownItem(_id(one), dict(_object(one.get("attributes", {}))), _get(one, "available", bool))
        for one in map(_object, _list(said, "items"))
    ]


def attributes(said: Any) -> list[Attribute]:
    """A list of `Attribute` of its JSON."""
    return [
        Attribute(
            _text(one, "name"),
            _text(one, "kind"),
            _get(one, "shown", bool),
            _get(one, "filterable", bool),
            tuple((_text(value, "value"), _whole(value, "items")) for value in _list(one, "values", least=False)),
            _rank(one, "distinct"),
            one.get("least"),
            one.get("most"),
        )
        for one in map(_object, _list(said, "attributes"))
    ]


def item_map(said: Any) -> ItemMap:
    """An `ItemMap` of its JSON."""
    items, x, y = (tuple(_list(said, name)) for name in ("items", "x", "y"))
    values, codes = (tuple(_list(said, name, least=False)) for name in ("values", "codes"))
    if not len(items) == len(x) == len(y) or (codes and len(codes) != len(items)):
        raise Unreadable("the lists of the map are not of one length")
    return ItemMap(_text(said, "bundle"), items, x, y, values, codes)


def problem(said: Any, request_id: str | None = None) -> RecommendationError:
    """The error that a problem document describes; never raises Unreadable, however odd the document is."""
    if not isinstance(said, Mapping) or not isinstance(said.get("status"), int):
        return RecommendationError(f"the service said what is no problem document: {said!r:.200}")
    errors, named = said.get("errors"), said.get("request_id")
    return RecommendationError(
        str(said.get("detail") or said.get("title") or "no detail"),
        status=said["status"],
        faults=[
            Fault(str(each.get("at", "")), str(each.get("change", "")))
            for each in (errors if isinstance(errors, list) else ())
            if isinstance(each, Mapping)
        ],
        request_id=named if isinstance(named, str) else request_id,
    )


def _item(said: Any) -> Item:
    said = _object(said)
    because = said.get("because")
    return Item(
        item_id=_id(said),
        score=_number(said, "score"),
        rank=_whole(said, "rank"),
        attributes=dict(_object(said.get("attributes", {}))),
        because=None if because is None else tuple(Pull(_id(p), _number(p, "share")) for p in _list(said, "because")),
        rank_before_rules=_rank(said, "rank_before_rules"),
    )


def _object(said: Any) -> Mapping[str, Any]:
    if not isinstance(said, Mapping):
        raise Unreadable(f"{said!r:.60} stands where an object is expected")
    return said


def _get(said: Any, name: str, *kinds: type) -> Any:
    if name not in _object(said):
        raise Unreadable(f"{name!r} is missing")
    value = said[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Unreadable(f"{name!r} is {value!r:.60}")
    return value


def _text(said: Any, name: str) -> str:
    return str(_get(said, name, str))


def _whole(said: Any, name: str) -> int:
    return int(_get(said, name, int))


def _number(said: Any, name: str) -> float:
    return float(_get(said, name, int, float))


def _rank(said: Any, name: str) -> int | None:
    return None if _object(said).get(name) is None else _whole(said, name)


def _id(said: Any) -> Id:
    found: Id = _get(said, "item_id", str, int)
    return found


def _list(said: Any, name: str, *, least: bool = True) -> Sequence[Any]:
    """A list of the answer; where it is not needed (`least` False), its absence is an empty one."""
    if not least and _object(said).get(name) is None:
        return ()
    found: list[Any] = _get(said, name, list)
    return found
