"""Fixtures for all tests: the toy's whole way, walked once."""

from __future__ import annotations

import pytest

from recsys.bundle import Bundle
from recsys.registry import Registry
from tests.toy import Toy, walk


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Where the stages of the toy's way lie. Do not change them; copy one to change it."""
    return walk(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_registry(toy: Toy) -> Registry:
    """A registry whose live bundle is the toy's."""
    return Registry(toy.registry)


@pytest.fixture(scope="session")
def toy_bundle(toy_registry: Registry) -> Bundle:
    """The toy's live bundle, opened."""
    return toy_registry.open_current()
