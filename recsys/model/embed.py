"""Embedding with trained towers: a catalogue's vectors and users' vectors, and towers opened from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.artifacts import ArtifactError
from recsys.data.batches import QueryBatch, query_loader, refuse_other_ids
from recsys.data.dataset import Dataset
from recsys.data.split import Queries, everyone
from recsys.data.vocabulary import UNKNOWN, FeatureEncoder
from recsys.data.warm import remembered
from recsys.model.functional import prefixes
from recsys.model.towers import ITEM_ID, Towers

_BLOCK = 1 << 14  # items embedded at once


class Catalogue(nn.Module):
    """The encoded features of every item, as the item tower reads them; moves with the module that holds it.

    Args:
        codes: encoded features, feature name to [N, …] (see `FeatureEncoder.encode`).
        trained: bool [N], whether training knew the item; the id of one it did not know says nothing.
        rows: int64 [N], which items these are; all of them, in order, if left out.
    """

    def __init__(self, codes: Mapping[str, np.ndarray], trained: np.ndarray, rows: np.ndarray | None = None) -> None:
        super().__init__()
        rows = np.arange(len(trained)) if rows is None else rows
        ids = np.where(trained, rows + 1, UNKNOWN)[:, None]
        self.names = [ITEM_ID, *codes]
        for place, values in enumerate([ids, *codes.values()]):
            self.register_buffer(f"input_{place}", torch.from_numpy(values), persistent=False)

    def all(self) -> dict[str, Tensor]:
        """Feature name to [N, …]."""
        return {name: getattr(self, f"input_{place}") for place, name in enumerate(self.names)}

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Feature name to [n, …], of the given rows."""
        return {name: values[rows] for name, values in self.all().items()}

    def embed(self, towers: Towers) -> Tensor:
        """The vectors of all items, float32 [N, D], in evaluation mode."""
        mode = towers.training
        towers.eval()
        encoded = self.all()
        with torch.no_grad():
            blocks = [
                towers.item({name: values[start : start + _BLOCK] for name, values in encoded.items()})
                for start in range(0, len(encoded[ITEM_ID]), _BLOCK)
            ]
        towers.train(mode)
        return torch.cat(blocks)


