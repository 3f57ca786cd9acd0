"""The supplied settings are ones that the service takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recsys.rules import Cap, Freshness, Rules
from serve.__main__ import main
from serve.settings import Settings

CONFIG = Path("configs/serving.yaml")


def test_the_supplied_settings_are_taken_as_they_read() -> None:
    said = Settings.model_validate(yaml.safe_load(CONFIG.read_text()))
    assert (said.replicas, said.max_k, said.max_history) == (2, 100, 1000)
    assert said.rules.rules(Rules()) == Rules(
        caps=(Cap("brand", 3),), diversity=0.2, freshness=Freshness("added", 14, 0.5)
    )


def test_the_first_line_is_the_command_that_uses_them() -> None:
    first = CONFIG.read_text().splitlines()[0]
    assert first == f"# recsys serve --config {CONFIG}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replica: 2", "there is no 'replica'; did you mean 'replicas'?"),
        ("rules: {caps: {brand: many}}", "rules/caps/brand"),
        ("- replicas", "must hold settings by name"),
        ("replicas: 0", "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "serving.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["--registry", str(tmp_path), "--config", str(tmp_path / "serving.yaml")])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_another_address_than_loopback_wants_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--registry", str(tmp_path), "--host", "0.0.0.0"])
    assert "--keys" in capsys.readouterr().err
