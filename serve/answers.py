"""The HTTP contract, second half: what an answer holds, and how it becomes JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, Field

from .problems import Refusal

if TYPE_CHECKING:
    from recsys.answers import Answer

JSON_TYPE = "application/json"


class Fault(BaseModel):
    """One thing to change in a request."""

    at: str = Field(description="where: a parameter's name, or a path into the body such as history/3/item_id")
    change: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="what to change")
    request_id: str | None = None
    errors: list[Fault] = Field([], description="each thing to change, where there are several")


class PullBody(BaseModel):
    """An item of the history, and its share in what pulled a recommended one."""

    item_id: str | int
    share: float = Field(description="of all positive pulls; they sum to 1 over the whole history")


class RecommendedItem(BaseModel):
    """One item of an answer."""

    item_id: str | int
    score: float = Field(description="inner product of the query's and the item's vector, or the popularity")
    rank: int = Field(ge=1)
    attributes: dict[str, Any] = Field(description="the features that the schema shows")
    because: list[PullBody] = Field([], description="where asked to explain: what pulled it most")
    rank_before_rules: int | None = Field(
        None, ge=1, description="where asked to explain: its rank by score among all items that may be recommended"
    )


class AnswerBody(BaseModel):
    """What was found, best first, and which bundle found it."""

    bundle: str
    strategy: Literal["personalised", "history", "popular", "similar"]
    items: list[RecommendedItem]
    unknown_items: list[str | int] = Field(
        [], description="ids of the history this bundle does not know; absent if none"
    )
    relaxed: list[str] = Field([], description="rules that could not be held, or k items would not be found")
    degraded: list[str] = Field(
        [],
        description="what was done without: fewer candidates, cheaper dimension, popular (load); events (their store)",
    )


class BatchAnswerBody(BaseModel):
    """An answer to each request, or the problem with it, in their order."""

    bundle: str
    answers: list[AnswerBody | Problem]


class ReasonBody(BaseModel):
    """One thing that keeps an item out of an answer."""

    reason: str
    detail: str


class WhyNotAnswer(BaseModel):
    """Why an item is not in an answer: everything that keeps it out, not the first thing only."""

    bundle: str
    item_id: str | int
    in_list: bool
    rank: int | None = Field(None, description="by score among all items that may be recommended")
    rank_among_eligible: int | None = Field(None, description="by score among those that this request may return")
    reasons: list[ReasonBody]


class KnownItem(BaseModel):
    """An item of the live catalogue."""

    item_id: str | int
    attributes: dict[str, Any] = Field(description="the features that the schema shows")
    available: bool = Field(description="whether it may be recommended")


class ItemsBody(BaseModel):
    """Items of the live catalogue."""

    bundle: str
    items: list[KnownItem]
    unknown_items: list[str | int] = Field([], description="ids that nobody knows; absent if none")


class CommonValue(BaseModel):
    """A value of an attribute, and how many items that may be recommended have it."""

    value: str
    items: int


class DeclaredAttribute(BaseModel):
    """An attribute of items; of what nothing can filter by, the kind is all that is said."""

    name: str
    kind: Literal["categorical", "multi", "numeric", "text", "timestamp", "vector"]
    shown: bool = Field(description="whether answers show it")
    filterable: bool
    distinct: int | None = Field(None, description="of words: how many different ones there are")
    values: list[CommonValue] | None = Field(None, description="of words: the most common ones")
    least: float | str | None = Field(None, description="of numbers and moments: the smallest, as a filter may say it")
    most: float | str | None = Field(None, description="the largest, likewise")


class AttributesBody(BaseModel):
    """What is declared of items."""

    bundle: str
    attributes: list[DeclaredAttribute]


class MapBody(BaseModel):
    """Where items stand on the plane that shows most of how their vectors differ; lists of one order and length."""

    bundle: str
    explained: list[float] = Field(description="the share of the variance that each of both axes shows")
    items: list[str | int] = Field(description="ids, the most popular first")
    x: list[int] = Field(description="0 to 10000, both axes in one scale")
    y: list[int]
    values: list[str] | None = Field(None, description="where asked for an attribute: its most common values")
    codes: list[int] | None = Field(None, description="of each item, the place of its value among them; -1: none")


class Accepted(BaseModel):
    """How many events were kept; those kept before are not kept twice."""

    accepted: int
    duplicates: int


class ItemState(BaseModel):
    """What holds of an item from now on."""

    item_id: str | int
    available: bool


class BundleBody(BaseModel):
    """The bundle in use."""

    bundle: str
    about: dict[str, Any] = Field(description="what its manifest says: model, sizes, index, evaluation, parents")
    standing: dict[str, Any] = Field(description="how this replica stands to its registry, online store and keys")


class State(BaseModel):
    """Whether the service is up, or ready."""

    status: Literal["ok"]


class Batch(NamedTuple):
    """Answers to a batch, and what was refused of it."""

    bundle: str
    answers: list[Answer | Refusal]


def encode(said: Answer | Batch | dict[str, Any]) -> bytes:
    """What an operation gave, as the JSON that its model describes, at less cost; what is empty is left out."""
    values: Any = said
    if isinstance(said, Batch):
        values = {"bundle": said.bundle, "answers": [_values(one) for one in said.answers]}
    elif not isinstance(said, dict):
        values = _values(said)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def _values(said: Answer | Refusal) -> dict[str, Any]:
    if isinstance(said, Refusal):
        return said.values()
    items: list[dict[str, Any]] = [
        {"item_id": one.item_id, "score": one.score, "rank": one.rank, "attributes": one.attributes}
        for one in said.items
    ]
    for shown, one in zip(items, said.items, strict=True):
        if one.because is not None:
            shown["because"] = one.because
        if one.rank_before_rules is not None:
            shown["rank_before_rules"] = one.rank_before_rules
    values: dict[str, Any] = {"bundle": said.bundle, "strategy": said.strategy, "items": items}
    if said.unknown_items:
        values["unknown_items"] = said.unknown_items
    if said.relaxed:
        values["relaxed"] = said.relaxed
    if said.degraded:
        values["degraded"] = said.degraded
    return values
