"""One night: a folder with a directory a step, each written once, so that a rerun goes on where one stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from recsys.artifacts import ArtifactError, digest_of, drafting, remove, sync_directory, write_durably

_BEGUN = "night.json"
_ENDED = "result.json"
_SECONDS = "seconds.json"
_NAME = "%Y%m%dT%H%M%SZ"

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Night:
    """One run of the job.

    Attributes:
        folder: where its steps lie.
        plan: what it set out from, as JSON values: its configuration and the live bundle. A rerun under another plan is
            another night.
    """

    folder: Path
    plan: dict[str, Any]

    @property
    def name(self) -> str:
        """When it began, UTC."""
        return self.folder.name

    @property
    def seconds(self) -> dict[str, float]:
        """How long each finished step took, by name, in order."""
        return dict(_read(self.folder / _SECONDS) or {})

    @property
    def result(self) -> dict[str, Any] | None:
        """How it ended; None while it has not."""
        return _read(self.folder / _ENDED)

    @property
    def failed(self) -> list[str]:
        """The gates that refused it, if it has ended so."""
        return list((self.result or {}).get("failed", []))

    def step(self, name: str, make: Callable[[Path], object], check: Callable[[Path], Opened]) -> Opened:
        """Makes a step's directory, unless an earlier attempt did.

        Args:
            name: of the step, and of its directory.
            make: writes the directory it is given, whole or not at all (`recsys.artifacts.writing`).
            check: opens it, and raises ArtifactError if it is damaged: then it, and all that came after, is made anew.

        Returns:
            What `check` opened.
        """
        place = self.folder / name
        if place.exists():
            try:
                opened = check(place)
                print(f"── {name}: done before", flush=True)
                return opened
            except ArtifactError as error:
                print(f"── {name}: made again, since {error}", flush=True)
                self._forget(place)
        print(f"── {name}", flush=True)
        began = time.monotonic()
        make(place)
        opened = check(place)
        took = self.seconds | {name: round(time.monotonic() - began, 3)}
        write_durably(self.folder / _SECONDS, json.dumps(took))
        print(f"   {name} took {took[name]:.1f} s", flush=True)
        return opened

    def end(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes down how it ended; nothing is done in it after that."""
        write_durably(self.folder / _ENDED, json.dumps(result, ensure_ascii=False))
        return result

    def _forget(self, place: Path) -> None:
        """Removes a step that is damaged, and those that were made from it."""
        made = {other: other.stat().st_mtime_ns for other in self.folder.iterdir() if other.is_dir()}
        # The damaged one last: while it is there, a rerun finds it and removes what is left of the others.
        for other in sorted(made, key=lambda other: made[other], reverse=True):
            if made[other] >= made[place]:
                remove(other)


def tonight(work: Path, plan: dict[str, Any], *, resume_within: timedelta) -> Night:
    """The night to work on: the newest if it has not ended, set out from the same plan and is recent, else a new one.

    Args:
        work: the folder of all nights.
        plan: JSON values.
        resume_within: older ones are given up: the log has moved on.
    """
    before = nights(work)
    if before and before[-1].result is None:
        last = before[-1]
        age = datetime.now(UTC) - datetime.strptime(last.name, _NAME).replace(tzinfo=UTC)
        if digest_of(last.plan) != digest_of(plan):
            last.end({"outcome": "given up", "why": "the configuration or the live bundle has changed since"})
        elif age > resume_within:
            last.end({"outcome": "given up", "why": f"it began more than {resume_within} ago"})
        else:
            print(f"going on with the night of {last.name}", flush=True)
            return last
    now = datetime.now(UTC)
    while (folder := work / now.strftime(_NAME)).exists():
        now += timedelta(seconds=1)
    with drafting(folder) as draft:  # a folder without a plan would belong to no night, and nobody would remove it
        write_durably(draft / _BEGUN, json.dumps(plan, ensure_ascii=False))
        os.rename(draft, folder)
        sync_directory(work)
    return Night(folder, plan)


def nights(work: Path) -> list[Night]:
    """All nights of a folder, oldest first."""
    if not work.is_dir():
        return []
    found = ((folder, _read(folder / _BEGUN)) for folder in sorted(work.glob("[!.]*")) if folder.is_dir())
    return [Night(folder, plan) for folder, plan in found if plan is not None]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
