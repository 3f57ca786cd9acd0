"""Why: which items of a history pulled an answer's items up, and why an item is not in a user's list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from recsys.answers import Pull, Reason, WhyNot
from recsys.ids import Id
from recsys.index.exact import best
from recsys.live import LiveCatalogue
from recsys.rules import Rules
from recsys.users_now import Taken, user_vectors

NEWEST = 50  # entries of a history that are asked about; what stands before them is read, but pulls nothing
_ROUNDING = 1e-6  # of the lengths of both vectors: a change of a score that is smaller is none


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Asked:
    """A list that was answered, and what was asked for; rows are those of the live catalogue.

    Attributes:
        listed: int64 [n], rows of the items returned, best first.
        k: how many were asked for.
        query: float32 [D], the user's vector; None where the list is that of the popular.
        listed_by: the rows, int64 [n], that would have been returned under other rules.
        seen: int64 [s], rows of what the user took, if that keeps it out of the list.
        seen_at: int64 [s], when, milliseconds since 1970, −1 where unknown.
        excluded: int64 [e], rows that the request excludes.
        filter: what the items must pass.
        rules: what the list was arranged by.
    """

    listed: np.ndarray
    k: int
    query: np.ndarray | None
    listed_by: Callable[[Rules], np.ndarray]
    seen: np.ndarray = field(default_factory=_nothing)
    seen_at: np.ndarray = field(default_factory=_nothing)
    excluded: np.ndarray = field(default_factory=_nothing)
    filter: Mapping[str, Any] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)


def pulls(live: LiveCatalogue, taken: Taken, targets: np.ndarray, *, most: int = 3) -> list[list[Pull]]:
    """What in a history pulled each of some items up most.

    The pull of an entry h of the history on an item i is what i's score loses without it: q·i − q′·i, where q is the
    user's vector and q′ that of the same history without h. The later entries move up one place, and the gap across
    is that between h's neighbours; nothing older comes in for h where the history is longer than what the tower reads.
    An entry that pushes i down pulls nothing. An item's share is the sum of the pulls of its entries, by the sum of all
    entries' pulls. Only entry there is: its share is 1, since without it there is no user to compare with.

    All shortened histories go through the tower together.

    Args:
        live: the items.
        taken: the history; only its newest 50 entries are asked about.
        targets: float32 [n, D], the vectors of the items.
        most: how many items of the history to name for each.

    Returns:
        For each of the n items up to `most` items of the history, the strongest first, and of equally strong ones the
        newest first; none where no entry pulls it up, or there is no history.
    """
    length = len(taken)
    if length == 0:
        return [[] for _ in targets]
    if length == 1:
        return [[Pull(live.id(int(taken.rows[0])), 1.0)] for _ in targets]
    places = np.arange(length)
    asked = places[-NEWEST:][::-1]  # the newest first, for ties
    vectors = user_vectors(live, [taken, *(taken.take(places != place) for place in asked)]).astype(np.float64)
    pull = (vectors[0] - vectors[1:]) @ targets.T.astype(np.float64)
    pull[pull <= _ROUNDING * np.linalg.norm(vectors[0]) * np.linalg.norm(targets, axis=1)] = 0
    ids = [live.id(int(row)) for row in taken.rows[asked]]
    return [_strongest(ids, of_one, most) for of_one in pull.T]


def _strongest(ids: Sequence[Id], pull: np.ndarray, most: int) -> list[Pull]:
    """The items that pull most, by the pull [n] of each entry, the newest entry first."""
    of_item: dict[Id, float] = {}
    for item_id, strength in zip(ids, pull.tolist(), strict=True):
        of_item[item_id] = of_item.get(item_id, 0.0) + strength
    total = sum(of_item.values())
    ordered = sorted(of_item.items(), key=lambda one: -one[1])
    return [Pull(item_id, strength / total) for item_id, strength in ordered[:most] if strength > 0]


def rank_of(scores: np.ndarray, row: int, score: float) -> int:
    """The place, from 1 on, that an item has or would have among others; ties by row.

    Args:
        scores: float [R], −inf for what takes no place.
        row: the item's; what stands there among the scores is not looked at.
        score: the item's.
    """
    better = np.count_nonzero(scores > score) + np.count_nonzero(scores[:row] == score)
    return 1 + int(better) - int(scores[row] > score)


def why_not(live: LiveCatalogue, item_id: Id, asked: Asked) -> WhyNot:
    """Why an item is not in a list: every reason there is, and the places that it has by an exact search.

    Raises:
        FilterError: the filter cannot be used.
    """
    row = live.row(item_id)
    if row is None:
        bundle = live.bundle.id
        said = f"there is no item {item_id!r} in bundle {bundle}, and none was PUT since it was sealed"
        return WhyNot(item_id, False, None, None, (Reason("unknown", said),))
    if asked.query is None:
        score, scores = live.popularity_of(np.array([row]))[0], live.popularity.copy()
    else:
        scores = live.scores(asked.query)
        score = scores[row] if live.available(row) else asked.query @ live.vectors(np.array([row]))[0]
    rank = rank_of(scores, row, float(score))
    barred = list(_bars(live, row, asked))
    allowed = live.eligible(asked.filter) if asked.filter else np.ones(live.num_rows, dtype=bool)
    for rows in (live.now(asked.seen), asked.excluded):
        allowed[rows[rows >= 0]] = False
    scores[~allowed] = -np.inf
    place = rank_of(scores, row, float(score))
    if row in asked.listed:
        return WhyNot(item_id, True, rank, place)
    reasons = barred
    if place > asked.k:
        scores[row] = -np.inf
        bar = best(scores, asked.k)[0][-1]
        words = "the popularity" if asked.query is None else "the score"
        said = f"ranked {_nth(place)} of those that may be returned: {words} {score:.4g}, the {_nth(asked.k)} {bar:.4g}"
        reasons = [*barred, Reason("ranked", said)]
    if not barred:
        reasons += _rules(live, row, asked, place)
    return WhyNot(item_id, False, rank, place, tuple(reasons))


def _bars(live: LiveCatalogue, row: int, asked: Asked) -> Iterator[Reason]:
    """Why an item may not be returned at all."""
    if not live.available(row):
        yield Reason("unavailable", "it is not available; PUT it with available true to have it back")
    if (at := np.flatnonzero(live.now(asked.seen) == row)).size:
        times = asked.seen_at[at] if len(asked.seen_at) else np.array([-1])
        when = f" on {_moment(times.max())}" if times.max() >= 0 else ""
        yield Reason("seen", f"the user took it{when}; include_seen returns such items, too")
    if row in asked.excluded:
        yield Reason("excluded", "the request excludes it")
    for name, clause in asked.filter.items():
        given = clause if isinstance(clause, Mapping) else {"in" if isinstance(clause, list) else "equals": clause}
        for key, value in given.items():
            if not live.eligible({name: {key: value}})[row]:
                wanted = f"{name} {key} {json.dumps(value, ensure_ascii=False, default=str)}"
                yield Reason("filtered", f"the filter wants {wanted}; {_own(live, name, row)}")


def _own(live: LiveCatalogue, name: str, row: int) -> str:
    """What an item has of an attribute that can be filtered by, in words."""
    kind = live.bundle.attributes.kind(name)
    if kind in ("categorical", "multi"):
        words = live.values(name, np.array([row]))[0]
        shown = json.dumps(words[0] if kind == "categorical" and words else words, ensure_ascii=False)
        return f"its own is {shown}" if words else f"it has no {name}"
    number = float(live.numbers(name)[row])
    if np.isnan(number):
        return f"it has no {name}"
    return f"its own is {_moment(number) if kind == 'timestamp' else f'{number:.15g}'}"


def _rules(live: LiveCatalogue, row: int, asked: Asked, place: int) -> Iterator[Reason]:
    """What the rules have to do with an item that may be returned and was not.

    A cap that is full of others keeps an item out, whatever its place. For the rest the list is arranged again without
    each rule: what brings the item back displaced it.
    """
    rules, without, found = asked.rules, {}, False
    before = row in (asked.listed_by(Rules()) if rules else asked.listed)
    for cap in rules.caps:
        listed = live.values(cap.attribute, asked.listed)
        for value in live.values(cap.attribute, np.array([row]))[0]:
            if sum(value in words for words in listed) >= cap.most:
                found = True
                said = f"at most {cap.most} of {cap.attribute} {json.dumps(value, ensure_ascii=False)} are wanted"
                yield Reason("rules", f"{said}, and as many are in the list")
    for at, quota in enumerate(rules.quotas):
        left = tuple(one for place, one in enumerate(rules.quotas) if place != at)
        words = f"at least {quota.least} with {json.dumps(dict(quota.filter), ensure_ascii=False, default=str)}"
        without[words] = replace(rules, quotas=left)
    if rules.diversity:
        without["diversity"] = replace(rules, diversity=0.0)
    if rules.freshness:
        without["freshness"] = replace(rules, freshness=None)
    for words, others in without.items():
        if row in asked.listed_by(others):
            found = True
            yield Reason("rules", f"displaced by a rule: {words}; without it, it is in the list")
    if before and not found:
        yield Reason("rules", "displaced by the rules together; without any of them, it is in the list")
    if not before and place <= asked.k:
        kind = live.bundle.index.kind
        said = f"exact search ranks it {_nth(place)}; the index ({kind}) is approximate, and did not"
        yield Reason("missed", said)


def _moment(milliseconds: float) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _nth(place: int) -> str:
    ending = "th" if 10 < place % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
