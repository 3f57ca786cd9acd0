"""The HTTP contract, first half: what a request may hold. Validation and documentation both read this."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)

from recsys.answers import Event
from recsys.ids import Id
from recsys.rules import Cap, Freshness, Quota, Rules

MAX_ID_LENGTH = 512
MAX_FILTERS = 32
MAX_TEXT = 200
MAX_RULES = 16
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z: later ones are another unit, or a mistake


_Model = TypeVar("_Model", bound=BaseModel)


class Closed(BaseModel):
    """A model whose unknown keys are errors that name the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, said: Any) -> Any:
        known = cls.__pydantic_fields__
        if isinstance(said, Mapping) and not said.keys() <= known.keys():
            for key in said:
                if key not in known:
                    name, valid = str(key)[:80], list(known)
                    near = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
                    meant = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(f"there is no {name!r}{meant} (valid: {', '.join(valid)})")
        return said


class Limits(Closed):
    """How much one request may ask for."""

    max_k: int = Field(500, ge=1, description="the largest k")
    max_history: int = Field(1000, ge=1, description="the longest history in a request")
    max_exclude: int = Field(1000, ge=1, description="the longest list of items to leave out")
    max_body_bytes: int = Field(1 << 20, ge=1, description="the largest request body")
    max_batch: int = Field(100, ge=1, description="the most requests in one batch")
    max_events: int = Field(1000, ge=1, description="the most events in one request")

    @cached_property
    def models(self) -> RequestModels:
        """See `bounded`; kept, for every request asks for them."""
        return bounded(self)


def _id(said: Any) -> Any:
    if isinstance(said, bool) or not isinstance(said, (str, int)):
        raise ValueError("must be a string or an integer")
    if isinstance(said, str) and not 0 < len(said) <= MAX_ID_LENGTH:
        raise ValueError(f"must have 1 to {MAX_ID_LENGTH} characters")
    return said


def _milliseconds(said: Any) -> int | None:
    if said is None:
        return None
    if isinstance(said, str):
        try:
            moment = datetime.fromisoformat(said)
        except ValueError:
            raise ValueError("must be seconds since 1970 or ISO 8601, such as 2026-11-22T09:30:00Z") from None
        said = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not math.isfinite(said):
        raise ValueError("must be seconds since 1970 or ISO 8601, such as 2026-11-22T09:30:00Z")
    if abs(said) > LAST_SECOND:
        raise ValueError("is beyond the year 9999: give seconds since 1970, not milliseconds")
    return round(said * 1000)


def _entry(said: Any) -> Any:
    if isinstance(said, Mapping):
        return said
    if isinstance(said, bool) or not isinstance(said, (str, int)):
        raise ValueError("must be an item id, or an object with item_id and perhaps timestamp and event")
    return {"item_id": said}


Moment = Annotated[int | None, BeforeValidator(_milliseconds, json_schema_input_type=float | str | None)]
ExternalId = Annotated[
    Id,
    BeforeValidator(_id, json_schema_input_type=Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)] | int),
]


class HistoryEntry(Closed):
    """One thing the user did."""

    item_id: ExternalId
    timestamp: Moment = Field(None, description="seconds since 1970, or ISO 8601 (UTC where it names no zone)")
    event: str | None = Field(None, max_length=MAX_ID_LENGTH, description="what happened: view, cart, buy, …")


Filter = Annotated[
    dict[str, Any],
    Field(
        max_length=MAX_FILTERS,
        description="attribute → clause: a value, a list of values of which any will do, "
        "or an object of equals, in, contains, gt, gte, lt, lte and not",
    ),
]
HistoryItem = Annotated[HistoryEntry, BeforeValidator(_entry, json_schema_input_type=str | int | HistoryEntry)]


def _events(most: int) -> WrapValidator:
    """Makes events of a validated history; one of plain ids, as most are, is spared a model for each."""

    def made(said: Any, validated: ValidatorFunctionWrapHandler) -> list[Event]:
        if type(said) is list and len(said) <= most and all(map(_is_plain_id, said)):
            return [Event(item_id) for item_id in said]
        return [Event(entry.item_id, entry.timestamp, entry.event) for entry in validated(said)]

    return WrapValidator(made)


