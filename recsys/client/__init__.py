"""A client of the service: typed questions and answers, with time-outs and retries; `Client`, or `AsyncClient`.

It is light: neither torch nor pandas nor pyarrow comes along. `pip install 'recsys[client]'` brings what it needs.
"""

try:
    import httpx as _httpx  # noqa: F401 -- asked for here, so that its absence is told in one place
except ImportError as error:
    raise ImportError("recsys.client needs httpx, which is not installed; run pip install 'recsys[client]'") from error

from .answers import (
    Accepted,
    Answer,
    Attribute,
    Fault,
    Item,
    ItemMap,
    ItemState,
    KnownItem,
    LiveBundle,
    Pull,
    Reason,
    RecommendationError,
    Unavailable,
    WhyNot,
)
from .calls import Event, Freshness, Query, Quota, SimilarQuery, UserEvent
from .clients import AsyncClient, Client

__all__ = [
    "Accepted",
    "Answer",
    "AsyncClient",
    "Attribute",
    "Client",
    "Event",
    "Fault",
    "Freshness",
    "Item",
    "ItemMap",
    "ItemState",
    "KnownItem",
    "LiveBundle",
    "Pull",
    "Query",
    "Quota",
    "Reason",
    "RecommendationError",
    "SimilarQuery",
    "Unavailable",
    "UserEvent",
    "WhyNot",
]
