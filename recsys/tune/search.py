"""The search: proposes, trains, keeps account of it in a file, and goes on there after it was stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from recsys.artifacts import NO_ROOM, ArtifactError, read_manifest, write_durably
from recsys.data.dataset import FORMAT_VERSION, KIND
from recsys.lock import held
from recsys.train import METRIC
from recsys.tune.settings import Settings
from recsys.tune.trial import Checker, Watch, quietly, train, with_values

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

_BEGUN, _STUDY, BEST = "search.json", "study.db", "best.yaml"
_ENDED = "ended"  # what came of a trial; one without was running when the search was killed, and does not count
_ENOUGH = 10  # completed trials from which on it is said which parameters mattered
# What is the fault of a trial's parameters, as far as can be told; a graphics card's memory is RuntimeError, too.
_ITS_OWN = (ArtifactError, ValueError, TypeError, RuntimeError, MisconfigurationException)


@dataclass(frozen=True)
class Tried:
    """One trial, as reported.

    Attributes:
        number: its folder below `trials`.
        outcome: `complete`, `pruned` or `failed`.
        value: the best that validation measured; of a pruned one, until then; None if it failed.
        parameters: what it set, by dotted key.
        epochs: that it trained, the last one perhaps in part.
        seconds: that it took.
        reason: why it failed.
    """

    number: int
    outcome: str
    value: float | None
    parameters: dict[str, Any]
    epochs: int
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class Found:
    """What a search has found so far.

    Attributes:
        metric: what was measured, on the validation part.
        trials: all that count, in the order they began.
        importance: each parameter's share in what made the best trials better; empty where too few can say.
    """

    metric: str
    trials: tuple[Tried, ...]
    importance: dict[str, float]

    @property
    def ranking(self) -> list[Tried]:
        """Trials that were completed, the best first."""
        return sorted((t for t in self.trials if t.outcome == "complete"), key=lambda t: (-(t.value or 0), t.number))

    def counts(self) -> str:
        """How many trials ended how."""
        ended = [trial.outcome for trial in self.trials]
        return ", ".join(f"{ended.count(how)} {how}" for how in ("complete", "pruned", "failed"))


def check(settings: Settings) -> None:
    """Refuses now what each trial would be refused for.

    Raises:
        ValueError: `fit` or `space` does not fit `recsys fit`.
        ArtifactError: the dataset is none.
    """
    _optuna()
    with quietly():
        Checker().check(settings.fit, settings.space)
    _digest(settings)


def search(settings: Settings, say: Callable[[str], None] = print) -> Found:
    """Tries until there are as many trials as asked for, or the time is up; `best.yaml` always has the best so far.

    Args:
        settings: checked by `check`.
        say: is told a line a trial.

    Raises:
        ArtifactError: the folder holds another search, another process runs this one, or no trial was completed.
    """
    began = time.monotonic()
    settings.out.mkdir(parents=True, exist_ok=True)
    with held(settings.out, "tune"), quietly():
        _refuse_another(settings)
        study = _study(settings)
        _try_again_what_was_stopped(study)
        _keep_checkpoint_of_the_best(study, settings)
        while (done := len(_counted(study))) < settings.trials:
            left = math.inf if settings.hours is None else settings.hours * 3600 - (time.monotonic() - began)
            if left <= 0:
                say(f"{settings.hours:g} hours are over; start it again to go on")
                break
            study.sampler = _sampler(settings.seed, done)
            tried = _one(study, settings)
            _keep_checkpoint_of_the_best(study, settings)
            found = _found(study, importance=False)
            if found.ranking:
                _write_best(found, settings)
            say(_line(tried, found, settings, left))
        found = _found(study, importance=True)
    if not found.ranking:
        last = f"; the last one: {found.trials[-1].reason}" if found.trials else ""
        raise ArtifactError(f"no trial of {len(found.trials)} was completed ({found.counts()}){last}")
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ArtifactError("a search needs Optuna: pip install 'recsys[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _digest(settings: Settings) -> str:
    return read_manifest(Path(settings.fit["data"]["dataset"]), KIND, FORMAT_VERSION).digest


def _refuse_another(settings: Settings) -> None:
    """Trials are compared with each other, so all must have been asked the same."""
    space = {f"space, {key}": dataclasses.asdict(given) for key, given in settings.space.items()}
    asked = {**dict(_leaves(settings.fit, "fit")), **space, "seed": settings.seed, "the dataset": _digest(settings)}
    file = settings.out / _BEGUN
    if not file.exists():
        write_durably(file, json.dumps(asked, indent=1))
        return
    before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(asked))
    for key in sorted(before.keys() | now.keys()):
        was, is_ = (json.dumps(said[key]) if key in said else "not there" for said in (before, now))
        if was != is_:
            raise ArtifactError(
                f"{settings.out} holds a search with another configuration: {key} was {was} and is {is_}; "
                "give another out, or say what it was"
            )


def _leaves(config: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}.{key}")
        else:
            yield f"{before}.{key}", value


def _study(settings: Settings) -> Study:
    optuna = _optuna()
    pruning = settings.pruning
    # SQLite, not Optuna's journal: a kill leaves neither half a line there nor a lock.
    study: Study = optuna.create_study(
        study_name="tune",
        storage=f"sqlite:///{(settings.out / _STUDY).absolute()}",
        direction="maximize",
        pruner=optuna.pruners.NopPruner()
        if pruning is None
        else optuna.pruners.MedianPruner(n_startup_trials=pruning.startup, n_warmup_steps=pruning.warmup),
        load_if_exists=True,
    )
    return study


def _sampler(seed: int, done: int) -> Any:
    """Seeded anew for each trial: a search that was stopped then proposes what it would have proposed."""
    drawn = int(np.random.SeedSequence((seed, done)).generate_state(1)[0])
    return _optuna().samplers.TPESampler(seed=drawn)


def _try_again_what_was_stopped(study: Study) -> None:
    """Ends what a killed search left running, and puts its parameters first in the queue."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if _ENDED in trial.user_attrs:  # killed in the moment before it was told
            _tell(study, trial.number, trial.user_attrs[_ENDED])
            continue
        if trial.params:
            study.enqueue_trial(trial.params)  # before it is ended: rather tried twice than not at all
        study.tell(trial.number, state=TrialState.FAIL)


