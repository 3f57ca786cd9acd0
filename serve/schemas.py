"""The HTTP contract: what a request may hold and what an answer holds. Validation and documentation both read this."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from recsys.ids import Id

if TYPE_CHECKING:
    from recsys.recommender import Answer

JSON_TYPE = "application/json"
MAX_ID_LENGTH = 512
MAX_FILTERS = 32
LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z: later ones are another unit, or a mistake


class Closed(BaseModel):
    """A model whose unknown keys are errors that name the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, said: Any) -> Any:
        if isinstance(said, Mapping):
            for key in said:
                if key not in cls.model_fields:
                    name, valid = str(key)[:80], list(cls.model_fields)
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


ExternalId = Annotated[Id, BeforeValidator(_id, json_schema_input_type=str | int)]


class HistoryEntry(Closed):
    """One thing the user did."""

    item_id: ExternalId
    timestamp: Annotated[int | None, BeforeValidator(_milliseconds, json_schema_input_type=float | str | None)] = Field(
        None, description="seconds since 1970, or ISO 8601 (UTC where it names no zone)"
    )
    event: str | None = Field(None, max_length=MAX_ID_LENGTH, description="what happened: view, cart, buy, …")


HistoryItem = Annotated[HistoryEntry, BeforeValidator(_entry, json_schema_input_type=str | int | HistoryEntry)]


class SimilarQuery(Closed):
    """What the address of similar items may carry after its question mark."""

    k: int


class UserQuery(SimilarQuery):
    """What the address of a user's recommendations may carry after its question mark."""

    include_seen: bool = Field(False, description="whether items the user has seen may come back")


class RecommendBody(Closed):
    """A request for recommendations: a user, a history, both, or neither (popular items)."""

    model_config = ConfigDict(strict=True)

    user_id: ExternalId | None = None
    history: list[HistoryItem] = []
    k: int
    exclude: list[ExternalId] = []
    include_seen: bool = Field(False, description="whether items of the history and seen ones may come back")
    filter: dict[str, Any] | None = Field(
        None,
        max_length=MAX_FILTERS,
        description="attribute → clause: a value, a list of values of which any will do, "
        "or an object of equals, in, contains, gt, gte, lt, lte and not",
    )


class RequestModels(NamedTuple):
    """The request models, bounded by one service's limits."""

    user: type[UserQuery]
    similar: type[SimilarQuery]
    body: type[RecommendBody]


def bounded(limits: Limits) -> RequestModels:
    """The request models with a service's limits in them, so that they are checked, and documented, in one place."""
    default_k = min(10, limits.max_k)

    class BoundedSimilarQuery(SimilarQuery):
        k: int = Field(default_k, ge=1, le=limits.max_k, description="how many items to return")

    class BoundedUserQuery(UserQuery):
        k: int = Field(default_k, ge=1, le=limits.max_k, description="how many items to return")

    class RecommendationRequest(RecommendBody):
        k: int = Field(default_k, ge=1, le=limits.max_k, description="how many items to return")
        history: list[HistoryItem] = Field(
            [], max_length=limits.max_history, description="what the user did, oldest first: item ids or objects"
        )
        exclude: list[ExternalId] = Field([], max_length=limits.max_exclude, description="items to leave out")

    RecommendationRequest.__doc__ = RecommendBody.__doc__
    return RequestModels(BoundedUserQuery, BoundedSimilarQuery, RecommendationRequest)


class RecommendedItem(BaseModel):
    """One item of an answer."""

    item_id: str | int
    score: float = Field(description="inner product of the query's and the item's vector, or the popularity")
    rank: int = Field(ge=1)
    attributes: dict[str, Any] = Field(description="the features that the schema shows")


class AnswerBody(BaseModel):
    """What was found, best first, and which bundle found it."""

    bundle: str
    strategy: Literal["personalised", "history", "popular", "similar"]
    items: list[RecommendedItem]
    unknown_items: list[str | int] = Field(
        [], description="ids of the history this bundle does not know; absent if none"
    )


def encode(answer: Answer) -> bytes:
    """An answer as the JSON that `AnswerBody` describes, without its cost: `unknown_items` only where there are any."""
    said: dict[str, Any] = {"bundle": answer.bundle, "strategy": answer.strategy, "items": answer.items}
    if answer.unknown_items:
        said["unknown_items"] = answer.unknown_items
    return orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)


class BundleBody(BaseModel):
    """The bundle in use."""

    bundle: str
    about: dict[str, Any] = Field(description="what its manifest says: model, sizes, index, evaluation, parents")


class State(BaseModel):
    """Whether the service is up, or ready."""

    status: Literal["ok"]


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
