"""Where training and embedding run: in this process, or on a Ray cluster; the same configuration, the same results."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.model.embed import Trained
from recsys.nightly.fitting import Train, merged
from recsys.nightly.settings import Settings
from recsys.seal import Embed, embed


def check(settings: Settings) -> None:
    """Refuses what `fit` and `warm_start.fit` say now, not when the night has come so far.

    Raises:
        ArtifactError: `recsys fit` would not take it; it says why on standard error.
    """
    from recsys import train

    class Parse(train.FitCLI):
        def instantiate_classes(self) -> None:
            """Nothing is built."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing is run."""

    configs = [settings.fit]
    if settings.warm_start is not None:
        configs.append(merged(settings.fit, settings.warm_start.fit))
    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            _run(merged(config, {"data": {"dataset": folder}}), Path(folder), [], Parse)


def train_with(settings: Settings) -> Train:
    """How to train, as the settings say."""
    if settings.engine == "local":
        return _train_here

    def train_there(config: dict[str, Any], run: Path, warm_start: Path | None) -> None:
        from recsys.cluster.fitting import fit  # what Ray needs, most nights do not

        fit(config, run, settings.cluster, warm_start=warm_start)

    return train_there


def embed_with(settings: Settings, checkpoint: Path) -> Embed:
    """How to embed, as the settings say."""
    if settings.engine == "local":
        return embed

    def embed_there(trained: Trained, data: Dataset) -> Any:
        from recsys.cluster.embedding import embed as embed_on

        return embed_on(checkpoint, data.path, settings.cluster)

    return embed_there


def _train_here(config: dict[str, Any], run: Path, warm_start: Path | None) -> None:
    from recsys import train

    more = [] if warm_start is None else ["--warm_start", str(warm_start)]
    if (run / "last.ckpt").exists():  # an attempt before was stopped
        more += ["--ckpt_path", str(run / "last.ckpt")]
    _run(config, run, more, train.FitCLI)


def _run(config: dict[str, Any], run: Path, more: list[str], cli: Any) -> None:
    from recsys import train

    file = run / "fit.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        train.run(["fit", "--config", str(file), "--out", str(run), *more], cli)
    except SystemExit as error:
        if error.code:
            raise ArtifactError(
                "`recsys fit` does not take `fit` of this configuration; the lines above say why"
            ) from None
