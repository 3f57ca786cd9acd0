"""A Bundle: user tower, item vectors, index and ids of one training, sealed so that they can only travel together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from recsys.artifacts import ArtifactError, Manifest, read_manifest, verify
from recsys.attributes import Attributes
from recsys.data.schema import Schema
from recsys.data.vocabulary import FeatureEncoder
from recsys.ids import IdMap
from recsys.index.search import Index
from recsys.model.embed import Catalogue
from recsys.model.serving import UserEncoder, known_moments
from recsys.model.towers import Towers

KIND = "bundle"
FORMAT_VERSION = 1
_SAMPLE = 32  # rows embedded again when a bundle is opened, to see that towers and vectors belong together
_TOLERANCE = 1e-3  # of a vector's length: two machines' float32 differ by less, two trainings by far more


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; nothing in it changes any more.

    Attributes:
        item_vectors: float32 [N, D].
        user_vectors: float32 [U, D], right after what they took last; zeros for a user without a history.
        user_offsets: int64 [U + 1]; what user u took stands between offsets u and u + 1, oldest first.
        history_items: int32 [interactions], item rows.
        history_times: int64 [interactions], milliseconds since 1970; None if the log has no time.
        history_events: int16 [interactions]; None if the log names none.
        popularity: float32 [N], each item's share of the newest tenth of the log.
        profiles: encoded user features, feature name to [U, …].
        trained: bool [N], which items training knew.
    """

    path: Path
    manifest: Manifest
    schema: Schema
    towers: Towers
    item_ids: IdMap
    user_ids: IdMap
    item_vectors: np.ndarray
    user_vectors: np.ndarray
    user_offsets: np.ndarray
    history_items: np.ndarray
    history_times: np.ndarray | None
    history_events: np.ndarray | None
    popularity: np.ndarray
    profiles: dict[str, np.ndarray]
    attributes: Attributes
    index: Index
    trained: np.ndarray
    item_encoder: FeatureEncoder
    user_encoder: FeatureEncoder

    @property
    def id(self) -> str:
        """What every answer calls it: when it was sealed and the start of its digest."""
        return bundle_id(self.manifest)

    @property
    def about(self) -> dict[str, Any]:
        """What it says of itself, as JSON values."""
        return {"bundle": self.id, "created": self.manifest.created, "digest": self.manifest.digest} | {
            key: value for key, value in self.manifest.content.items() if key != "schema"
        }

    @classmethod
    def open(cls, path: Path, *, verified: Manifest | None = None) -> Bundle:
        """Opens a bundle after checking all of it.

        Args:
            path: where it lies.
            verified: what `recsys.artifacts.verify` gave for the bundle there, so that its bytes are not read again; a
                server has that done by a thread that gives way to those that answer.

        Raises:
            ArtifactError: a digest is off, towers, ids, vectors and index do not belong together, or a vector is not
                finite; the message names the file. Or another bundle lies there than the one verified.
        """
        path = Path(path)
        if verified is None:
            manifest = verify(path, KIND, FORMAT_VERSION)
        else:
            manifest = read_manifest(path, KIND, FORMAT_VERSION)
            if manifest != verified:
                raise ArtifactError(
                    f"{path} holds bundle {bundle_id(manifest)} now, not {bundle_id(verified)}; verify it"
                )
        said = json.loads((path / "towers.json").read_text(encoding="utf-8"))
        towers = Towers.from_config(said["config"])
        for name, tower in (("item", towers.item), ("user", towers.user)):
            try:
                tower.load_state_dict(load_file(path / f"{name}_tower.safetensors"))
            except RuntimeError as error:
                raise ArtifactError(
                    f"{path / name}_tower.safetensors is not the tower of towers.json ({error})"
                ) from None

        def array(name: str) -> Any:
            file = path / f"{name}.npy"
            # As a plain array over the mapped file: np.memmap's own slices cost a microsecond each.
            return np.load(file, mmap_mode="r").view(np.ndarray) if file.exists() else None

        schema = Schema.from_dict(manifest.content["schema"])
        item_ids, user_ids = IdMap.load(path / "item_ids.arrow"), IdMap.load(path / "user_ids.arrow")
        item_vectors = array("item_vectors")
        item_table = _features(path, "item_features", len(item_ids))
        item_encoder, user_encoder = (FeatureEncoder.from_dict(said[f"{name}_encoder"]) for name in ("item", "user"))
        for encoder in (item_encoder, user_encoder):
            encoder.load_models()  # what a bundle needs beside itself must be here before it may answer
        bundle = cls(
            path=path,
            manifest=manifest,
            schema=schema,
            towers=towers.eval(),
            item_ids=item_ids,
            user_ids=user_ids,
            item_vectors=item_vectors,
            user_vectors=array("user_vectors"),
            user_offsets=array("user_offsets"),
            history_items=array("history_items"),
            history_times=array("history_times"),
            history_events=array("history_events"),
            popularity=np.load(path / "popularity.npy"),
            profiles=user_encoder.encode(_features(path, "user_features", len(user_ids))),
            attributes=Attributes(schema.items, item_table, len(item_ids)),
            index=Index.load(path / "index.faiss", num_items=len(item_ids), dimension=towers.architecture.dimension),
            trained=np.load(path / "trained.npy"),
            item_encoder=item_encoder,
            user_encoder=user_encoder,
        )
        bundle._refuse_misfits()
        bundle._refuse_strangers(said, item_table)
        return bundle

    def _refuse_misfits(self) -> None:
        """Compares the lengths of all arrays: a row must mean the same in each."""
        items, users = len(self.item_ids), len(self.user_ids)
        for name, values, expected in (
            ("item_vectors", self.item_vectors, items),
            ("popularity", self.popularity, items),
            ("trained", self.trained, items),
            ("user_vectors", self.user_vectors, users),
            ("user_offsets", self.user_offsets, users + 1),
            ("history_items", self.history_items, int(self.user_offsets[-1])),
            ("history_times", self.history_times, int(self.user_offsets[-1])),
            ("history_events", self.history_events, int(self.user_offsets[-1])),
        ):
            if values is not None and len(values) != expected:
                raise ArtifactError(f"{self.path / name}.npy has {len(values)} rows, expected {expected}; seal again")

    def _refuse_strangers(self, said: dict[str, Any], item_table: pa.Table) -> None:
        """Embeds a sample again: files whose digests agree may still come from two trainings."""
        for name, ids in (("item_ids", self.item_ids), ("user_ids", self.user_ids)):
            if ids.digest != said[name]:
                raise ArtifactError(
                    f"{self.path / name}.arrow is not the id map that these towers were trained on; seal again"
                )
        for name, vectors in (("item_vectors", self.item_vectors), ("user_vectors", self.user_vectors)):
            if not np.isfinite(vectors).all():
                row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
                raise ArtifactError(f"{self.path / name}.npy is not finite at row {row}; train again and seal")
        rows = np.unique(np.linspace(0, len(self.item_ids) - 1, _SAMPLE).astype(np.int64))
        sample = pa.table({name: item_table.column(name).take(pa.array(rows)) for name in item_table.column_names})
        catalogue = Catalogue(self.item_encoder.encode(sample), self.trained[rows], rows)
        items = self.item_vectors[rows]
        again = catalogue.embed(self.towers).numpy()
        what = f"{self.path / 'item_vectors.npy'} was not made by item_tower.safetensors"
        _refuse_apart(np.linalg.norm(items - again, axis=1), items, what)
        what = f"{self.path / 'index.faiss'} was not built from item_vectors.npy"
        _refuse_apart(self.index.misfit(rows, items), items, what)
        users = np.flatnonzero(np.diff(self.user_offsets))
        users = users[np.unique(np.linspace(0, len(users) - 1, _SAMPLE // 4).astype(np.int64))] if len(users) else users
        for user in users:
            vectors = self.user_vectors[[user]]
            apart = np.linalg.norm(vectors - self.embed_user(int(user)), axis=1)
            _refuse_apart(apart, vectors, f"{self.path / 'user_vectors.npy'} was not made by user_tower.safetensors")

    def items(self) -> pd.DataFrame:
        """The catalogue, for people to look at: attributes and popularity by item id, in the order of rows."""
        frame = self.attributes.frame()
        frame.index = pd.Index(self.item_ids.array.to_pandas(), name="item_id")
        return frame.assign(popularity=self.popularity)

    @cached_property
    def user_tower(self) -> UserEncoder:
        """The user tower as a server runs it."""
        return UserEncoder(self.towers)

    def seen(self, user: int) -> np.ndarray:
        """The item rows that a user row took, oldest first."""
        return self.history_items[self.user_offsets[user] : self.user_offsets[user + 1]]

    def embed_user(
        self,
        user: int | None,
        items: np.ndarray | None = None,
        times: np.ndarray | None = None,
        events: np.ndarray | None = None,
        asked: int | None = None,
    ) -> np.ndarray:
        """The vector of a user now: what the bundle knows of them, then what happened since.

        Args:
            user: their row; None for a user whom the bundle does not know.
            items: int64 [n], item rows taken since, oldest first.
            times: int64 [n], milliseconds since 1970, −1 where unknown.
            events: int64 [n], event codes.
            asked: when, milliseconds since 1970, which towers made with `query_time` are told; as soon as the newest
                interaction happened if left out, as at sealing.

        Returns:
            float32 [D].
        """
        fresh = np.empty(0, dtype=np.int64) if items is None else items
        length = self.towers.architecture.max_length
        known = slice(0, 0)
        if user is not None:
            end = int(self.user_offsets[user + 1])
            known = slice(max(int(self.user_offsets[user]), end - max(0, length - len(fresh))), end)
        skipped = max(0, len(fresh) - length)

        def joined(stored: np.ndarray | None, since: np.ndarray | None) -> np.ndarray | None:
            if stored is None:
                return None
            since = np.zeros(len(fresh), dtype=np.int64) if since is None else since
            return np.concatenate([stored[known], since[skipped:]]).astype(np.int64)

        when = joined(self.history_times, np.full(len(fresh), -1) if times is None else times)
        rows = joined(self.history_items, fresh)
        profile = {
            name: np.zeros_like(values[:1]) if user is None else values[[user]]
            for name, values in self.profiles.items()
        }
        return self.user_tower(
            self.item_vectors[rows],
            None if when is None else known_moments(when, asked),
            joined(self.history_events, events),
            profile,
            asked,
        )


def bundle_id(manifest: Manifest) -> str:
    """A bundle's name, from its manifest."""
    moment = manifest.created.split("+")[0].translate(str.maketrans("", "", "-:."))
    return f"{moment}-{manifest.digest[:12]}"


def _features(path: Path, name: str, rows: int) -> pa.Table:
    file = path / f"{name}.parquet"
    return pq.read_table(file) if file.exists() else pa.table({"row": pa.nulls(rows)}).select([])


def _refuse_apart(apart: np.ndarray, vectors: np.ndarray, what: str) -> None:
    """Raises ArtifactError if a distance [n] is more than a small share of its vector's length, vectors [n, D]."""
    if (apart > _TOLERANCE * np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)).any():
        raise ArtifactError(f"{what}: its vectors differ by up to {apart.max():.3g} from those made again; seal again")
