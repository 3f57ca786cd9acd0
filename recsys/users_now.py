"""The vectors of users as they are now: what a bundle knows of them, then what happened since, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.data.batches import like_lengths
from recsys.live import LiveCatalogue
from recsys.model.serving import known_moments

_POSITIONS = 1 << 14  # of histories that go through the tower together, padding included


@dataclass(frozen=True, slots=True)
class Taken:
    """What one user took, oldest first: at most as much as the user tower reads.

    Attributes:
        user: their row, whose profile the tower reads; None for a user whom the bundle does not know.
        rows: int64 [n], rows of a `LiveCatalogue`.
        times: int64 [n], milliseconds since 1970, −1 where unknown; None, as are the events, where neither is told.
        events: int64 [n], event codes.
        asked: when their vector is asked for, milliseconds since 1970, which towers made with `query_time` are told; as
            soon as the newest interaction happened if None.
    """

    user: int | None
    rows: np.ndarray
    times: np.ndarray | None
    events: np.ndarray | None
    asked: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: np.ndarray) -> Taken:
        """Some of it: bool [n], or int places in ascending order."""
        times, events = (None if marks is None else marks[places] for marks in (self.times, self.events))
        return Taken(self.user, self.rows[places], times, events, self.asked)


def taken(
    live: LiveCatalogue,
    user: int | None,
    rows: np.ndarray | None = None,
    times: np.ndarray | None = None,
    events: np.ndarray | None = None,
    asked: int | None = None,
) -> Taken:
    """What a user took: what the bundle knows of it, then what happened since.

    What the bundle's history names stands there with the bundle's own vectors, as when the user's stored vector was
    made, even if those items were PUT with other features since.

    Args:
        live: the items.
        user: their row; None for a user whom the bundle does not know.
        rows: int64 [n], rows taken since, oldest first.
        times: int64 [n], milliseconds since 1970, −1 where unknown; None where neither times nor events are told.
        events: int64 [n], event codes; likewise.
        asked: as for `Taken`.
    """
    bundle, length = live.bundle, live.bundle.towers.architecture.max_length
    rows = np.empty(0, dtype=np.int64) if rows is None else rows[-length:]
    since = len(rows)
    times, events = (None if marks is None else marks[-length:] for marks in (times, events))
    if user is None or since == length:
        return Taken(user, rows, times, events, asked)
    times = np.full(since, -1, dtype=np.int64) if times is None else times
    events = np.zeros(since, dtype=np.int64) if events is None else events
    end = int(bundle.user_offsets[user + 1])
    known = slice(max(int(bundle.user_offsets[user]), end - (length - since)), end)
    before = bundle.history_items[known].astype(np.int64)
    when, what = bundle.history_times, bundle.history_events
    return Taken(
        user,
        np.concatenate([before, rows]),
        np.concatenate([np.full(len(before), -1, dtype=np.int64) if when is None else when[known], times]),
        np.concatenate([np.zeros(len(before), dtype=np.int64) if what is None else what[known], events]),
        asked,
    )


def user_vectors(live: LiveCatalogue, many: Sequence[Taken]) -> np.ndarray:
    """The user tower's vectors after what was taken, when they ask, float32 [B, D]; zeros for who took nothing.

    Args:
        live: the items.
        many: what each of B users took.
    """
    bundle, encoder = live.bundle, live.bundle.user_tower
    if len(many) == 1 and len(many[0]):
        one, profile = many[0], _profiles(live, many)
        if one.times is None:
            return encoder.untold(live.vectors(one.rows), profile, one.asked)[None]
        return encoder(live.vectors(one.rows), *_marks(live, one), profile, one.asked)[None]
    vectors = np.zeros((len(many), bundle.towers.architecture.dimension), dtype=np.float32)
    lengths = np.array([len(one) for one in many], dtype=np.int64)
    some = np.flatnonzero(lengths)
    for batch in like_lengths(lengths[some], _POSITIONS, None):
        vectors[some[batch]] = _embedded(live, [many[at] for at in some[batch]], lengths[some[batch]])
    return vectors


def _embedded(live: LiveCatalogue, many: Sequence[Taken], lengths: np.ndarray) -> np.ndarray:
    """As `user_vectors`, in one pass: float32 [b, D], of those who took something."""
    bundle, shape = live.bundle, (len(many), int(lengths.max()))
    items = np.zeros((*shape, bundle.towers.architecture.dimension), dtype=np.float32)
    times = None if bundle.history_times is None else np.zeros(shape, dtype=np.int64)
    events = None if bundle.history_events is None else np.zeros(shape, dtype=np.int64)
    for at, one in enumerate(many):
        items[at, : len(one)] = live.vectors(one.rows)
        for values, marks in zip((times, events), _marks(live, one), strict=True):
            if values is not None and marks is not None:
                values[at, : len(one)] = marks
    asked = None
    if times is not None:
        newest = times[np.arange(len(many)), lengths - 1]
        asked = np.array([at if one.asked is None else one.asked for one, at in zip(many, newest, strict=True)])
    return bundle.user_tower.many(items, times, events, _profiles(live, many), lengths, asked)


def _marks(live: LiveCatalogue, one: Taken) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Times and event codes [n], where the bundle's log has times and names events."""
    times = np.full(len(one), -1, dtype=np.int64) if one.times is None else one.times
    events = np.zeros(len(one), dtype=np.int64) if one.events is None else one.events
    return (
        None if live.bundle.history_times is None else known_moments(times, one.asked),
        None if live.bundle.history_events is None else events,
    )


def _profiles(live: LiveCatalogue, many: Sequence[Taken]) -> dict[str, np.ndarray]:
    """The encoded features of each user, feature name to [B, …]; nothing of a user whom the bundle does not know."""
    users = np.array([-1 if one.user is None else one.user for one in many])
    profiles = {}
    for name, values in live.bundle.profiles.items():
        profiles[name] = values[np.maximum(users, 0)]
        profiles[name][users < 0] = 0
    return profiles
