"""Fixtures for all tests: the toy's whole way, walked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from recsys.bundle import Bundle
from recsys.cli import main
from recsys.registry import Registry
from recsys.seal import seal
from tests.s3 import S3, running_s3
from tests.shop import prepared, prepared_bare
from tests.toy import Toy, walk


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """The toys are small: threads that wait for a busy core cost ten times what they save.

    Anew for every module, since FAISS and torch share the number, and whoever sets one sets the other.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies of what lies at an address go to a folder of the tests, not to that of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server on this machine, and fsspec told of it."""
    with running_s3() as server:
        yield server


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


@pytest.fixture(scope="session")
def stranger(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same dataset and the same architecture, trained from another seed, and less."""
    folder = tmp_path_factory.mktemp("stranger")
    few = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2", "--out", str(folder / "run")]
    assert main(["fit", "--config", str(toy.dataset.parent / "fit.yaml"), "--seed_everything", "1", *few]) == 0
    seal(folder / "run" / "best.ckpt", toy.dataset, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of a shop with every kind of column there is."""
    return prepared(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the same log with neither times nor events nor features."""
    return prepared_bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def shop_bundle(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shop's bundle, of unit vectors; hardly trained."""
    folder = tmp_path_factory.mktemp("shop-bundle")
    towers = {"dimension": 8, "max_length": 6, "blocks": 1, "unit": True}
    config = {
        "trainer": {"max_epochs": 2, "logger": False, "precision": "32-true"},
        "data": {"dataset": str(shop), "split": {"class_path": "recsys.data.split.LeaveOneOut"}},
        "model": {"architecture": towers, "learning_rate": 0.1, "warmup_steps": 1},
        "out": str(folder / "run"),
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "fit.yaml")]) == 0
    seal(folder / "run" / "best.ckpt", shop, folder / "bundle")
    return Bundle.open(folder / "bundle")
