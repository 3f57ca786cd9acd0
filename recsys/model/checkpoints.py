"""Checkpoints that are there whole or not at all, whenever the process is killed and whatever disk they lie on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


class DurableCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it there.

    Lightning's own writes below /tmp and moves, which on another disk is a copy: killed in it, it leaves half a file
    under the name of the one that was good.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.part")  # one name, so that what a killed process left is replaced
        try:
            with open(beside, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, place)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
