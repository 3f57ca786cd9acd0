"""What a nightly configuration may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recsys.cluster.place import Cluster
from recsys.data.sources import Tables
from recsys.index.build import Kind
from recsys.nightly.fitting import WarmStart
from recsys.nightly.gates import Gates


@dataclass(frozen=True)
class Settings:
    """The nightly job's configuration.

    Args:
        tables: the schema and the sources of the log and the catalogue.
        registry: the folder or fsspec address of the bundles.
        work: the folder where the nights lie, each with a directory a step.
        fit: what a configuration of `recsys fit` would say, without `data.dataset` and `out`.
        warm_start: how a night's training goes on from the live bundle's; null trains from scratch every night.
        index: which kind, as `recsys index advise` says; chosen by the size of the catalogue if left out.
        gates: what a candidate must show before it goes live.
        engine: `local` for this machine, `ray` for a cluster of several.
        cluster: which one, for `ray`.
        keep: how many bundles and nights to keep; the live one and the one before it stay beyond that.
        max_queries: the newest held-out interactions that are asked, at most; drawn at random where there are more.
        resume_within: hours for which a night that was stopped is gone on with; later a new one begins.
    """

    tables: Tables
    registry: str
    work: Path
    fit: dict[str, Any] = field(default_factory=dict)
    warm_start: WarmStart | None = field(default_factory=WarmStart)
    index: Kind | None = None
    gates: Gates = field(default_factory=Gates)
    engine: Literal["local", "ray"] = "local"
    cluster: Cluster = field(default_factory=Cluster)
    keep: int = 7
    max_queries: int = 20_000
    resume_within: float = 20

    def __post_init__(self) -> None:
        for name, value in (("keep", self.keep), ("max_queries", self.max_queries)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        for taken in ("dataset", "warm_start"):
            if taken in self.fit.get("data", {}):
                raise ValueError(f"fit.data.{taken} is the job's to say; leave it out")
        for key in self.fit:
            if key not in ("trainer", "data", "model", "early_stopping", "checkpoint", "seed_everything"):
                raise ValueError(
                    f"fit has no {key!r}; it takes trainer, data, model, early_stopping, checkpoint and seed_everything"
                )