def _is_plain_id(said: Any) -> bool:
    return type(said) is int or (type(said) is str and 0 < len(said) <= MAX_ID_LENGTH)


class SimilarQuery(Closed):
    """What the address of similar items may carry after its question mark."""

    k: int


class UserQuery(SimilarQuery):
    """What the address of a user's recommendations may carry after its question mark."""

    include_seen: bool = Field(False, description="whether items the user has seen may come back")
    explain: bool = Field(False, description="whether to say which items of the history pulled each one most")


class ItemsQuery(Closed):
    """What the address of items may carry after its question mark."""

    q: str = Field("", max_length=MAX_TEXT, description="words, or parts of them; the most popular items if left out")
    limit: int


class AttributesQuery(Closed):
    """What the address of attributes may carry after its question mark."""

    values: int = Field(20, ge=0, le=500, description="how many of the most common values to name")


class MapQuery(Closed):
    """What the address of the map may carry after its question mark."""

    limit: int = Field(50_000, ge=1, le=100_000, description="how many items, the most popular first")
    attribute: str | None = Field(
        None, max_length=MAX_ID_LENGTH, description="an attribute of words to tell items apart by"
    )


class LookUpBody(Closed):
    """Items by their ids."""

    items: list[ExternalId]


class QuotaBody(Closed):
    """At least so many items of an answer pass a filter, where so many are eligible."""

    model_config = ConfigDict(strict=True)

    filter: Filter
    at_least: int = Field(ge=1)


class FreshnessBody(Closed):
    """A boost for what is new: `weight` standard deviations of the scores, halved every `half_life_days`."""

    model_config = ConfigDict(strict=True)

    attribute: str = Field(max_length=MAX_ID_LENGTH, description="a timestamp of the catalogue")
    half_life_days: float = Field(gt=0, le=36_500, allow_inf_nan=False)
    weight: float = Field(ge=0, le=100, allow_inf_nan=False)


class RulesBody(Closed):
    """How the best items are put together into a list; what is left out is as the service's settings say."""

    model_config = ConfigDict(strict=True)

    caps: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=MAX_RULES, description="attribute → how many items of an answer may share a value of it"
    )
    quotas: list[QuotaBody] | None = Field(None, max_length=MAX_RULES)
    diversity: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="0: by score alone; towards 1: as unlike as can be (MMR)"
    )
    freshness: FreshnessBody | None = None

    def rules(self, default: Rules) -> Rules:
        """These rules, and the default ones where nothing is said."""
        said: dict[str, Any] = {}
        if self.caps is not None:
            said["caps"] = tuple(Cap(attribute, most) for attribute, most in self.caps.items())
        if self.quotas is not None:
            said["quotas"] = tuple(Quota(quota.filter, quota.at_least) for quota in self.quotas)
        if self.diversity is not None:
            said["diversity"] = self.diversity
        if (fresh := self.freshness) is not None:
            said["freshness"] = Freshness(fresh.attribute, fresh.half_life_days, fresh.weight)
        return dataclasses.replace(default, **said) if said else default


class Asked(RulesBody):
    """What every request for items may hold."""

    k: int
    exclude: list[ExternalId] = []
    filter: Filter | None = None
    explain: bool = Field(False, description="whether to say why each item is there")


class RecommendBody(Asked):
    """A request for recommendations: a user, a history, both, or neither (popular items)."""

    user_id: ExternalId | None = None
    history: list[Event] = []  # said as a list of HistoryItem; see `bounded`
    include_seen: bool = Field(False, description="whether items of the history and seen ones may come back")


class SimilarBody(RulesBody):
    """A request for items like several others, or like one that does not exist, of which features are told."""

    items: list[ExternalId] = []
    features: dict[str, Any] | None = Field(
        None, max_length=MAX_FILTERS, description="feature → value, as the catalogue has them"
    )
    k: int
    exclude: list[ExternalId] = []
    filter: Filter | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.items) == (self.features is not None):
            raise ValueError("give either items or features")
        return self