def _counted(study: Study) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and _ENDED in t.user_attrs]


def _one(study: Study, settings: Settings) -> Tried:
    """Runs the next trial, whatever comes of it."""
    from optuna import TrialPruned

    trial = study.ask()
    folder = settings.out / "trials" / str(trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    measured: list[float] = []
    watch = Watch(_reporting(trial, measured))
    began = time.monotonic()
    outcome, reason = "complete", None
    try:
        values = {key: given.suggest(trial, key) for key, given in settings.space.items()}
        trial.set_user_attr("parameters", values)
        train(with_values(settings.fit, values), folder, watch)
        if not measured:
            raise ValueError(f"{METRIC} was never measured; lower trainer.check_val_every_n_epoch")
    except TrialPruned:
        outcome = "pruned"
    except _ITS_OWN as error:
        if full := _full_disk(error):
            raise full from None
        outcome, reason = "failed", " ".join(str(error).split()) or type(error).__name__
    ended = {
        "outcome": outcome,
        "value": None if outcome == "failed" else max(measured),
        "epochs": watch.epochs,
        "seconds": time.monotonic() - began,
        "reason": reason,
    }
    trial.set_user_attr(_ENDED, ended)
    _tell(study, trial.number, ended)
    return _tried(study.trials[trial.number])


def _reporting(trial: Trial, measured: list[float]) -> Callable[[float], None]:
    from optuna import TrialPruned

    def report(value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{METRIC} is {value}; the validation part asks nothing that can be ranked")
        measured.append(value)
        trial.report(value, len(measured))
        if trial.should_prune():
            raise TrialPruned

    return report


def _tell(study: Study, number: int, ended: dict[str, Any]) -> None:
    from optuna.trial import TrialState

    state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[ended["outcome"]]
    study.tell(number, ended["value"] if state == TrialState.COMPLETE else None, state)


def _full_disk(error: BaseException | None) -> OSError | None:
    """What a full disk said: the next trial would find it as full, and what it tried is not at fault."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return error
        error = error.__cause__ or error.__context__
    return None


def _tried(trial: FrozenTrial) -> Tried:
    return Tried(number=trial.number, parameters=trial.user_attrs.get("parameters", {}), **trial.user_attrs[_ENDED])


def _found(study: Study, *, importance: bool) -> Found:
    tried = tuple(_tried(trial) for trial in _counted(study))
    enough = importance and sum(trial.outcome == "complete" for trial in tried) >= _ENOUGH
    return Found(METRIC, tried, _importance(study) if enough else {})


def _importance(study: Study) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is nothing to say, which an empty answer says
        shares = _optuna().importance.get_param_importances(study)
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def _keep_checkpoint_of_the_best(study: Study, settings: Settings) -> None:
    """Or the disk would be full of the others'."""
    ranking = _found(study, importance=False).ranking
    for checkpoint in (settings.out / "trials").glob("*/*.ckpt"):
        if not (ranking and checkpoint.parent.name == str(ranking[0].number) and checkpoint.name == "best.ckpt"):
            checkpoint.unlink()


def _write_best(found: Found, settings: Settings) -> None:
    best, file = found.ranking[0], settings.out / BEST
    said = with_values(settings.fit, best.parameters) | {"out": str(settings.out / "best")}
    lines = [
        f"# recsys fit --config {file}",
        f"# {datetime.now(UTC):%Y-%m-%d}, validation part: {found.metric} {best.value:.4f}, the best of "
        f"{len(found.trials)} trials ({found.counts()}).",
        "# What chose it flatters it: `recsys evaluate` asks the test part.",
        f"# Trained already: {settings.out / 'trials' / str(best.number) / 'best.ckpt'}",
    ]
    write_durably(file, "\n".join(lines) + "\n" + yaml.safe_dump(said, sort_keys=False))


def _line(tried: Tried, found: Found, settings: Settings, left: float) -> str:
    value = "" if tried.value is None else f" {found.metric} {tried.value:.4f},"
    said = f"failed: {tried.reason}" if tried.outcome == "failed" else f"{tried.outcome}:{value}"
    said += f" {tried.epochs} epochs, {tried.seconds:.0f} s" if tried.outcome != "failed" else ""
    best = (
        f"best {found.ranking[0].value:.4f} (trial {found.ranking[0].number})" if found.ranking else "none is best yet"
    )
    more = settings.trials - len(found.trials)
    mean = sum(trial.seconds for trial in found.trials) / len(found.trials)
    seconds = min(more * mean, left)
    time_left = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"{len(found.trials)}/{settings.trials}  trial {tried.number} {said}; {best}; {time_left} left"
