"""The nightly job: from the source's newest rows to a promoted bundle, or to a verdict that says why not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifacts import (
    ArtifactError,
    Manifest,
    read_manifest,
    remove,
    remove_abandoned,
    sync_directory,
    verify,
    writing,
)
from recsys.bundle import FORMAT_VERSION, KIND, Bundle, bundle_id
from recsys.data import snapshot
from recsys.data.dataset import Dataset
from recsys.data.prepare import PrepareError, prepare
from recsys.evaluate.ranking import Result
from recsys.evaluate.report import to_json
from recsys.lock import held
from recsys.model.embed import Trained
from recsys.nightly import early, engine, fitting, judging, measured, verdict
from recsys.nightly.fitting import Start
from recsys.nightly.gates import Outcome
from recsys.nightly.night import Night, nights, tonight
from recsys.nightly.origin import origin_of, start
from recsys.nightly.settings import Settings
from recsys.nightly.verdict import Verdict
from recsys.registry import Registry
from recsys.seal import Stages, seal, verify_index, verify_vectors, with_verdict, write_index, write_vectors

_STEP = 1  # format of what the last steps write


def run(settings: Settings, configuration: str) -> dict[str, Any]:
    """Runs the job, or goes on with the one that was stopped.

    Args:
        settings: what to do.
        configuration: the same as text: a night is gone on with only under the configuration it began with.

    Returns:
        How it ended, as JSON values: `outcome` is `promoted`, `refused` or `nothing new`.

    Raises:
        LockedError: another job runs on this registry.
        ArtifactError, SourceError, OSError, …: a step failed; what was done stays, and a rerun goes on from there.
    """
    registry = Registry(settings.registry)
    with held(registry, what="recsys nightly") as refuse_if_lost:
        remove_abandoned(settings.work)
        plan = {"configuration": configuration, "live": _live_at_first(settings.work, registry.current)}
        night = tonight(settings.work, plan, resume_within=timedelta(hours=settings.resume_within))
        remove_abandoned(night.folder)
        return _Job(settings, registry, night, refuse_if_lost).run()


class _Job:
    def __init__(
        self, settings: Settings, registry: Registry, night: Night, refuse_if_lost: Callable[[], None]
    ) -> None:
        self.settings, self.registry, self.night = settings, registry, night
        self.refuse_if_lost = refuse_if_lost
        self.began = time.monotonic()
        self.live = self._open_live()
        self.outcomes: list[Outcome] = []

    def run(self) -> dict[str, Any]:
        night, settings = self.night, self.settings
        if self._judged:  # what is live now may be this very candidate
            return self._conclude(None)
        origin = origin_of(self.live, settings.work)
        taken = night.step(
            "snapshot",
            lambda path: snapshot.snapshot(settings.tables, path, since=None if origin is None else origin.mark),
            snapshot.manifest,
        )
        base = origin.dataset if origin is not None and taken.content["whole"] is None else None
        if base is not None and not taken.content["interactions"]:
            return self._end("nothing new")
        try:
            data = night.step(
                "prepare",
                lambda path: prepare(snapshot.opened(night.folder / "snapshot"), path, max_rejected=1.0, base=base),
                Dataset.open,
            )
        except PrepareError as error:  # nothing at all could be used
            limit = settings.gates.max_rejected
            self.outcomes = [Outcome("rejected rows", False, 1.0, limit, str(error), unit="share")]
            return self._conclude(None)
        before = None if base is None else Dataset.open(base, check=False)
        self.outcomes += early.data(settings.gates, data.manifest.content["added"], before, data)
        if not self._passed():
            return self._conclude(data)
        fitted = self._fit(data, start(settings.warm_start, self.live, origin, base, settings.work))
        if fitted.content["diverged"] is None:
            night.step("embed", self._embed, verify_vectors)
        self.outcomes += self._training_gates(fitted)
        if not self._passed():
            return self._conclude(data)
        night.step("index", lambda path: write_index(night.folder / "embed", path, kind=settings.index), verify_index)
        night.step(
            "evaluate",
            lambda path: measured.measure(
                self._checkpoint, data.path, self.live, path, max_queries=settings.max_queries
            ),
            measured.opened,
        )
        night.step("seal", self._seal, lambda path: verify(path, KIND, FORMAT_VERSION))
        return self._conclude(data)

    @property
    def _judged(self) -> bool:
        """Whether an attempt before judged; a damaged verdict is made again from the first gate on."""
        try:
            judging.opened(self.night.folder / "gates")
        except ArtifactError:
            return False
        return True

    def _passed(self) -> bool:
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def _checkpoint(self) -> Path:
        return self.night.folder / "fit" / fitting.CHECKPOINT

    def _open_live(self) -> Bundle | None:
        if self.registry.current is None:
            return None
        try:
            return self.registry.open_current()
        except ArtifactError as error:  # what is broken must not keep a sound one from taking its place
            print(f"the live bundle cannot be compared with, nor gone on from: {error}", flush=True)
            return None

    def _fit(self, data: Dataset, start: Start) -> Manifest:
        settings = self.settings
        print(f"   {'in full' if start.checkpoint is None else 'warm'}: {start.because}", flush=True)
        train = engine.train_with(settings)
        return self.night.step(
            "fit",
            lambda path: fitting.fit(settings.fit, settings.warm_start, start, data.path, path, train),
            fitting.opened,
        )

    def _embed(self, path: Path) -> None:
        how = engine.embed_with(self.settings, self._checkpoint)
        write_vectors(self._checkpoint, self.night.folder / "prepare", path, embed=how)

    def _training_gates(self, fitted: Manifest) -> list[Outcome]:
        gates, folder = self.settings.gates, self.night.folder
        if fitted.content["diverged"] is not None:
            return [Outcome("training", False, None, None, fitted.content["diverged"])]
        vectors = np.load(folder / "embed" / "item_vectors.npy", mmap_mode="r")
        return early.training(gates, fitting.curves_of(folder / "fit"), vectors, Trained.open(self._checkpoint).trained)

    def _seal(self, path: Path) -> None:
        folder = self.night.folder
        results, _ = measured.opened(folder / "evaluate")
        evaluation = {
            "checkpoint": fitting.opened(folder / "fit").content["checkpoint"],
            "results": json.loads(to_json(results)),
        }
        stages = Stages(folder / "embed", folder / "index")
        seal(self._checkpoint, folder / "prepare", path, stages=stages, evaluation=evaluation)

    def _conclude(self, data: Dataset | None) -> dict[str, Any]:
        """Judges, publishes, promotes and retires."""
        night, folder = self.night, self.night.folder
        judged = night.step("gates", lambda path: judging.write(self._verdict(data), path), judging.opened)
        print("\n" + verdict.text(judged) + "\n", flush=True)
        bundle = None
        if judged.candidate is not None:
            night.step("publish", lambda path: self._publish(judged, path), self._published)
            bundle = bundle_id(read_manifest(folder / "publish", KIND, FORMAT_VERSION))
        if judged.passed and bundle is not None:
            night.step("promote", lambda path: self._promote(bundle, path), _read_step)
        night.step("retire", self._retire, _read_step)
        return self._end("promoted" if judged.passed else "refused", bundle, [one.gate for one in judged.refusals])

    def _verdict(self, data: Dataset | None) -> Verdict:
        folder, outcomes = self.night.folder, list(self.outcomes)
        fit, sealed = folder / "fit", folder / "seal"
        fitted = fitting.opened(fit).content if fit.exists() else None
        results: dict[str, Result] = {}
        shown: dict[str, Any] = {}
        if sealed.exists():
            results, manifest = measured.opened(folder / "evaluate")
            evidence = judging.weigh(self.settings.gates, sealed, self.live, results, manifest.content["asked_from"])
            outcomes += evidence.outcomes
            shown = evidence.exposure
        return Verdict(
            night=self.night.name,
            outcomes=tuple(outcomes),
            mode=fitted["mode"] if fitted else "full",
            mode_why=fitted["because"] if fitted else "",
            candidate=bundle_id(read_manifest(sealed, KIND, FORMAT_VERSION)) if sealed.exists() else None,
            live=None if self.live is None else self.live.id,
            results=json.loads(to_json(results)) if results else {},
            curves=fitting.curves_of(fit) if fitted else {},
            data={} if data is None else data.manifest.content["added"],
            rejected={} if data is None else judging.rejected_examples(data.path),
            exposure=shown,
            seconds=self.night.seconds,
            versions=judging.versions(),
        )

    def _publish(self, judged: Verdict, path: Path) -> None:
        gates = self.night.folder / "gates"
        files = {name: (gates / name).read_text(encoding="utf-8") for name in (judging.JSON, judging.PAGE)}
        failed = [outcome.gate for outcome in judged.refusals]
        said = {"passed": judged.passed, "failed": failed, "candidate": judged.candidate, "night": judged.night}
        with_verdict(self.night.folder / "seal", path, files, said)

    def _published(self, path: Path) -> Manifest:
        """Puts the bundle into the registry, unless it is there: an attempt before may have been stopped in between."""
        manifest = verify(path, KIND, FORMAT_VERSION)
        if bundle_id(manifest) not in self.registry.bundles():

            def copy(place: Path) -> Manifest:
                shutil.copytree(path, place, copy_function=_copy_durably)
                sync_directory(place)
                return read_manifest(place, KIND, FORMAT_VERSION)

            self.registry.publish(copy)
        return manifest

    def _promote(self, bundle: str, path: Path) -> None:
        log = self.registry.log()
        # An entry of its own proves nothing: an attempt before may have been stopped between the log and CURRENT.
        done = self.registry.current == bundle or any(said.instead_of == bundle for said in log)
        self.refuse_if_lost()
        if not done:  # else an attempt before did it; and if somebody rolled back since, they meant it
            self.registry.promote(bundle, why=f"night of {self.night.name}: every gate passed")
        with writing(path, path.name, _STEP) as draft:
            draft.content["bundle"] = bundle

    def _retire(self, path: Path) -> None:
        """Removes old bundles and old nights; what the live one and the one before it were made from stays."""
        removed = self.registry.prune(self.settings.keep, why=f"night of {self.night.name}")
        kept = {self.registry.current, self.registry.previous} - {None}
        old = nights(self.settings.work)[: -self.settings.keep]
        gone = [night for night in old if _bundle_of(night) not in kept]
        for night in gone:
            remove(night.folder)
        with writing(path, path.name, _STEP) as draft:
            draft.content.update(bundles=removed, nights=[night.name for night in gone])

    def _end(self, outcome: str, bundle: str | None = None, failed: list[str] | None = None) -> dict[str, Any]:
        page = self.night.folder / "gates" / judging.PAGE
        return self.night.end(
            {
                "outcome": outcome,
                "night": self.night.name,
                "bundle": bundle,
                "live": self.registry.current,
                "failed": failed or [],
                "report": str(page) if page.exists() else None,
                "seconds": round(time.monotonic() - self.began, 1),
            }
        )


def _live_at_first(work: Path, live: str | None) -> str | None:
    """What was live when the newest night began, if what is live now is that night's own, promoted before it ended."""
    for night in nights(work)[-1:]:
        if night.result is None and live is not None and _bundle_of(night) == live:
            before: str | None = night.plan["live"]
            return before
    return live


def _bundle_of(night: Night) -> str | None:
    """The bundle that a night published, or was about to, however it ended."""
    try:
        return bundle_id(read_manifest(night.folder / "publish", KIND, FORMAT_VERSION))
    except ArtifactError:
        return None


def _copy_durably(source: str, place: str) -> str:
    shutil.copyfile(source, place)
    with open(place, "rb+") as file:
        os.fsync(file.fileno())
    return place


def _read_step(path: Path) -> Manifest:
    return verify(path, path.name, _STEP)
