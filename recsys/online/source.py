"""Accepted events read back as a log, for `recsys prepare` and the nightly job, while the service goes on writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.data.news import Mark, News
from recsys.data.schema import nearest
from recsys.data.sources import Batch, SourceError
from recsys.online.store import Accepted, OnlineStoreError, open_accepted

_TYPES = {  # in the order of a Row
    "event_id": pa.string(),
    "user_id": pa.string(),
    "item_id": pa.string(),
    # Not a number, so that it is read right whatever unit the schema declares for the rest of the log.
    "timestamp": pa.timestamp("ms", "UTC"),
    "event": pa.string(),
}


@dataclass(frozen=True)
class Events:
    """The events that the service accepted, in the order of acceptance.

    Its columns are event_id, user_id, item_id, timestamp and event.

    Args:
        address: the service's online store: a folder, or `redis://…`; `$NAME` in it is taken from the environment.
        names: how the schema calls a column that it calls otherwise, such as {user_id: customer, timestamp: at}.
        unsaid: what to call the event of those that did not say; without it they have none, and a schema that
            declares an event puts them aside.
    """

    address: str
    names: dict[str, str] | None = None
    unsaid: str | None = None

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        with _opened(self.address) as accepted:
            yield from self._batches(accepted, 0, accepted.newest, columns)

    def since(self, mark: Mark | None) -> News:
        """What was accepted after the mark, up to this moment."""
        with _opened(self.address) as accepted:
            store, newest = accepted.store, accepted.newest
        whole, after = None, 0
        if mark is None:
            whole = "nothing was read before"
        elif mark["store"] not in (None, store):  # None: there was no store yet, so all of this one is new
            whole = f"{accepted.address} is not the store of before"
        else:
            after = mark["number"]

        def batches(columns: Sequence[str]) -> Iterator[Batch]:
            with _opened(self.address) as accepted:
                if accepted.store != store:
                    raise SourceError(f"{accepted.address} was made anew while it was read; start again")
                yield from self._batches(accepted, after, newest, columns)

        return News(batches, {"store": store, "number": newest}, whole)

    def _batches(self, accepted: Accepted, after: int, upto: int, columns: Sequence[str]) -> Iterator[Batch]:
        names = self.names or {}
        for name in names:
            if name not in _TYPES:
                raise SourceError(f"names: there is no column {name!r} of events{nearest(name, list(_TYPES))}")
        place = {names.get(name, name): number for number, name in enumerate(_TYPES, start=1)}
        for name in columns:
            if name not in place:
                raise SourceError(f"events of {accepted.address} have no column {name!r}{nearest(name, list(place))}")
        for rows in accepted.rows(after, upto):
            values: list[Sequence[object]] = list(zip(*rows, strict=True))
            if self.unsaid is not None:
                values[-1] = [self.unsaid if event is None else event for event in values[-1]]
            numbers = np.array(values[0], dtype=np.int64)
            types = [None, *_TYPES.values()]
            arrays = [pa.array(values[place[name]], type=types[place[name]]) for name in columns]
            yield Batch(accepted.address, pa.RecordBatch.from_arrays(arrays, names=list(columns)), numbers)


@contextmanager
def _opened(address: str) -> Iterator[Accepted]:
    try:
        with open_accepted(address) as accepted:
            yield accepted
    except OnlineStoreError as error:
        raise SourceError(str(error)) from None
