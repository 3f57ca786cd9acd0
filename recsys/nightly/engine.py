"""Where training and embedding run: in this process, or on a Ray cluster; the same configuration, the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.model.embed import Trained
from recsys.nightly.fitting import Train
from recsys.nightly.settings import Settings
from recsys.seal import Embed, embed


def train_with(settings: Settings) -> Train:
    """How to train, as the settings say."""
    if settings.engine == "local":
        return _train_here

    def train_there(config: dict[str, Any], run: Path, warm_start: Path | None) -> None:
        from recsys import cluster  # Ray takes a second to import, and most nights need none

        cluster.fit(config, run, settings.cluster, warm_start=warm_start)

    return train_there


def embed_with(settings: Settings, checkpoint: Path) -> Embed:
    """How to embed, as the settings say."""
    if settings.engine == "local":
        return embed

    def embed_there(trained: Trained, data: Dataset) -> Any:
        from recsys import cluster

        return cluster.embed(checkpoint, data.path, settings.cluster)

    return embed_there


def _train_here(config: dict[str, Any], run: Path, warm_start: Path | None) -> None:
    from recsys import train

    file = run / "fit.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = ["fit", "--config", str(file), "--out", str(run)]
    if warm_start is not None:
        arguments += ["--warm_start", str(warm_start)]
    if (run / "last.ckpt").exists():  # an attempt before was stopped
        arguments += ["--ckpt_path", str(run / "last.ckpt")]
    try:
        train.run(arguments)
    except SystemExit as error:
        if error.code:
            raise ArtifactError("the `fit` part of the configuration is not valid; the lines above say why") from None
