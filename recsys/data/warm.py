"""A warm start's data: what an older checkpoint knew of a dataset, checked against the one that has grown since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.data.schema import Entity
from recsys.data.vocabulary import FeatureEncoder
from recsys.ids import IdMap


class WarmStartError(ArtifactError):
    """This data or these towers cannot go on from that checkpoint; training in full can always be done instead."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `recsys fit`, without unpickling code, and under `data` what it remembers of its data.

    Raises:
        WarmStartError: there is none, or it is something else.
    """
    try:
        said: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        said["data"] = remembered(said)
    except FileNotFoundError:
        raise _refusal(path, "there is no such file") from None
    except Exception as error:
        raise _refusal(path, f"it is not a checkpoint of `recsys fit` ({error!r})") from error
    return said


def remembered(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's data module put into it; Lightning names the state after its class."""
    return next(value for name, value in checkpoint.items() if name.endswith("HistoryData"))


@dataclass(frozen=True)
class Before:
    """What a checkpoint knew of a dataset that has grown since.

    Attributes:
        path: the checkpoint.
        item_encoder, user_encoder: as it encoded features.
        trained_until: its newest training interaction, milliseconds since 1970; None if it does not say.
    """

    path: Path
    item_encoder: FeatureEncoder
    user_encoder: FeatureEncoder
    trained_until: int | None

    @classmethod
    def of(cls, path: Path, dataset: Dataset) -> Self:
        """Reads a checkpoint and checks that its rows and codes mean in `dataset` what they meant to it.

        Raises:
            WarmStartError: there is no such checkpoint, or the dataset did not grow from its own by appending.
        """
        said = read_checkpoint(path)["data"]
        count, ids = len(said["trained"]), dataset.item_ids.array
        if IdMap(ids[:count]).digest != said["item_ids"]:
            raise _refusal(path, f"its {count} items are not the first ones of {dataset.path}")
        names = said.get("event_names", [])
        if dataset.event_names and "event_names" not in said:  # written before they were kept
            raise _refusal(path, "it does not say what its event codes mean")
        if names != dataset.event_names[: len(names)]:
            raise _refusal(path, f"its events {names} are not the first ones of {dataset.event_names}")
        item_encoder, user_encoder = (FeatureEncoder.from_dict(said[f"{name}_encoder"]) for name in ("item", "user"))
        return cls(path, item_encoder, user_encoder, said.get("trained_until"))

    def grown(
        self, encoder: FeatureEncoder, entity: Entity | None, table: pa.Table, known: np.ndarray
    ) -> FeatureEncoder:
        """One of the encoders, grown by what training knows now (see `FeatureEncoder.grown`)."""
        try:
            return encoder.grown(entity.features if entity else (), table, known)
        except ValueError as error:
            raise _refusal(self.path, str(error)) from error


def _refusal(path: Path, why: str) -> WarmStartError:
    return WarmStartError(f"training cannot go on from {path}: {why}; train in full, without warm_start")


def replayed(lengths: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws a share of sequences so that what they cost is the same for every draw.

    Sequences are sorted by length and cut into blocks; each block gives as many as in every other draw, and all of
    them count as long as the block's longest. So every draw makes equally many batches (see `like_lengths`).

    Args:
        lengths: int64 [n], of the sequences to choose from.
        share: of them to draw, from 0 to 1.
        rng: draws.

    Returns:
        Indices into `lengths` [m], and the length that each is counted as, int64 [m].
    """
    order, count = np.argsort(lengths, kind="stable"), round(share * len(lengths))
    # Some sixteen from each: enough that shares of blocks are nearly equal, few enough that lengths within are.
    blocks = max(1, count // 16)
    parts = zip(np.array_split(order, blocks), np.array_split(np.arange(count), blocks), strict=True)
    drawn = [(rng.choice(block, len(some), replace=False), len(some), block) for block, some in parts if len(some)]
    chosen = np.concatenate([np.empty(0, dtype=np.int64), *(indices for indices, _, _ in drawn)])
    widths = np.concatenate([np.empty(0, dtype=np.int64), *(np.full(n, lengths[block].max()) for _, n, block in drawn)])
    return chosen, widths
