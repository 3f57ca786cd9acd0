"""The supplied configuration for a Ray cluster is one that Ray Serve and our builder accept."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import Settings

CONFIG = Path("configs/serve.yaml")


def test_config_is_valid_for_ray_and_for_the_builder() -> None:
    said = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = said.applications
    assert application.import_path == "serve.app:build"
    assert Settings(**application.args).registry == "demo/registry"


def test_config_names_its_command_on_the_first_line() -> None:
    first = CONFIG.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"serve run {CONFIG}")
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in first
