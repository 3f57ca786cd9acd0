"""The fit step: warm from the live bundle's checkpoint where that can be, in full where it cannot or is due."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recsys.artifacts import ArtifactError, Manifest, read_manifest, sha256_of, verify, write_durably, writing
from recsys.data.dataset import FORMAT_VERSION as DATASET_VERSION
from recsys.data.dataset import KIND as DATASET
from recsys.data.warm import WarmStartError
from recsys.model.callbacks import DivergedError
from recsys.model.curves import curves

KIND, VERSION = "fit", 1
CHECKPOINT = "best.ckpt"


@dataclass(frozen=True)
class WarmStart:
    """How a night's training differs when it goes on from the live bundle's checkpoint.

    Args:
        fit: what the configuration of `fit` says differently then, key by key.
        full_every: one night in so many trains from scratch, so that what drifts is set right.
        full_after_drift: whether a night trains from scratch if the one before went on, and its model was refused for
            what it is: worse than live, collapsed, or answering quite otherwise.
    """

    fit: dict[str, Any] = field(default_factory=lambda: {"trainer": {"max_epochs": 2}})
    full_every: int = 7
    full_after_drift: bool = True


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        checkpoint: to go on from; None to train from scratch.
        because: why so, for the verdict.
        warm_nights: how many nights in a row have gone on, this one included.
    """

    checkpoint: Path | None
    because: str
    warm_nights: int = 0


Train = Callable[[dict[str, Any], Path, Path | None], None]


def fit(config: dict[str, Any], warm: WarmStart | None, start: Start, dataset: Path, out: Path, train: Train) -> None:
    """Trains, going on where an attempt before was stopped.

    A training that diverges is written down, not raised: it would do so again, and a gate refuses it.

    Args:
        config: what a configuration of `recsys fit` would say, without `data.dataset` and `out`.
        warm: how a warm start differs.
        start: where to start.
        dataset: what to train on.
        out: the directory to write.
        train: how: takes a configuration, the folder of the run and the checkpoint to start from.

    Raises:
        ArtifactError: the training left no best checkpoint.
    """
    running = out.with_name(f"{out.name}.running")  # outlives a crash, with the newest checkpoint in it
    told, begun = running / "start.json", json.dumps([str(start.checkpoint), start.because])
    if not told.exists() or told.read_text(encoding="utf-8") != begun:
        if running.exists():
            shutil.rmtree(running)
        running.mkdir()
        write_durably(told, begun)  # once: written again, it would be half there when that is killed
    diverged = None
    try:
        try:
            train(_unwatched(_config(config, warm, start, dataset), running), running, start.checkpoint)
        except WarmStartError as error:
            start = Start(None, f"a warm start cannot be: {error}")
            for file in running.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            train(_unwatched(_config(config, warm, start, dataset), running), running, None)
    except DivergedError as error:
        diverged = str(error)
    with writing(out, KIND, VERSION) as draft:
        best = running / CHECKPOINT
        if diverged is None:
            if not best.exists():
                raise ArtifactError(
                    f"the training left no {best}: it never measured validation; lower trainer.check_val_every_n_epoch "
                    "or widen data.split.validation"
                )
            shutil.copyfile(best, draft.path / CHECKPOINT)
            draft.content["checkpoint"] = sha256_of(best)
        drawn = {name: [(at, y if math.isfinite(y) else None) for at, y in c] for name, c in curves(running).items()}
        (draft.path / "curves.json").write_text(json.dumps(drawn), encoding="utf-8")
        (draft.path / "fit.yaml").write_text(yaml.safe_dump(_config(config, warm, start, dataset)), encoding="utf-8")
        draft.content.update(
            mode="full" if start.checkpoint is None else "warm",
            because=start.because,
            warm_nights=start.warm_nights,
            dataset=read_manifest(dataset, DATASET, DATASET_VERSION).digest,
            diverged=diverged,
        )
    shutil.rmtree(running)


def opened(path: Path) -> Manifest:
    """What `fit` wrote, checked."""
    shutil.rmtree(path.with_name(f"{path.name}.running"), ignore_errors=True)  # if it was stopped before it could
    return verify(path, KIND, VERSION)


def curves_of(path: Path) -> dict[str, list[tuple[int, float | None]]]:
    """The training curves: name to epoch and value."""
    said = json.loads((path / "curves.json").read_text(encoding="utf-8"))
    return {name: [(epoch, value) for epoch, value in points] for name, points in said.items()}


def _config(config: dict[str, Any], warm: WarmStart | None, start: Start, dataset: Path) -> dict[str, Any]:
    said = merged(config, warm.fit) if warm is not None and start.checkpoint is not None else config
    return merged(said, {"data": {"dataset": str(dataset)}})


def _unwatched(config: dict[str, Any], running: Path) -> dict[str, Any]:
    """With a log of the curves alone, and no rehearsal of the validation, unless either is asked for.

    The folder of the run goes when its curves are read, and nobody watches who could stop a broken validation early.
    """
    csv = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(running), "name": "logs"}}
    return merged({"trainer": {"logger": csv, "num_sanity_val_steps": 0}}, config)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with the values of another put over it."""
    both = dict(base)
    for key, value in over.items():
        inside = both.get(key)
        both[key] = merged(inside, value) if isinstance(inside, dict) and isinstance(value, dict) else value
    return both
