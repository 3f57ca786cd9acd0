"""What a promotion changes for users: items and categories that gain or lose exposure, and a few users' lists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.ids import Id
from recsys.nightly.measures import Lists, grouping, overlaps

MOST = 10  # items a table
VALUES = 8  # values an attribute, the others are summed up
TAIL = 5  # of a history
NONE = "(none)"
OTHERS = "(others)"


def exposure(live: Bundle, candidate: Bundle, before: Lists, after: Lists, *, examples: int = 3) -> dict[str, Any]:
    """Live and candidate side by side over the same users, as JSON values.

    Args:
        live: the bundle that answers now.
        candidate: the one that would.
        before: what live recommends to some users.
        after: what the candidate recommends to them.
        examples: how many users to show: evenly from the one whose list changed most to the one whose changed least.

    Returns:
        `users`: how many; `gained` and `lost`: the items whose share of lists changed most, with `before` and `after`;
        `categories`: by attribute, the share of recommended slots that each value had and has; `examples`.
    """
    old, new = _shares(before), _shares(after)
    change = {item: new.get(item, 0.0) - old.get(item, 0.0) for item in {**old, **new}}
    order = sorted(change, key=lambda item: (change[item], str(item)))

    def told(item: Id) -> dict[str, Any]:
        known = {"known_before": live.item_ids.row(item) is not None}
        return said(candidate, live, item) | known | {"before": old.get(item, 0.0), "after": new.get(item, 0.0)}

    return {
        "users": len(before.users),
        "gained": [told(item) for item in reversed(order[-MOST:]) if change[item] > 0],
        "lost": [told(item) for item in order[:MOST] if change[item] < 0],
        "categories": _categories(live, candidate, before, after),
        "examples": _examples(live, candidate, before, after, examples),
    }


def said(bundle: Bundle, other: Bundle, item: Id) -> dict[str, Any]:
    """An item for people: its id, and what an answer would show of it, by whichever bundle knows it."""
    for one in (bundle, other):
        if (row := one.item_ids.row(item)) is not None:
            return {"id": item, "shown": one.attributes.shown(row)}
    return {"id": item, "shown": {}}


def _shares(lists: Lists) -> dict[Id, float]:
    """The share of lists that each item stands in."""
    counts = Counter(item for items in lists.items for item in items)
    return {item: count / len(lists.users) for item, count in counts.items()}


def _categories(live: Bundle, candidate: Bundle, before: Lists, after: Lists) -> dict[str, list[dict[str, Any]]]:
    """For each attribute that groups items, the values with the largest share of slots, the others summed up."""
    known = {feature.name for feature in grouping(live.schema.items)}
    names = [feature.name for feature in grouping(candidate.schema.items) if feature.name in known]
    slots_before, slots_after = _slots(live, before, names), _slots(candidate, after, names)
    found = {}
    for name in names:
        old, new = slots_before[name], slots_after[name]
        order = sorted({**old, **new}, key=lambda value: (-max(old.get(value, 0), new.get(value, 0)), value))
        bars: list[dict[str, Any]] = [
            {"value": value, "before": old.get(value, 0.0), "after": new.get(value, 0.0)} for value in order
        ]
        if rest := bars[VALUES:]:
            sums = {side: sum(bar[side] for bar in rest) for side in ("before", "after")}
            bars = [*bars[:VALUES], {"value": OTHERS, **sums}]
        found[name] = bars
    return found


def _slots(bundle: Bundle, lists: Lists, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By attribute and value, the share of recommended slots; a slot with several values counts for each in part."""
    rows = bundle.item_ids.rows([item for items in lists.items for item in items])
    distinct, counts = np.unique(rows, return_counts=True)
    frame = bundle.attributes.frame()  # without rows if nothing is declared
    found = {}
    for name in names:
        shares: dict[str, float] = defaultdict(float)
        for value, count in zip(frame[name].iloc[distinct], counts.tolist(), strict=True):
            values = [value] if isinstance(value, str) else list(value) if isinstance(value, np.ndarray) else []
            for one in values or [NONE]:
                shares[one] += count / max(1, len(values)) / len(rows)
        found[name] = dict(shares)
    return found


def _examples(live: Bundle, candidate: Bundle, before: Lists, after: Lists, number: int) -> list[dict[str, Any]]:
    listed = [at for at, (old, new) in enumerate(zip(before.items, after.items, strict=True)) if old or new]
    order = np.argsort(overlaps(before, after), kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, number if len(order) else 0).astype(np.int64))

    def told(items: Iterable[Id]) -> list[dict[str, Any]]:
        return [said(candidate, live, item) for item in items]

    found = []
    for place in chosen:
        at = listed[order[place]]
        row = candidate.user_ids.row(before.users[at])
        history = [] if row is None else candidate.item_ids.ids(candidate.seen(row)[-TAIL:])
        found.append(
            {
                "user": before.users[at],
                "history": told(history),
                "before": told(before.items[at]),
                "after": told(after.items[at]),
            }
        )
    return found
