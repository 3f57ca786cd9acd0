"""The typed builder: what it accepts, and what it says of what it does not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve.app import build
from serve.settings import Settings


def test_settings_are_read_from_text_as_a_command_line_gives_it() -> None:
    said = Settings.model_validate({"registry": "r", "replicas": "2", "max_k": "50"})
    assert (said.replicas, said.max_k, said.max_history) == (2, 50, 1000)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"registry": "r", "replica": 2}, "there is no 'replica'; did you mean 'replicas'?"),
        ({"registy": "r"}, "did you mean 'registry'?"),
        ({}, "registry"),
        ({"registry": ""}, "at least 1 character"),
        ({"registry": "r", "max_k": 0}, "greater than or equal to 1"),
        ({"registry": "r", "timeout_s": 0}, "greater than 0"),
    ],
)
def test_a_wrong_setting_is_named(said: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(said)
    assert words in str(caught.value)


def test_the_builder_is_typed_so_that_ray_checks_its_arguments() -> None:
    assert build.__annotations__["args"] is Settings


def test_the_builder_sets_what_ray_leaves_unbounded() -> None:
    deployment = build(Settings(registry="r", replicas=2, max_waiting=10))._bound_deployment
    assert (deployment.name, deployment.num_replicas) == ("Recommendations", 2)
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (20, 80)
