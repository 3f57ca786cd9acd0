"""What if: a user's history to edit, lists and reasons as tables, and what moved from one list to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd

from recsys.answers import Event
from recsys.bundle import Bundle
from recsys.explore.space import Space
from recsys.ids import Id


class Listed(Protocol):
    """An answer of a `Recommender` or of a `recsys.client`, best first; what is read of an item is the same in both."""

    @property
    def items(self) -> Sequence[Any]: ...


class Refused(Protocol):
    """What `why_not` says of an item, of a `Recommender` or of a `recsys.client`."""

    @property
    def item_id(self) -> Id: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def rank_among_eligible(self) -> int | None: ...
    @property
    def reasons(self) -> Sequence[Any]: ...


def history(bundle: Bundle, user_id: Id) -> list[Event]:
    """What a bundle knows that a user did, oldest first, as `Recommender.recommend` takes it for a history.

    Given as a history and not by their id, a user's profile is not used, if the bundle has profiles.

    Raises:
        LookupError: the bundle does not know the user.
    """
    user = bundle.user_ids.row(user_id)
    if user is None:
        known = ", ".join(map(repr, bundle.user_ids.array[:3].to_pylist()))
        raise LookupError(f"there is no user {user_id!r} in bundle {bundle.id}; it has {known} …")
    own = slice(int(bundle.user_offsets[user]), int(bundle.user_offsets[user + 1]))
    ids = bundle.item_ids.ids(bundle.history_items[own])
    times = [None] * len(ids) if bundle.history_times is None else bundle.history_times[own].tolist()
    names: list[str | None] = [None] * len(ids)
    if bundle.history_events is not None:
        names = [bundle.manifest.content["event_names"][code] for code in bundle.history_events[own].tolist()]
    return [Event(*one) for one in zip(ids, times, names, strict=True)]


def listed(answer: Listed, space: Space | None = None) -> pd.DataFrame:
    """An answer as a table.

    Args:
        answer: of a `Recommender`, or of a client.
        space: of its bundle, for titles; without it the attributes that the answer itself shows are columns.

    Returns:
        DataFrame indexed by rank, best first: item_id, title or attributes, score; and where reasons were asked for,
        before_rules (the rank before filter, seen items and rules) and because, such as "Mulan (1998) 61%, …".
    """
    titles = _titles(space)
    explained = any(item.rank_before_rules is not None for item in answer.items)
    rows = []
    for item in answer.items:
        row: dict[str, Any] = {"rank": item.rank, "item_id": item.item_id}
        row |= dict(item.attributes) if space is None else {"title": titles.get(item.item_id, str(item.item_id))}
        row["score"] = item.score
        if explained:
            row["before_rules"] = item.rank_before_rules
            row["because"] = ", ".join(
                f"{titles.get(pull.item_id, pull.item_id)} {pull.share:.0%}" for pull in item.because or ()
            )
        rows.append(row)
    return pd.DataFrame(rows).set_index("rank") if rows else pd.DataFrame()


def moved(before: Listed, after: Listed, space: Space | None = None) -> pd.DataFrame:
    """Two answers side by side.

    Args:
        before: the one list.
        after: the other.
        space: of their bundle, for titles.

    Returns:
        DataFrame, an item of either list a row, in the order of the later one and then of those that left: item_id,
        title, before and after (ranks; missing where it is not in the list), moved ("new", "gone", "+2" for two
        places up, "−1" for one down, "" for none).
    """
    titles = _titles(space)
    was, now = ({item.item_id: item.rank for item in answer.items} for answer in (before, after))
    rows = [
        {
            "item_id": item_id,
            "title": titles.get(item_id, str(item_id)),
            "before": was.get(item_id),
            "after": now.get(item_id),
            "moved": _moved(was.get(item_id), now.get(item_id)),
        }
        for item_id in [*now, *(one for one in was if one not in now)]
    ]
    names = ["item_id", "title", "before", "after", "moved"]
    return pd.DataFrame(rows, columns=names).astype({"before": "Int64", "after": "Int64"})


def reasons(asked: Sequence[Refused], space: Space | None = None) -> pd.DataFrame:
    """Why items are not in a list, a reason a row.

    Args:
        asked: what `why_not` said, of a `Recommender` or of a client, an item each.
        space: of its bundle, for titles.

    Returns:
        DataFrame: item_id, title, rank, rank_among_eligible, reason, detail. An item that is in the list after all has
        one row, and an empty reason.
    """
    titles = _titles(space)
    names = ["item_id", "title", "rank", "rank_among_eligible", "reason", "detail"]
    rows = [
        [one.item_id, titles.get(one.item_id, str(one.item_id)), one.rank, one.rank_among_eligible, reason, detail]
        for one in asked
        for reason, detail in [(why.reason, why.detail) for why in one.reasons] or [("", "it is in the list")]
    ]
    return pd.DataFrame(rows, columns=names).astype({"rank": "Int64", "rank_among_eligible": "Int64"})


def _moved(was: int | None, now: int | None) -> str:
    if was is None or now is None:
        return "new" if was is None else "gone"
    return "" if was == now else f"{was - now:+d}".replace("-", "−")


def _titles(space: Space | None) -> dict[Id, str]:
    return {} if space is None else dict(zip(space.ids.tolist(), space.titles.tolist(), strict=True))