@dataclass(frozen=True)
class Trained:
    """Towers from a checkpoint, and what they must not be parted from.

    Attributes:
        towers: in evaluation mode.
        dataset: digest of the dataset they were trained on.
        item_ids: digest of the id map that says which item each row is.
        trained: bool [N], which items training knew.
        split: what it was held out from, as `described`.
        dimensions: the full one, then the prefixes that the loss trained, which vectors may be cut to.
        trained_until: the newest training interaction, milliseconds since 1970; None if there were no times, or the
            checkpoint is from before they were kept.
    """

    towers: Towers
    trained: np.ndarray
    item_encoder: FeatureEncoder
    user_encoder: FeatureEncoder
    dataset: str
    item_ids: str
    split: dict[str, Any]
    dimensions: tuple[int, ...]
    trained_until: int | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a Lightning checkpoint of `TwoTower`, without Lightning and without unpickling code.

        Raises:
            ArtifactError: it is not such a checkpoint.
        """
        try:
            said: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            towers, dimensions = Towers.from_config(said["towers"]), tuple(said["dimensions"])
            data = remembered(said)
        except FileNotFoundError:
            raise ArtifactError(f"there is no checkpoint {path}; run `recsys fit` first") from None
        except Exception as error:
            raise ArtifactError(f"{path} is not a checkpoint of `recsys fit` ({error})") from error
        weights = {n.removeprefix("towers."): v for n, v in said["state_dict"].items() if n.startswith("towers.")}
        towers.load_state_dict(weights)
        return cls(
            towers=towers.eval(),
            trained=data["trained"].numpy(),
            item_encoder=FeatureEncoder.from_dict(data["item_encoder"]),
            user_encoder=FeatureEncoder.from_dict(data["user_encoder"]),
            dataset=data["dataset"],
            item_ids=data["item_ids"],
            split=data["split"],
            dimensions=dimensions,
            trained_until=data.get("trained_until"),
        )


def _device(towers: Towers) -> torch.device:
    return next(towers.parameters()).device


def query_vectors(towers: Towers, item_ND: Tensor, batches: Any, count: int) -> np.ndarray:
    """The user vectors that a loader's queries ask for.

    Args:
        towers: in evaluation mode, on any device.
        item_ND: the vectors of all items.
        batches: of `QueryBatch`, as `HistoryData.query_loader` gives.
        count: number of queries.

    Returns:
        float32 [count, D].
    """
    device = _device(towers)
    vectors, item_ND = np.zeros((count, item_ND.shape[1]), dtype=np.float32), item_ND.to(device)
    batch: QueryBatch
    with torch.inference_mode():
        for batch in batches:
            history = batch.history.to(device)
            user_BLD = towers.user(F.embedding(history.items_BL, item_ND), history)
            vectors[batch.query_Q.numpy()] = user_BLD.flatten(0, 1)[batch.position_Q.to(device)].cpu().numpy()
    return vectors


def item_vectors(trained: Trained, data: Dataset, rows: slice = slice(None)) -> np.ndarray:
    """The vectors of a dataset's items, float32 [N, D], or of the stretch `rows` of them, on the towers' device."""
    start, stop, _ = rows.indices(data.num_items)
    codes = trained.item_encoder.encode(data.item_features().slice(start, stop - start))
    catalogue = Catalogue(codes, trained.trained[start:stop], np.arange(start, stop))
    vectors: np.ndarray = catalogue.to(_device(trained.towers)).embed(trained.towers).cpu().numpy()
    return vectors


def user_vectors(trained: Trained, data: Dataset, item_ND: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """The vectors of a dataset's users as they are now, float32 [U, D]; zeros for a user without a history.

    Args:
        trained: from a checkpoint.
        data: where the histories stand.
        item_ND: the vectors of all its items.
        rows: a stretch of users; all of them if left out.
    """
    start, stop, _ = rows.indices(data.num_users)
    asked = everyone(data)
    asked = asked.take(np.flatnonzero((asked.user >= start) & (asked.user < stop)))
    profiles = trained.user_encoder.encode(data.user_features())
    batches = query_loader(data, asked, profiles, trained.towers.architecture.max_length)
    vectors = np.zeros((stop - start, item_ND.shape[1]), dtype=np.float32)
    vectors[asked.user - start] = query_vectors(trained.towers, torch.from_numpy(item_ND), batches, len(asked))
    return vectors


class TowerScorer:
    """Scores all items for queries with trained towers, as an evaluation wants it.

    Args:
        trained: from a checkpoint.
        dataset: the one it was trained on.
        dimension: prefix of the vectors to use; all of them if left out.
    """

    def __init__(self, trained: Trained, dataset: Dataset, dimension: int | None = None) -> None:
        refuse_other_ids(trained.item_ids, dataset)
        self._towers, self._dataset = trained.towers, dataset
        self._profiles = trained.user_encoder.encode(dataset.user_features())
        codes = trained.item_encoder.encode(dataset.item_features())
        self._item_ND = Catalogue(codes, trained.trained).embed(trained.towers)
        architecture = trained.towers.architecture
        self._length, self._unit = architecture.max_length, architecture.unit
        self._dimension = architecture.dimension if dimension is None else dimension
        if not 0 < self._dimension <= architecture.dimension:
            raise ValueError(
                f"vectors of {architecture.dimension} dimensions cannot be cut to {dimension}; choose less"
            )
        self._cut_ND = self._cut(self._item_ND)

    def scores(self, queries: Queries) -> np.ndarray:
        """float32 [Q, N], from each query's own history."""
        batches = query_loader(self._dataset, queries, self._profiles, self._length)
        vectors = query_vectors(self._towers, self._item_ND, batches, len(queries))
        scores: np.ndarray = (self._cut(torch.from_numpy(vectors)) @ self._cut_ND.T).numpy()
        return scores

    def _cut(self, vectors: Tensor) -> Tensor:
        return prefixes((vectors,), self._dimension, unit=self._unit)[0]
