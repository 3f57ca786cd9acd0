"""What people read and copy: the configuration that comes along, and the page that explains it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from recsys.nightly import engine
from recsys.nightly.command import _settings
from recsys.nightly.gates import Gates
from recsys.nightly.settings import Settings

PAGE = Path("docs/nightly.md").read_text(encoding="utf-8")


def test_the_configuration_that_comes_along_is_taken_as_it_stands():
    settings, text = _settings(["--config", "configs/nightly.yaml"])
    engine.check(settings)
    assert settings.fit["data"]["split"]["init_args"] == {"validation": "1d", "test": "1d"}  # not built here
    assert settings.warm_start.fit == {"trainer": {"max_epochs": 4}}
    assert '"validation":"1d"' in text


def test_the_page_names_every_gate_with_its_default():
    table = PAGE.split("## The gates")[1].split("\n## ")[0]
    told: dict[str, str] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if names := re.findall(r"`(\w+)`", cells[2]) if len(cells) > 4 else []:
            told |= dict(zip(names, cells[3].split(", "), strict=True))
    assert told == {gate.name: f"{gate.default}" for gate in dataclasses.fields(Gates)}


def test_the_page_names_nothing_that_there_is_not():
    settings = {field.name for field in dataclasses.fields(Settings)}
    for word in ("resume_within", "warm_start.fit", "keep", "cluster", "engine", "work"):
        assert word in PAGE
        assert word.split(".")[0] in settings


def test_help_has_examples_and_says_what_an_exit_status_means():
    ran = subprocess.run(
        [sys.executable, "-m", "recsys.cli", "nightly", "--help"], capture_output=True, text=True, check=True
    )
    assert "recsys nightly --config configs/nightly.yaml" in ran.stdout
    assert "3 refused by a gate" in ran.stdout
    assert "--gates.tolerance" in ran.stdout
