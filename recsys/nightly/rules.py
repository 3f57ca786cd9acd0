"""What no answer may do, checked on a sample through the real Recommender and by other code than its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recsys.bundle import Bundle
from recsys.data.schema import Feature
from recsys.ids import Id
from recsys.nightly.measures import sampled_users
from recsys.recommender import Answer, Recommender

K = 10
USERS = 200  # asked without a filter, and with each in turn
_ITEMS = 20  # asked for what is similar


def rules(bundle: Bundle, *, users: int = USERS, k: int = K, seed: int = 0) -> list[str]:
    """Every violation found, one line each: nothing seen comes back, filters hold, k are given whenever k may be,
    scores descend, nothing comes twice, and no item is similar to itself.

    Filters are checked on the items' table row by row, in plain Python, not by `Attributes`.

    Args:
        bundle: an opened bundle.
        users: how many are drawn.
        k: how many items are asked for.
        seed: of the draw.
    """
    recommender = Recommender(bundle)
    asked = [*sampled_users(bundle, size=users, seed=seed), None]  # None: somebody of whom nothing is known
    clauses: list[tuple[dict[str, Any], np.ndarray]] = [({}, np.ones(len(bundle.item_ids), dtype=np.bool_))]
    clauses += _clauses(bundle, np.random.default_rng(seed))
    found = []
    for at, user in enumerate(asked):
        row = None if user is None else bundle.user_ids.row(user)
        seen = set() if row is None else set(bundle.item_ids.ids(bundle.seen(row)))
        # Everybody without a filter, and each with one of the filters, so that the cost does not grow with attributes.
        for filter, passing in (clauses[0], *clauses[1 + at % max(1, len(clauses) - 1) :][:1]):
            answer = recommender.recommend(user_id=user, k=k, filter=filter)
            who = f"user {user!r}" + (f" with filter {filter}" if filter else "")
            found += [f"{who}: {what}" for what in _wrong(bundle, answer, seen, passing, k)]
    for row in np.unique(np.linspace(0, len(bundle.item_ids) - 1, _ITEMS).astype(np.int64)):
        item = bundle.item_ids.id(int(row))
        answer = recommender.similar(item, k=k)
        found += [f"similar to {item!r}: {what}" for what in _wrong(bundle, answer, {item}, clauses[0][1], k)]
    return found


def _wrong(bundle: Bundle, answer: Answer, banned: set[Id], passing: np.ndarray, k: int) -> Iterator[str]:
    """What is wrong with an answer when `banned` items may not be in it and only `passing` bool [N] may."""
    items = [item.item_id for item in answer.items]
    rows = bundle.item_ids.rows(items)
    if back := [item for item in items if item in banned]:
        yield f"{back[0]!r} was seen and came back"
    if len(set(items)) < len(items):
        yield f"{next(item for item in items if items.count(item) > 1)!r} came twice"
    if failing := [item for item, row in zip(items, rows, strict=True) if not passing[row]]:
        yield f"{failing[0]!r} does not pass the filter"
    eligible = int(passing.sum()) - int(passing[bundle.item_ids.rows(sorted(banned, key=str))].sum())
    if len(items) != min(k, eligible):
        yield f"{len(items)} items came, {min(k, eligible)} may be returned"
    scores = [item.score for item in answer.items]
    if any(after > before for before, after in itertools.pairwise(scores)):
        yield f"scores do not descend: {scores}"


def _clauses(bundle: Bundle, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Filters that the schema offers, two values an attribute, and which items pass each, bool [N]."""
    frame = bundle.items()
    for feature in bundle.schema.items.features if bundle.schema.items else ():
        if not feature.filterable or feature.name not in frame:
            continue
        values = [_plain(value) for value in frame[feature.name]]
        present = [value for value in values if value not in (None, [])]
        for at in rng.integers(0, len(present), 2) if present else ():
            clause, holds = _clause(feature, present[at], bool(rng.integers(2)))
            passing = [value not in (None, []) and holds(value) for value in values]
            yield {feature.name: clause}, np.array(passing, dtype=np.bool_)


def _clause(feature: Feature, value: Any, negated: bool) -> tuple[Any, Callable[[Any], bool]]:
    """A clause that an item with this value passes, and the same as a function of an item's value."""
    if feature.kind == "multi":
        return {"contains": [value[0]]}, lambda other: value[0] in other
    if feature.kind == "categorical":
        return value, lambda other: other == value
    if feature.kind == "timestamp":  # filters speak in seconds, the table in milliseconds
        second = int(value) // 1000
        return {"gte": second}, lambda other: other >= second * 1000
    if negated:
        return {"lt": value}, lambda other: other < value
    return {"gte": value}, lambda other: other >= value


def _plain(value: Any) -> Any:
    """A table's value as Python's own: None where there is none."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return [str(one) for one in value]
    return None if value is None or pd.isna(value) else value
