"""The search of a configuration's space: what it finds, what a kill leaves of it, and what it refuses."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from recsys.artifacts import ArtifactError
from recsys.cli import main
from recsys.lock import LockedError, held
from recsys.tune import search as searching
from recsys.tune.command import _settings, _short
from recsys.tune.search import search
from recsys.tune.settings import Pruning, Settings
from recsys.tune.space import Choices, Integers, Range, Reals

RATE = "model.learning_rate"


@pytest.fixture
def fit(toy):
    """The toy's configuration, trained just long enough to tell a rate that learns from one of 0."""
    said = yaml.safe_load((toy.dataset.parent / "fit.yaml").read_text())
    del said["out"]
    said["trainer"] |= {"max_epochs": 4, "check_val_every_n_epoch": 1}
    return said


@pytest.fixture
def told():
    return []


def configured(folder, fit, space, **more):
    """Writes what a person would, and returns the command's arguments."""
    said = {"fit": fit, "space": space, "out": str(folder / "tune"), **more}
    (folder / "tune.yaml").write_text(yaml.safe_dump(said))
    return ["tune", "--config", str(folder / "tune.yaml")]


def refused(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_it_finds_the_rate_that_learns_and_writes_a_configuration_for_it(toy, fit, tmp_path, capsys):
    space = {RATE: {"values": [0.0, 0.02]}, "model.architecture.heads": {"values": [3, 2]}}  # 3 do not divide 16
    command = configured(tmp_path, fit, space, trials=5, seed=1, pruning=None)
    assert main(command) == 0
    shown = capsys.readouterr()
    out = tmp_path / "tune"
    lines = [line for line in shown.err.splitlines() if "/5  trial" in line]
    assert len(lines) == 5
    assert "best 0." in lines[-1]
    assert lines[-1].endswith("; 0 s left")
    table = shown.out.splitlines()
    assert table[0].split() == ["trial", "val_ndcg@10", "epochs", "seconds", *sorted(space)]
    assert len({len(line) for line in table[: table.index("")]}) == 1  # columns line up
    assert table[2].split()[-2:] == ["2", "0.02"]

    assert main([*command, "--json"]) == 0  # nothing is left to try, so it only tells
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["parameters"] == {RATE: 0.02, "model.architecture.heads": 2}
    assert found["best"]["epochs"] == 4
    values = {t["parameters"][RATE]: t["value"] for t in found["trials"] if t["outcome"] == "complete"}
    assert values[0.02] > values[0.0] + 0.1
    for trial in found["trials"]:
        could = trial["parameters"]["model.architecture.heads"] == 2
        assert trial["outcome"] == ("complete" if could else "failed")
        assert could or "heads" in trial["reason"]
    assert {trial["outcome"] for trial in found["trials"]} == {"complete", "failed"}

    best = out / "trials" / str(found["best"]["number"])
    assert list(out.rglob("*.ckpt")) == [best / "best.ckpt"]
    log = (best / "log.txt").read_text()
    assert f"{found['best']['value']:.4f}" == max(re.findall(r"val_ndcg@10 (\S+)", log))
    text = (out / "best.yaml").read_text()
    assert text.startswith(f"# recsys fit --config {out}/best.yaml\n# 20")
    assert f"val_ndcg@10 {found['best']['value']:.4f}, the best of 5 trials" in text
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(out / "best.yaml"), "--print_config"])
    assert not left.value.code
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["model"]["learning_rate"], said["model"]["architecture"]["heads"]) == (0.02, 2)
    assert said["out"] == str(out / "best")


def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(fit, tmp_path, told):
    """Killed in its third trial: two are kept, the third is tried again, and then come those that would have come."""
    fit["trainer"]["max_epochs"] = 1
    space = {RATE: {"low": 0.001, "high": 0.03, "log": True}}
    (tmp_path / "killed").mkdir()
    command = configured(tmp_path / "killed", fit, space, trials=4)
    third = tmp_path / "killed" / "tune" / "trials" / "2" / "log.txt"
    slow = (  # so that the kill is in the middle of it
        "import sys, time\nfrom recsys.tune import trial\nfrom recsys.cli import main\n"
        f"trial.Watch.on_validation_end_ = trial.Watch.on_validation_end\n"
        "def wait(self, trainer, module):\n"
        f"    if {str(third.parent)!r} in str(trainer.default_root_dir): time.sleep(100)\n"
        "    self.on_validation_end_(trainer, module)\n"
        "trial.Watch.on_validation_end = wait\n"
        f"sys.exit(main({command!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", slow], start_new_session=True) as process:
        until = time.monotonic() + 120
        while not (third.exists() and list(third.parent.glob("*.yaml"))) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    settings, _ = _settings(command[1:])
    found = search(settings, told.append)
    assert [trial.number for trial in found.trials] == [0, 1, 3, 4]
    assert [line.split()[0] for line in told] == ["3/4", "4/4"]

    straight = search(Settings(fit, {RATE: Reals(0.001, 0.03, log=True)}, tmp_path / "straight", trials=4))
    assert [(t.parameters, t.value) for t in found.trials] == [(t.parameters, t.value) for t in straight.trials]
    assert len({trial.parameters[RATE] for trial in found.trials}) == 4


