"""What may be searched: choices, whole numbers and real numbers, told from each other by the keys they give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True)
class Choices:
    """One of some values.

    Args:
        values: anything that the key may be set to, a class with its arguments included.
    """

    values: list[Any]

    def check(self) -> None:
        """Raises ValueError if there is nothing to choose from, or the same twice."""
        if not self.values:
            raise ValueError("values is empty; give at least one")
        twice = sorted(name for name in self._names() if self._names().count(name) > 1)
        if twice:
            raise ValueError(f"values has {twice[0]} twice; give it once")

    def ends(self) -> list[Any]:
        """What a configuration must take for it to take them all."""
        return self.values

    def suggest(self, trial: Trial, key: str) -> Any:
        names = self._names()
        return self.values[names.index(str(trial.suggest_categorical(key, names)))]

    def _names(self) -> list[str]:
        return [json.dumps(value, sort_keys=True) for value in self.values]  # the storage keeps text, not classes


@dataclass(frozen=True)
class Integers:
    """A whole number.

    Args:
        low: the smallest.
        high: the largest, included.
        step: from one to the next.
        log: whether small ones are told apart as finely, in proportion, as large ones; then without `step`.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def check(self) -> None:
        """Raises ValueError if no number is between the ends, or the steps do not lead from one to the other."""
        _check_ends(self.low, self.high, self.log)
        if self.step < 1:
            raise ValueError(f"step is {self.step}; give at least 1")
        if self.log and self.step != 1:
            raise ValueError(f"step is {self.step} and log is true; leave one of them out")
        if over := (self.high - self.low) % self.step:
            raise ValueError(
                f"steps of {self.step} from low {self.low} miss high {self.high}; make high {self.high - over}"
            )

    def ends(self) -> list[Any]:
        """What a configuration must take for it to take them all."""
        return [self.low, self.high]

    def suggest(self, trial: Trial, key: str) -> Any:
        return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Reals:
    """A real number.

    Args:
        low: the smallest.
        high: the largest.
        log: whether small ones are told apart as finely, in proportion, as large ones.
    """

    low: float
    high: float
    log: bool = False

    def check(self) -> None:
        """Raises ValueError if no number is between the ends."""
        _check_ends(self.low, self.high, self.log)

    def ends(self) -> list[Any]:
        """What a configuration must take for it to take them all."""
        return [self.low, self.high]

    def suggest(self, trial: Trial, key: str) -> Any:
        return trial.suggest_float(key, self.low, self.high, log=self.log)


Range = Choices | Integers | Reals


def _check_ends(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be the smaller")
    if log and low <= 0:
        raise ValueError(f"low is {low} and log is true; give a low above 0")
