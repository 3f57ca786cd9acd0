"""What every part of the benchmark is given: two bundles, the load, who promotes, and the service for a while."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.loads import Plan
from benchmarks.serving import K
from benchmarks.serving_faults.service import Service, free_port

USERS = 500
STEADY_S = 5.0  # of load before and after what is done to the service


@dataclass(frozen=True)
class Setting:
    """What every part of the benchmark is given."""

    said: argparse.Namespace
    folder: Path
    registry: Path
    bundles: list[str]
    paths: list[str]
    items: list[str]
    expected: dict[str, list[list[str]]]
    promoter: Any

    def plan(self, port: int, **changes: Any) -> Plan:
        """The load of a part."""
        given = {"rate": self.said.rate, "items": self.items} | changes
        return Plan(port, self.paths, self.said.connections, **given)

    def promote(self, bundle: str) -> tuple[float, float]:
        """Makes a bundle live; when its checks began and when CURRENT was replaced, seconds since 1970."""
        began = time.time()
        self.promoter.apply(_promote, (str(self.registry), bundle))
        return began, (self.registry / "CURRENT").stat().st_mtime


@contextlib.contextmanager
def running(setting: Setting, replicas: int, online: str = "") -> Iterator[Service]:
    """The service, up to the end of the block."""
    service = Service(setting.registry, free_port(), replicas, online)
    try:
        yield service
    finally:
        service.stop()


def _promote(registry: str, bundle: str) -> None:
    import torch

    from recsys.registry import Registry

    torch.set_num_threads(1)
    found = Registry(registry)
    if found.previous == bundle:  # what came before comes back by a rollback, as a person would do it
        found.rollback(why="a benchmark")
    else:
        found.promote(bundle, why="a benchmark")


def answers_by_bundle(registry: str) -> tuple[list[str], list[str], list[str], dict[str, list[list[str]]]]:
    """The two bundles, the paths to ask, some items, and by bundle the item ids that each path gives."""
    from recsys.bundle import Bundle
    from recsys.recommender import Recommender
    from recsys.registry import Registry

    found = Registry(registry)
    live, before = found.current, found.previous
    if live is None or before is None:
        raise RuntimeError(f"{registry} needs a live bundle and one before it; promote another one")
    expected, users, items = {}, None, []
    for bundle in (live, before):
        recommender = Recommender(Bundle.open(found.bundle_path(bundle)))
        if users is None:
            ids = recommender.bundle.user_ids
            users = ids.ids(np.random.default_rng(0).choice(len(ids), min(USERS, len(ids)), replace=False))
            items = [str(item) for item in recommender.bundle.item_ids.ids(np.arange(len(recommender.bundle.item_ids)))]
        answers = [recommender.recommend(user_id=user, k=K).items for user in users]
        expected[bundle] = [[str(item.item_id) for item in answer] for answer in answers]
    paths = [f"/v1/users/{quote(str(user), safe='')}/recommendations?k={K}" for user in users or ()]
    return [live, before], paths, items, expected