def test_what_was_running_is_tried_again_and_what_had_ended_is_counted(fit, tmp_path):
    fit["trainer"]["max_epochs"] = 1
    settings = Settings(fit, {RATE: Reals(0.001, 0.03)}, tmp_path, trials=2)
    study = searching._study(settings)
    ended = {"outcome": "complete", "value": 0.9, "epochs": 1, "seconds": 1.0, "reason": None}
    for rate in (0.0123, 0.0124):
        study.enqueue_trial({RATE: rate})
    for more in ({}, {"parameters": {RATE: 0.0124}, "ended": ended}):  # one in its midst, one in its last moment
        trial = study.ask()
        trial.suggest_float(RATE, 0.001, 0.03)
        for key, value in more.items():
            trial.set_user_attr(key, value)
    told, again = search(settings).trials
    assert (told.number, told.outcome, told.value) == (1, "complete", 0.9)
    assert (again.number, again.outcome, again.parameters) == (2, "complete", {RATE: 0.0123})
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_hopeless_trial_is_pruned_and_a_diverging_one_counted(fit, tmp_path, monkeypatch):
    order = iter([0.02, 0.0, 1e30])
    monkeypatch.setattr(Choices, "suggest", lambda self, trial, key: next(order))
    space: dict[str, Range] = {RATE: Choices([0.02, 0.0, 1e30])}
    settings = Settings(fit, space, tmp_path, trials=3, pruning=Pruning(startup=1, warmup=0))
    good, hopeless, wild = search(settings).trials
    assert (good.outcome, good.epochs) == ("complete", 4)
    assert (hopeless.outcome, hopeless.reason) == ("pruned", None)
    assert hopeless.epochs < 4
    assert (wild.outcome, wild.value) == ("failed", None)
    assert "diverged" in wild.reason


def test_more_trials_may_be_asked_for_but_nothing_else_changed(fit, tmp_path, capsys, monkeypatch):
    fit["trainer"]["max_epochs"] = 1
    space = {RATE: {"values": [0.02]}}
    assert main(configured(tmp_path, fit, space, trials=1)) == 0
    assert main(configured(tmp_path, fit, space, trials=2, hours=1.0)) == 0
    capsys.readouterr()
    said = refused(capsys, configured(tmp_path, fit, {RATE: {"values": [0.02, 0.01]}}))
    assert f'space, {RATE} was {{"values": [0.02]}} and is {{"values": [0.02, 0.01]}}; give another out' in said
    fit["trainer"]["max_epochs"] = 2
    assert "fit.trainer.max_epochs was 1 and is 2" in refused(capsys, configured(tmp_path, fit, space))
    fit["trainer"]["max_epochs"] = 1
    (tmp_path / "tune" / "trials" / "0" / "last.ckpt").touch()  # left by a kill
    settings, _ = _settings(configured(tmp_path, fit, space, trials=9)[1:])
    told: list[str] = []
    found = search(dataclasses.replace(settings, hours=1e-9), told.append)
    assert told == ["1e-09 hours are over; start it again to go on"]
    assert len(found.trials) == 2
    assert [path.name for path in (tmp_path / "tune").rglob("*.ckpt")] == ["best.ckpt"]
    with held(settings.out, "tune"), pytest.raises(LockedError, match="tune"):
        search(settings)
    with monkeypatch.context() as patch:
        patch.setattr(searching, "_digest", lambda _: "another")
        assert 'and is "another"; give another out' in refused(capsys, configured(tmp_path, fit, space))
    fit["model"]["decay"] = False
    assert "fit.model.decay was not there and is false" in refused(capsys, configured(tmp_path, fit, space))


