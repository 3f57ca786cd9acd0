"""Splits: where each user's training interactions end, and the queries that the held-out ones are predicted from."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np

from recsys.data.dataset import Dataset

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True)
class Cuts:
    """A split of a dataset. Every user's interactions are, in order: train, validation, test.

    Attributes:
        validation_start: int64 [num_users], position of the user's first interaction that is not for training.
        test_start: int64 [num_users], position of the user's first test interaction.
        grouped: whether a user's held-out interactions are one query with many targets (sets), rather than one query
            each, predicted from all before it.
    """

    validation_start: np.ndarray
    test_start: np.ndarray
    grouped: bool = False


class Split(Protocol):
    """Cuts a dataset into train, validation and test."""

    def cut(self, dataset: Dataset) -> Cuts: ...


@dataclass(frozen=True)
class TimeSplit:
    """Cuts the whole log at two moments, so that nothing is learnt from the future.

    Each period is said in one of three ways: as a share of the interactions (0.1); as the ISO 8601 moment at which it
    starts ("2026-01-31T00:00"); or as a span counted back ("36h", "7d", "2w"), so that a nightly configuration needs
    no date. A span counts back from the end of its period, which is not in it: for test the millisecond after the
    newest interaction, for validation the moment at which test starts. So of a log that knows only days, "1d" is the
    last day alone.

    Args:
        validation: the validation period.
        test: the test period, the newest one.

    Raises:
        ValueError: the text is neither a span nor a moment; the message names it.
    """

    validation: float | str = 0.1
    test: float | str = 0.1

    def __post_init__(self) -> None:
        for name, said in (("validation", self.validation), ("test", self.test)):
            if isinstance(said, str) and _span(said) is None:
                try:
                    datetime.fromisoformat(said)
                except ValueError:
                    raise ValueError(
                        f"{name} cannot be {said!r}; give a share of the interactions (0.1), a span counted back "
                        "('36h', '7d', '2w') or the ISO 8601 moment at which it starts ('2026-01-31T00:00')"
                    ) from None

    def cut(self, dataset: Dataset) -> Cuts:
        if dataset.times is None:
            raise ValueError(f"{dataset.path} has no times to cut at; declare a time column or use LeaveOneOut")
        both = isinstance(self.validation, float) and isinstance(self.test, float)
        if both and not 0 <= self.validation + self.test < 1:  # type: ignore[operator]
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on; lower them")
        times = np.asarray(dataset.times)
        test = self._moment(times, self.test, 0.0, int(times.max(initial=0)) + 1)
        share = self.test if isinstance(self.test, float) else float(np.mean(times >= test))
        validation = self._moment(times, self.validation, share, test)
        if isinstance(self.validation, float):
            validation = min(validation, test)  # the moment of the first interaction of the test period may be later
        if validation > test:
            raise ValueError(f"validation starts at {self.validation}, after test at {self.test}; swap them")
        spans = [said for said in (self.validation, self.test) if isinstance(said, str) and _span(said) is not None]
        if spans and len(times) and validation <= times.min():
            raise ValueError(
                f"validation {self.validation} and test {self.test} reach back to the oldest interaction of "
                f"{dataset.path} and leave nothing to train on; shorten {' and '.join(spans)}"
            )
        return Cuts(_first_not(dataset, times < validation), _first_not(dataset, times < test))

    @staticmethod
    def _moment(times: np.ndarray, said: float | str, newer: float, end: int) -> int:
        """Where a period starts, in milliseconds; `newer` is the share after it, `end` the first moment after it."""
        if isinstance(said, str):
            if (span := _span(said)) is not None:
                return end - span
            moment = datetime.fromisoformat(said)
            return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        after = round(len(times) * (said + newer))  # interactions at or after the moment
        if after == 0 or len(times) == 0:
            return int(times.max(initial=0)) + 1
        return int(np.partition(times, len(times) - after)[len(times) - after])


def _span(said: str) -> int | None:
    """The milliseconds of a span such as "36h"; None if the text is none."""
    found = re.fullmatch(r"(\d{1,6})([hdw])", said, re.ASCII)
    return int(found[1]) * {"h": 1, "d": 24, "w": 7 * 24}[found[2]] * 3_600_000 if found else None


@dataclass(frozen=True)
class LeaveOneOut:
    """Holds out each user's last interaction for test and the one before it for validation.

    Args:
        min_history: users with fewer interactions left to train on keep all of theirs in training.
    """

    min_history: int = 1

    def cut(self, dataset: Dataset) -> Cuts:
        start, end = dataset.user_offsets[:-1], dataset.user_offsets[1:]
        held_out = np.where(end - start >= self.min_history + 2, 1, 0)
        return Cuts(validation_start=end - 2 * held_out, test_start=end - held_out)


@dataclass(frozen=True)
class GivenSplit:
    """Takes the split that the log's own `part` column says.

    Args:
        grouped: whether a user's held-out interactions are one set with many right answers.
    """

    grouped: bool = True

    def cut(self, dataset: Dataset) -> Cuts:
        if dataset.parts is None:
            raise ValueError(f"{dataset.path} says no split; declare interactions.part in the schema and prepare again")
        parts = np.asarray(dataset.parts)
        return Cuts(_first_not(dataset, parts < 1), _first_not(dataset, parts < 2), self.grouped)


def described(split: TimeSplit | LeaveOneOut | GivenSplit) -> dict[str, Any]:
    """A split as plain JSON values, so that a checkpoint remembers it; `split_of` reads it back."""
    return {"kind": type(split).__name__, **asdict(split)}


def split_of(said: dict[str, Any]) -> TimeSplit | LeaveOneOut | GivenSplit:
    """The split that `described` wrote."""
    kinds = {cls.__name__: cls for cls in (TimeSplit, LeaveOneOut, GivenSplit)}
    options = {key: value for key, value in said.items() if key != "kind"}
    return kinds[said["kind"]](**options)


@dataclass(frozen=True)
class Queries:
    """Questions with known answers: what does this user take next?

    Attributes:
        user: int64 [num_queries], user rows.
        end: int64 [num_queries]; the history is interactions `user_offsets[user]` to `end`, exclusive.
        target_offsets: int64 [num_queries + 1]; query q's right answers stand between offsets q and q + 1.
        targets: int64 [num_targets], item rows.
    """

    user: np.ndarray
    end: np.ndarray
    target_offsets: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: np.ndarray) -> Queries:
        """The queries at the given indices [n]."""
        counts = np.diff(self.target_offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        targets = self.targets[np.repeat(self.target_offsets[:-1][chosen], counts) + within]
        return Queries(self.user[chosen], self.end[chosen], offsets, targets)


def queries_of(dataset: Dataset, cuts: Cuts, part: HeldOut) -> Queries:
    """The queries that a part of the split asks; users with nothing in it or nothing before it ask none.

    A target that the user took before counts too; whoever leaves out what was seen drops it and says so.
    """
    start = cuts.validation_start if part == "validation" else cuts.test_start
    end = cuts.test_start if part == "validation" else dataset.user_offsets[1:]
    if cuts.grouped:
        user = np.flatnonzero((end > start) & (start > dataset.user_offsets[:-1]))
        counts, history_end = (end - start)[user], start[user]
        target_offsets = np.concatenate([[0], np.cumsum(counts)])
    else:
        counts = end - start
        user = np.repeat(np.arange(dataset.num_users), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        history_end = np.repeat(start, counts) + within
        asked = history_end > dataset.user_offsets[user]
        user, history_end = user[asked], history_end[asked]
        counts = np.ones(len(user), dtype=np.int64)
        target_offsets = np.arange(len(user) + 1)
    within = np.arange(counts.sum()) - np.repeat(target_offsets[:-1], counts)
    targets = np.asarray(dataset.items)[np.repeat(history_end, counts) + within].astype(np.int64)
    return Queries(user.astype(np.int64), history_end.astype(np.int64), target_offsets.astype(np.int64), targets)


def everyone(dataset: Dataset) -> Queries:
    """One query a user with a history, after all that is known of them, without an answer."""
    ends = dataset.user_offsets[1:]
    user = np.flatnonzero(ends > dataset.user_offsets[:-1])
    return Queries(user, ends[user], np.zeros(len(user) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))


def unseen_targets(dataset: Dataset, queries: Queries) -> tuple[Queries, int]:
    """Drops the targets that stand in their query's own history, since the service leaves seen items out.

    Returns:
        The queries that still have a target, and the number of targets dropped.
    """
    query = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    keep = ~seen_before(dataset, queries)
    left = np.bincount(query[keep], minlength=len(queries))
    asked = left > 0
    kept = Queries(
        queries.user[asked], queries.end[asked], np.concatenate([[0], np.cumsum(left[asked])]), queries.targets[keep]
    )
    return kept, int(len(keep) - keep.sum())


def seen_before(dataset: Dataset, queries: Queries) -> np.ndarray:
    """bool [num_targets]: whether the user took the target before the query."""
    query = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    # Positions rise within a pair, so the first of a pair is where the user first took the item.
    pairs, first = np.unique(dataset.user_rows.astype(np.int64) * dataset.num_items + dataset.items, return_index=True)
    place = np.searchsorted(pairs, queries.user[query] * dataset.num_items + queries.targets)
    seen: np.ndarray = first[place] < queries.end[query]
    return seen


def train_counts(dataset: Dataset, cuts: Cuts) -> np.ndarray:
    """int64 [num_items]: how often each item occurs in training; 0 is an item that training never saw."""
    return np.bincount(np.asarray(dataset.items)[in_training(dataset, cuts)], minlength=dataset.num_items)


def in_training(dataset: Dataset, cuts: Cuts) -> np.ndarray:
    """bool [num_interactions]: which interactions are for training."""
    lengths = np.diff(dataset.user_offsets)
    return np.arange(len(dataset)) < np.repeat(cuts.validation_start, lengths)


def _first_not(dataset: Dataset, holds: np.ndarray) -> np.ndarray:
    """Where each user's interactions stop to be those of which `holds` [num_interactions] is true: they come first."""
    earlier = np.concatenate([[0], np.cumsum(holds)])
    start, end = dataset.user_offsets[:-1], dataset.user_offsets[1:]
    return start + (earlier[end] - earlier[start])