class WhyNotBody(RecommendBody):
    """A request for recommendations, and an item that is not in their answer."""

    item_id: ExternalId


class BatchBody(Closed):
    """Several requests for recommendations, answered in their order."""

    model_config = ConfigDict(strict=True)

    requests: list[RecommendBody]


class EventBody(Closed):
    """Something that a user did."""

    model_config = ConfigDict(strict=True)

    event_id: ExternalId = Field(description="sent again under the same id, it counts once")
    user_id: ExternalId
    item_id: ExternalId
    timestamp: Moment = Field(None, description="seconds since 1970, or ISO 8601; now, if left out")
    event: str | None = Field(None, min_length=1, max_length=MAX_ID_LENGTH, description="what happened: view, buy, …")


class EventsBody(Closed):
    """One event, or several in `events`."""

    model_config = ConfigDict(strict=True)

    events: list[EventBody]

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, said: Any) -> Any:
        return said if not isinstance(said, Mapping) or "events" in said else {"events": [said]}


class ItemBody(Closed):
    """What is new of an item: its features, whether it may be recommended, or both."""

    model_config = ConfigDict(strict=True)

    features: dict[str, Any] | None = Field(
        None, max_length=MAX_FILTERS, description="feature → value, as the catalogue has them; they replace all others"
    )
    available: bool = Field(True, description="whether it may be recommended")


class RequestModels(NamedTuple):
    """The request models, bounded by one caller's limits."""

    user: type[UserQuery]
    similar: type[SimilarQuery]
    body: type[RecommendBody]
    similar_body: type[SimilarBody]
    why_not: type[WhyNotBody]
    batch: type[BatchBody]
    events: type[EventsBody]
    items: type[ItemsQuery]
    look_up: type[LookUpBody]
    item: type[ItemBody] = ItemBody
    attributes: type[AttributesQuery] = AttributesQuery
    map: type[MapQuery] = MapQuery


@lru_cache(maxsize=256)  # a set of limits a key, at most
def bounded(limits: Limits) -> RequestModels:
    """The request models with limits in them, so that they are checked, and documented, in one place."""
    k = (int, Field(min(10, limits.max_k), ge=1, le=limits.max_k, description="how many items to return"))
    exclude: Any = (
        list[ExternalId], Field([], max_length=limits.max_exclude, description="items to leave out"),
    )  # fmt: skip
    history: Any = (
        Annotated[list[HistoryItem], Field(max_length=limits.max_history), _events(limits.max_history)],
        Field([], description="what the user did, oldest first: item ids or objects"),
    )

    def model(base: type[_Model], name: str, **fields: Any) -> type[_Model]:
        return create_model(name, __base__=base, __doc__=base.__doc__, **fields)

    body = model(RecommendBody, "RecommendationRequest", k=k, exclude=exclude, history=history)
    few: Any = (list[ExternalId], Field([], max_length=limits.max_exclude, description="items that the answer is like"))
    return RequestModels(
        user=model(UserQuery, "BoundedUserQuery", k=k),
        similar=model(SimilarQuery, "BoundedSimilarQuery", k=k),
        body=body,
        similar_body=model(SimilarBody, "SimilarRequest", k=k, exclude=exclude, items=few),
        why_not=model(WhyNotBody, "WhyNotRequest", k=k, exclude=exclude, history=history),
        batch=model(
            BatchBody,
            "BatchRequest",
            requests=(list[body], Field(min_length=1, max_length=limits.max_batch)),  # type: ignore[valid-type]
        ),
        items=model(
            ItemsQuery,
            "BoundedItemsQuery",
            limit=(int, Field(min(10, limits.max_k), ge=1, le=limits.max_k, description="how many items to return")),
        ),
        look_up=model(
            LookUpBody,
            "LookUpRequest",
            items=(list[ExternalId], Field(min_length=1, max_length=limits.max_history, description="their ids")),
        ),
        events=model(
            EventsBody, "EventsRequest", events=(list[EventBody], Field(min_length=1, max_length=limits.max_events))
        ),
    )