def test_a_search_in_which_nothing_can_be_trained_says_why(fit, tmp_path, capsys):
    said = refused(capsys, configured(tmp_path, fit, {"model.architecture.heads": {"values": [3]}}, trials=2))
    assert "no trial of 2 was completed (0 complete, 0 pruned, 2 failed); the last one: " in said
    assert "heads" in said
    fit["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 2}
    (tmp_path / "late").mkdir()
    said = refused(capsys, configured(tmp_path / "late", fit, {RATE: {"values": [0.02]}}, trials=1))
    assert "was never measured; lower trainer.check_val_every_n_epoch" in said


def test_a_full_disk_is_not_a_trials_fault(fit, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("cannot write") from OSError(28, "No space left on device")

    monkeypatch.setattr(searching, "train", full)
    settings = Settings(fit, {RATE: Reals(0.01, 0.02)}, tmp_path, trials=2)
    with pytest.raises(OSError, match="No space left"):
        search(settings)
    monkeypatch.undo()
    fit["trainer"]["max_epochs"] = 1
    # Nothing was counted, and the folder is the search's still: what differs is named.
    with pytest.raises(ArtifactError, match=r"fit\.trainer\.max_epochs was 4 and is 1"):
        search(settings)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        ({RATE: {"low": 0.2, "high": 0.1}}, f"space, {RATE}: low is 0.2 and high is 0.1; low must be the smaller"),
        ({RATE: {"low": 0.0, "high": 0.1, "log": True}}, "low is 0.0 and log is true; give a low above 0"),
        ({RATE: {"values": []}}, f"space, {RATE}: values is empty"),
        ({RATE: {"values": [1, 1]}}, "values has 1 twice"),
        ({"model.architecture.blocks": {"low": 2, "high": 2}}, "low is 2 and high is 2"),
        ({"model.architecture.dimension": {"low": 8, "high": 20, "step": 8}}, "make high 16"),
        ({"model.learning_rat": {"low": 0.1, "high": 0.2}}, f"has no such key; the nearest is {RATE}"),
        ({RATE: {"values": ["quick"]}}, f"space, {RATE}: 'quick' cannot be"),
        ({"out": {"values": ["a"]}}, "out is the search's to say"),
        ({"data.split.test": {"values": [1]}}, "data.split is what trials are measured on"),
        ({"model.loss": {"values": [None]}, "model.loss.temperature": {"values": [1]}}, "model.loss holds it"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_anything_is_tried(fit, tmp_path, capsys, space, message):
    assert message in refused(capsys, configured(tmp_path, fit, space))
    assert not (tmp_path / "tune").exists()


def test_what_cannot_be_trained_is_refused_before_anything_is_tried(fit, tmp_path, capsys):
    space = {RATE: {"values": [0.02]}}
    assert "fit.out is the search's to say" in refused(capsys, configured(tmp_path, {**fit, "out": "x"}, space))
    assert "modle" in refused(capsys, configured(tmp_path, {**fit, "modle": 1}, space))
    nowhere = {**fit, "data": {"dataset": str(tmp_path)}}
    assert "is not a dataset" in refused(capsys, configured(tmp_path, nowhere, space))
    assert "dataset" in refused(capsys, configured(tmp_path, {"trainer": {"max_epochs": 1}}, space))
    assert "trials is 0" in refused(capsys, configured(tmp_path, fit, space, trials=0))
    assert not (tmp_path / "tune").exists()


def test_without_optuna_it_says_what_to_install(fit, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *more, **named):
        if name.split(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'recsys[tune]'" in refused(capsys, configured(tmp_path, fit, {RATE: {"values": [0.02]}}))


def test_ranges_are_told_by_their_keys_and_classes_are_left_to_fit(fit, tmp_path):
    losses = [{"class_path": "FullSoftmax", "init_args": {"temperature": t}} for t in (0.5, 1.0)]
    space = {
        "model.loss": {"values": losses},
        "model.warmup_steps": {"low": 8, "high": 64, "log": True},
        "model.architecture.dimension": {"low": 8, "high": 32, "step": 8},
        RATE: {"low": 1, "high": 2.0},
    }
    settings, as_json = _settings(configured(tmp_path, fit, space)[1:])
    assert not as_json
    assert settings.space == {
        "model.loss": Choices(losses),
        "model.warmup_steps": Integers(8, 64, log=True),
        "model.architecture.dimension": Integers(8, 32, 8),
        RATE: Reals(1.0, 2.0),
    }
    searching.check(settings)


def test_a_column_says_a_class_by_its_name():
    values = [0.0174026, None, "flat", {"class_path": "a.B", "init_args": {"c": 1, "d": 2}}, "long" * 20]
    assert [_short(value) for value in values[:4]] == ["0.0174", "null", "flat", "B(c=1, d=2)"]
    assert _short(values[4]) == "long" * 9 + "lon…"
