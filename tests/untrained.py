"""The toy's bundle with other towers, untrained but for weights that all say something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recsys.bundle import Bundle
from recsys.model.embed import Trained
from recsys.model.towers import Towers
from recsys.seal import seal
from tests.toy import Toy


def checkpoint_with(toy: Toy, path: Path, **architecture: Any) -> Path:
    """The toy's checkpoint at a path, its towers made anew with parts of their architecture changed."""
    made, said = Trained.open(toy.checkpoint).towers, torch.load(toy.checkpoint, weights_only=True)
    torch.manual_seed(0)
    towers = Towers(made.sizes, replace(made.architecture, **architecture))
    for weight in towers.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    weights = {f"towers.{name}": weight for name, weight in towers.state_dict().items()}
    torch.save({**said, "towers": towers.config(), "state_dict": weights}, path)
    return path


def sealed_with(toy: Toy, folder: Path, **architecture: Any) -> Bundle:
    """What such a checkpoint is sealed to."""
    seal(checkpoint_with(toy, folder / "other.ckpt", **architecture), toy.dataset, folder / "bundle")
    return Bundle.open(folder / "bundle")
