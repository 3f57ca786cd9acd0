"""What every online store keeps and promises: events and live items, durable once accepted, seen at once by all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

FORMAT_VERSION = 1
_MAX_EXACT = 1 << 53  # beyond it a double, by which Redis sorts, cannot tell neighbours apart


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Something that happened, as it was accepted.

    Attributes:
        event_id: unlike every other event's: what comes twice under one id counts once, as it came first.
        user_id, item_id: as text, whatever the bundle's ids are.
        timestamp: when it happened, milliseconds since 1970.
        event: what it was (view, cart, buy, …), if that was said.
    """

    event_id: str
    user_id: str
    item_id: str
    timestamp: int
    event: str | None = None


@dataclass(frozen=True, slots=True)
class LiveItem:
    """The newest word on an item since bundles were sealed.

    Attributes:
        item_id: as text.
        features: by name, as the schema declares them; None: only availability was said.
        available: whether it may be recommended.
        changed: when this was accepted, milliseconds since 1970.
    """

    item_id: str
    features: Mapping[str, Any] | None
    available: bool
    changed: int


class OnlineStoreError(Exception):
    """A store does not answer, or cannot keep what it is given; the message names its address and the fix."""


class OnlineStoreAway(OnlineStoreError):
    """A store does not answer now, for all one can tell only for a while."""


class OnlineStore(Protocol):
    """Where events and live items are kept. One is used from one event loop; many may share what is kept.

    Every method may raise OnlineStoreError; what was being added is then to be sent again, under the same event ids.

    Attributes:
        address: where it is, without a password.
    """

    address: str

    async def add_events(self, events: Sequence[StoredEvent]) -> list[bool]:
        """Keeps events, all of them or none; when it returns they outlive a kill of any process.

        Returns:
            Which were new. Those whose id is known, from before or from earlier in `events`, change nothing.

        Raises:
            ValueError: one cannot be kept by any store; the message names the value.
        """

    async def events_of(self, user_id: str, limit: int) -> list[StoredEvent]:
        """The newest `limit` events of a user by timestamp, oldest first; those of one moment as they were accepted."""

    async def put_item(self, item: LiveItem) -> None:
        """Keeps the newest word on an item, durably; `features` None leaves the features said earlier as they are.

        Raises:
            ValueError: its features are not JSON.
        """

    async def items_changed(self, after: int) -> tuple[list[LiveItem], int]:
        """Items by the order of their last change, numbered from 1.

        Args:
            after: the number given last time; 0 for every item.

        Returns:
            Items whose number is beyond `after`, and the newest number. If what was kept is gone and the store began
            anew, every item of the new one.
        """

    async def check(self) -> None:
        """Raises OnlineStoreError if the store would not keep what it is given, or is set to lose it later."""

    async def close(self) -> None:
        """Finishes what is under way and lets go."""


Row = tuple[int, str, str, str, int, str | None]
"""A number in the order of acceptance, event_id, user_id, item_id, timestamp, event."""


@dataclass(frozen=True)
class Accepted:
    """All events that a store accepted until now, to be read in the order of acceptance.

    Attributes:
        address: where they are kept, without a password.
        store: what tells this store from another one that may later stand at its address; None if there is none yet.
        newest: the number of the newest event; 0 if there are none. Numbers rise by one, from 1.
        rows: yields the events whose numbers are beyond the first argument and up to the second.
    """

    address: str
    store: str | None
    newest: int
    rows: Callable[[int, int], Iterator[list[Row]]]


def open_online(address: str) -> OnlineStore:
    """The store at an address; in a folder it is made if it is not there yet.

    Args:
        address: a folder, for processes of one machine; or `redis://…` or `rediss://…`, for any number of machines,
            with `?name=…` where several services share that Redis. `$NAME` is taken from the environment.

    Raises:
        OnlineStoreError: it cannot be opened, or the address cannot be used.
    """
    place = _place(address)
    if isinstance(place, Path):
        from recsys.online.embedded import EmbeddedStore

        return EmbeddedStore(place)
    return _redis_store().RedisStore(place)


def open_accepted(address: str) -> AbstractContextManager[Accepted]:
    """The events accepted at an address, for a job beside the service; nothing is written, nobody waits.

    Raises:
        OnlineStoreError: it cannot be read.
    """
    place = _place(address)
    if isinstance(place, Path):
        from recsys.online import embedded

        return embedded.accepted(place)
    return _redis_store().accepted(place)


def refuse_unkeepable(events: Sequence[StoredEvent]) -> None:
    """Raises ValueError for events that some store could not keep, so that they fail alone and before anything is."""
    for event in events:
        for name in ("event_id", "user_id", "item_id", "event"):
            text = getattr(event, name)
            if text is not None or name != "event":
                _refuse_text(text, name)
        if not isinstance(event.timestamp, int) or not -_MAX_EXACT <= event.timestamp <= _MAX_EXACT:
            raise ValueError(f"timestamp {event.timestamp!r} of event {event.event_id!r} is no time in milliseconds")


def features_json(item: LiveItem) -> str | None:
    """The features of an item as JSON; None if it says nothing of them.

    Raises:
        ValueError: they, or its id, cannot be kept.
    """
    _refuse_text(item.item_id, "item_id")
    if item.features is None:
        return None
    try:
        return json.dumps(dict(item.features), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the features of item {item.item_id!r} cannot be kept as JSON: {error}") from None


def _refuse_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} {text!r} is no text; write it as text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} {text!r} is no text: it holds half a surrogate pair") from None


def _place(address: str) -> Path | str:
    """The folder, or Redis's address, for which an address stands."""
    full = os.path.expandvars(address)
    scheme, found, _ = full.partition("://")
    if not found:
        return Path(full).expanduser()
    if scheme not in ("redis", "rediss"):
        raise OnlineStoreError(f"{scheme}:// is no online store; give a folder, or redis:// or rediss://")
    return full


def _redis_store() -> ModuleType:
    try:
        from recsys.online import redis_store
    except ImportError:
        raise OnlineStoreError("redis:// needs another package: pip install 'recsys[redis]'") from None
    return redis_store
