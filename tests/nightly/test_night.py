"""A night's folder: made whole, gone on with, forgotten in an order that a crash cannot spoil, and removed at last."""

import json
import os
import shutil
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from recsys import artifacts
from recsys.artifacts import read_manifest, verify, writing
from recsys.bundle import FORMAT_VERSION, KIND, bundle_id
from recsys.nightly import job, judging, night
from recsys.nightly.night import nights, tonight
from recsys.nightly.verdict import Verdict
from tests.damage import flip

PLAN = {"configuration": "{}", "live": None}
HOURS = timedelta(hours=20)


def step(name):
    def make(place):
        with writing(place, name, 1) as draft:
            (draft.path / "data").write_text(name)

    return name, make, lambda place: verify(place, name, 1)


@pytest.fixture
def three(tmp_path):
    """A night of three steps."""
    made = tonight(tmp_path, PLAN, resume_within=HOURS)
    for name in ("one", "two", "three"):
        made.step(*step(name))
        later(made, name)
    return made


def later(made, name):
    """Lets a step be a second younger than what is there: file systems count time coarsely."""
    count = sum(entry.is_dir() for entry in made.folder.iterdir())
    os.utime(made.folder / name, (1e9 + count, 1e9 + count))


def test_a_night_comes_with_its_plan_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            tonight(tmp_path, PLAN, resume_within=HOURS)
    assert list(tmp_path.iterdir()) == []
    made = tonight(tmp_path, PLAN, resume_within=HOURS)
    assert [(one.folder, one.plan, one.result) for one in nights(tmp_path)] == [(made.folder, PLAN, None)]


def test_what_is_being_made_or_removed_is_no_night(tmp_path):
    made = tonight(tmp_path, PLAN, resume_within=HOURS)
    made.folder.rename(tmp_path / f".{made.name}.{'0' * 32}")
    assert nights(tmp_path) == []


def test_a_night_is_gone_on_with_only_under_its_plan_and_in_time(tmp_path):
    made = tonight(tmp_path, PLAN, resume_within=HOURS)
    assert tonight(tmp_path, PLAN, resume_within=HOURS).folder == made.folder
    other = tonight(tmp_path, PLAN | {"live": "another"}, resume_within=HOURS)
    assert made.result["outcome"] == "given up"
    late = tonight(tmp_path, PLAN | {"live": "another"}, resume_within=timedelta(seconds=-1))
    assert other.result == {"outcome": "given up", "why": "it began more than -1 day, 23:59:59 ago"}
    late.end({"outcome": "promoted"})
    assert tonight(tmp_path, PLAN | {"live": "another"}, resume_within=HOURS).folder != late.folder


def test_a_damaged_step_is_made_again_and_all_that_came_after_it(three, capsys):
    flip(three.folder / "two" / "data")
    made = []
    for name in ("one", "two", "three"):
        _, make, check = step(name)

        def noted(place, name=name, make=make):
            made.append(name)
            make(place)

        three.step(name, noted, check)
    assert made == ["two", "three"]
    assert "── two: made again, since " in capsys.readouterr().out


def test_a_crash_while_forgetting_leaves_no_step_that_was_made_from_a_damaged_one(three, monkeypatch):
    flip(three.folder / "two" / "data")
    removed: list[str] = []

    def remove(place):
        if removed:
            raise KeyboardInterrupt
        removed.append(place.name)
        artifacts.remove(place)

    with monkeypatch.context() as patch:
        patch.setattr(night, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            three.step(*step("two"))
    assert removed == ["three"]
    assert sorted(entry.name for entry in three.folder.iterdir() if entry.is_dir()) == ["one", "two"]


def test_a_verdict_that_is_damaged_is_not_taken_for_one(tmp_path):
    made = tonight(tmp_path, PLAN, resume_within=HOURS)
    unfinished: Any = object.__new__(job._Job)
    unfinished.night = made
    assert not unfinished._judged
    judging.write(Verdict(night=made.name, outcomes=()), made.folder / "gates")
    assert unfinished._judged
    flip(made.folder / "gates" / "verdict.json")
    assert not unfinished._judged


def test_nights_behind_the_live_bundle_and_the_one_before_stay_however_they_ended(tmp_path, monkeypatch):
    names = [f"2026112{day}T000000Z" for day in range(8)]
    bundles = {}
    for day, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "night.json").write_text(json.dumps(PLAN))
        if day != 5:
            (tmp_path / name / "result.json").write_text(json.dumps({"outcome": "given up"}))
        if day < 3:
            with writing(tmp_path / name / "publish", KIND, FORMAT_VERSION) as draft:
                (draft.path / "data").write_text(name)
            bundles[day] = bundle_id(read_manifest(tmp_path / name / "publish", KIND, FORMAT_VERSION))
    registry = SimpleNamespace(current=bundles[1], previous=bundles[0], prune=lambda keep, why: [])
    unfinished: Any = object.__new__(job._Job)
    unfinished.registry, unfinished.night = registry, SimpleNamespace(name="x")
    unfinished.settings = SimpleNamespace(work=tmp_path, keep=2)
    unfinished._retire(tmp_path / "retire")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [*names[:2], *names[6:], "retire"]
    assert verify(tmp_path / "retire", "retire", 1).content["nights"] == names[2:6]
    unfinished.registry.previous = None
    shutil.rmtree(tmp_path / "retire")
    unfinished._retire(tmp_path / "retire")
    assert sorted(one.name for one in nights(tmp_path)) == [names[1], *names[6:]]
