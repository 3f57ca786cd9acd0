"""What a configuration of `recsys tune` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.tune.space import Range

_OWN = ("out", "ckpt_path", "checkpoint")
_MEASURE = ("data.dataset", "data.split", "data.max_validation_queries")


@dataclass(frozen=True)
class Pruning:
    """When a trial is stopped early: below the median of the trials before it, after as many validations.

    Args:
        startup: how many trials must have finished first.
        warmup: the validation of a trial that is the first to be compared, counted from 1.
    """

    startup: int = 5
    warmup: int = 2

    def __post_init__(self) -> None:
        for name, value in (("startup", self.startup), ("warmup", self.warmup)):
            if value < 0:
                raise ValueError(f"pruning.{name} is {value}; give at least 0")


@dataclass(frozen=True)
class Settings:
    """The search's configuration.

    Args:
        fit: what a configuration of `recsys fit` would say, without `out`.
        space: what to search: a dotted key of `fit`, as `model.learning_rate`, and its range: `{values: [a, b]}`, whole
            numbers `{low: 32, high: 128, step: 32}`, or real numbers `{low: 0.001, high: 0.01, log: true}`.
        out: the folder of the search; where it holds one already, that is gone on with.
        trials: how many there shall be in all, pruned and failed ones included.
        hours: after which no other trial begins, counted from this start; without limit if left out.
        pruning: when a trial is stopped early; null lets all of them end.
        seed: of what is tried; how a trial trains is `fit.seed_everything` and `fit.data.seed`.
    """

    fit: dict[str, Any]
    space: dict[str, Range]
    out: Path
    trials: int = 50
    hours: float | None = None
    pruning: Pruning | None = field(default_factory=Pruning)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; give at least 1")
        if self.hours is not None and self.hours <= 0:
            raise ValueError(f"hours is {self.hours}; give more than 0, or leave it out")
        for key in set(_OWN) & set(self.fit):
            raise ValueError(f"fit.{key} is the search's to say; leave it out")
        if not self.space:
            raise ValueError("space is empty; give at least one key of fit and its range, as model.learning_rate")
        for key, given in self.space.items():
            self._check(key, given)

    def _check(self, key: str, given: Range) -> None:
        try:
            given.check()
        except ValueError as error:
            raise ValueError(f"space, {key}: {error}") from None
        for taken in (*_OWN, *_MEASURE):
            if key == taken or key.startswith(f"{taken}."):
                why = "the search's to say" if taken in _OWN else "what trials are measured on, one for all of them"
                raise ValueError(f"space, {key}: {taken} is {why}; leave it out")
        for other in self.space:
            if other.startswith(f"{key}."):
                raise ValueError(f"space, {other}: {key} holds it and is searched, too; leave one of them out")
