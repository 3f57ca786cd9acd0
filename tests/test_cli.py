"""The command: help, what it refuses and how it says so, and the configurations that come with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recsys.cli import HELP, main

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "serving.yaml"})  # no --print_config: see tests/serve
COMMANDS = ("prepare", "fit", "validate", "test", "predict", "tune", "evaluate", "bundle", "nightly", "serve")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_names_every_command_and_shows_examples(capsys, arguments):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said == HELP
    for command in COMMANDS:
        assert f"{command}  " in said
    for command in ("prepare", "fit", "evaluate", "bundle seal", "serve"):
        assert f"\n  recsys {command} --" in said


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "bundle"])
def test_each_command_explains_itself_by_an_example(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code in (0, None)
    said = capsys.readouterr().out
    assert "usage: recsys" in said
    assert "\n  recsys " in said


@pytest.mark.parametrize("command", ["prepare", "evaluate", "tune", "adapt", "nightly"])
def test_what_takes_a_configuration_lists_its_options_and_ends_with_examples(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code in (0, None)
    said = capsys.readouterr().out
    assert f"usage: recsys {command} [--config CONFIG]" in said
    assert "--out OUT" in said or command == "nightly"
    assert said.count("\nexamples:\n") == 1
    assert f"\n  recsys {command} --" in said.partition("\nexamples:")[2]


def test_the_help_of_bundle_shows_examples_of_every_step(capsys):
    with pytest.raises(SystemExit):
        main(["bundle", "--help"])
    said = capsys.readouterr().out
    for step in ("seal", "list", "promote", "rollback"):
        assert f"\n  recsys bundle {step}" in said


def test_an_unknown_command_is_answered_with_help(capsys):
    assert main(["trian"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("recsys: there is no command 'trian'\n")
    assert HELP in said.err


def refused(capsys, *arguments):
    """What a command says that refuses: one line, of its own name."""
    capsys.readouterr()
    assert main(list(arguments)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recsys ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"recsys {arguments[0]}: ")
    return lines[0]


def test_refusals_are_one_line_and_say_what_to_do(toy, tmp_path, capsys):
    given = ["--checkpoint", str(toy.checkpoint), "--dataset", str(toy.dataset)]
    nowhere, registry = str(tmp_path / "nowhere"), ["--registry", str(tmp_path / "registry")]
    for arguments, message in (
        (["evaluate", "--checkpoint", nowhere, "--dataset", str(toy.dataset)], "there is no checkpoint"),
        (
            ["evaluate", "--checkpoint", str(toy.checkpoint), "--dataset", nowhere],
            "is not a dataset: it has no manifest",
        ),
        (["evaluate", *given, "--dimensions", "[99]"], "vectors of 16 dimensions cannot be cut to 99"),
        (["fit", "--data.dataset", nowhere], "is not a dataset: it has no manifest.json"),
        (["bundle", "seal", *given, *registry, "--evaluation", nowhere], "there is no evaluation"),
        (["bundle", "seal", *given, *registry, "--evaluation", str(toy.log)], "log.csv is no evaluation"),
        (["bundle", "promote", "this", *registry], "has no bundle 'this'; it has: none"),
        (["bundle", "rollback", *registry], "there is nothing to go back to"),
        (["bundle", "show", *registry], "no bundle is live in"),
        (["bundle", "verify", *registry], "no bundle is live in"),
        (["bundle", "verify", "this", *registry], "has no bundle 'this'"),
        (["prepare", "--config", str(toy.dataset.parent / "prepare.yaml")], "exists already and a dataset is never"),
    ):
        assert message in refused(capsys, *arguments), arguments


def test_a_refusal_ends_the_process_with_1_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "recsys.cli", "bundle", "promote", "this", "--registry", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"recsys bundle: {tmp_path} has no bundle 'this'; it has: none\n"


@pytest.mark.parametrize(
    ("command", "change", "key"),
    [
        ("fit", {"model": {"learning_rte": 1}}, "learning_rte"),
        ("fit", {"modle": {"learning_rate": 1}}, "modle"),
        ("fit", {"model": {"architecture": {"dimensions": 3}}}, "dimensions"),
        ("prepare", {"max_rejects": 1}, "max_rejects"),
        ("prepare", {"tables": {"init_args": {"schema": {"interaction": {}}}}}, "interaction"),
    ],
)
def test_an_unknown_key_of_a_configuration_is_an_error(toy, tmp_path, capsys, command, change, key):
    def merged(said, more):
        return said | {k: merged(said.get(k, {}), v) if isinstance(v, dict) else v for k, v in more.items()}

    config = yaml.safe_load((toy.dataset.parent / f"{command}.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(merged(config, change)))
    code: object
    try:
        code = main([command, "--config", str(tmp_path / "config.yaml")])
    except SystemExit as left:
        code = left.code
    assert code in (1, 2)
    said = capsys.readouterr().err
    assert key in said
    assert "Traceback" not in said


def test_serve_becomes_a_process_of_its_own(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda *given: called.append(given))
    assert main(["serve", "--registry", "here"]) == 0
    assert called == [(sys.executable, [sys.executable, "-m", "serve", "--registry", "here"])]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_configuration_names_its_command_first_and_that_takes_it(config, capsys):
    first = config.read_text(encoding="utf-8").splitlines()[0]
    words = first.removeprefix("# ").split()
    assert words[0] == "recsys"
    assert words[2:] == ["--config", f"configs/{config.name}"]
    with pytest.raises(SystemExit) as left:
        main([words[1], "--config", str(config), "--print_config"])
    assert left.value.code in (0, None)
    parsed, given = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text(encoding="utf-8"))
    assert set(given) <= set(parsed)


def test_the_steps_of_bundle_by_their_commands(toy, tmp_path, capsys):
    registry = ["--registry", str(tmp_path)]
    sealed = ["bundle", "seal", "--checkpoint", str(toy.checkpoint), "--dataset", str(toy.dataset), *registry]

    def said(*arguments):
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    first = said(*sealed, "--promote").splitlines()
    assert first[0].startswith("sealed 2")
    assert first[0].endswith(": flat index, recall@10 1.0000 against exact search")
    a = first[1].removesuffix(" is live")
    b = said(*sealed).split()[1].rstrip(":")
    rows = [line.split() for line in said("bundle", "list", *registry).splitlines()]
    assert [row[:2] for row in rows[1:]] == [["*", a], [b, rows[2][1]]]
    assert said("bundle", "promote", b, *registry, "--why", "better") == f"{b} is live\n"
    assert '"dimensions": [\n  16\n ]' in said("bundle", "show", *registry)
    assert said("bundle", "verify", *registry) == f"{b}: 14 files match its manifest\n"
    assert said("bundle", "rollback", *registry) == f"{a} is live again\n"
    assert [line.split()[3:6] for line in said("bundle", "log", *registry).splitlines()[1:]] == [
        ["promote", a, "–"], ["promote", b, a], ["rollback", a, b],
    ]  # fmt: skip
