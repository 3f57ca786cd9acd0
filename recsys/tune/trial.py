"""One trial: `recsys fit` with some keys set otherwise, watched while it trains."""

from __future__ import annotations

import contextlib
import copy
import difflib
import logging
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from recsys.artifacts import ArtifactError
from recsys.train import METRIC, FitCLI, run
from recsys.tune.space import Range

Report = Callable[[float], None]


class Watch(pl.Callback):
    """Tells what each validation measured, and counts epochs.

    Args:
        report: is told the metric; what it raises ends the training.
    """

    def __init__(self, report: Report) -> None:
        self.epochs = 0
        self._report = report

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(float(trainer.callback_metrics[METRIC]))


class Checker:
    """Says whether `recsys fit` takes a configuration; its parser is made once, since that takes a while."""

    def __init__(self) -> None:
        made: list[Any] = []

        class Parse(FitCLI):
            def instantiate_classes(self) -> None:
                made.append(self.parser)

            def _run_subcommand(self, subcommand: str) -> None:
                """Nothing is run."""

        run(["fit", "--data.dataset", "."], Parse)
        self._parser = made[0]
        self._parser.exit_on_error = False  # it raises instead

    def parsed(self, fit: dict[str, Any]) -> dict[str, Any]:
        """The configuration with all defaults.

        Raises:
            ValueError: `recsys fit` does not take it.
        """
        try:
            said = self._parser.parse_object({"subcommand": "fit", "fit": copy.deepcopy(fit)})
        except ArgumentError as error:
            raise ValueError(f"`recsys fit` does not take fit: {' '.join(error.message.split())}") from None
        whole: dict[str, Any] = yaml.safe_load(self._parser.dump(said, skip_unset=False))["fit"]
        return whole

    def check(self, fit: dict[str, Any], space: dict[str, Range]) -> None:
        """Refuses now what every trial, or some, would be refused for.

        Raises:
            ValueError: fit, a key of the space or one of its values is not what `recsys fit` takes.
        """
        keys = _keys(self.parsed(fit))
        for key in space:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1, 0)
                raise ValueError(f"space, {key}: fit has no such key; the nearest is {near[0]}")
        for key, given in space.items():
            for value in given.ends():
                try:
                    self.parsed(with_values(fit, {key: value}))
                except ValueError as error:
                    raise ValueError(f"space, {key}: {value!r} cannot be; {error}") from None


def train(fit: dict[str, Any], folder: Path, watch: Watch) -> None:
    """Trains in a folder of its own; all that it prints goes to `log.txt` there.

    Args:
        fit: what a configuration of `recsys fit` says, without `out`.
        folder: is there.
        watch: sees each epoch.
    """

    class Watched(FitCLI):
        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.append(watch)  # type: ignore[attr-defined]
            return trainer

    file = folder / "fit.yaml"
    file.write_text(yaml.safe_dump(fit), encoding="utf-8")
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            run(["fit", "--config", str(file), "--out", str(folder)], Watched)
        except SystemExit as error:
            if error.code == 2:  # the parser's; anything else is a person's or a scheduler's
                raise ArtifactError(f"`recsys fit` does not take {file}; {folder / 'log.txt'} says why") from None
            raise


def with_values(fit: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A configuration with dotted keys set to other values, which replace what was there whole."""
    changed = copy.deepcopy(fit)
    for key, value in values.items():
        *way, last = key.split(".")
        inside = changed
        for part in way:
            if not isinstance(inside.get(part), dict):
                inside[part] = {}
            inside = inside[part]
        inside[last] = copy.deepcopy(value)
    return changed


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's own lines about each training, which are the same for all trials."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _keys(config: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(before + key)
        if isinstance(value, dict):
            found += _keys(value, f"{before}{key}.")
    return found
