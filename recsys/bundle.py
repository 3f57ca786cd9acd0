"""A Bundle: user tower, item vectors, index and ids of one training, sealed so that they can only travel together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from recsys.artifacts import ArtifactError, Manifest, read_manifest, sha256_of, verify, writing
from recsys.attributes import Attributes
from recsys.data.batches import query_loader, refuse_other_ids
from recsys.data.dataset import Dataset
from recsys.data.history import gap_buckets
from recsys.data.schema import Schema
from recsys.data.split import everyone
from recsys.data.vocabulary import FeatureEncoder
from recsys.ids import IdMap
from recsys.index.build import Kind, build, measured_recall
from recsys.index.search import Index
from recsys.model.embed import Catalogue, Trained, query_vectors
from recsys.model.towers import Towers

KIND = "bundle"
FORMAT_VERSION = 1
_SAMPLE = 32  # rows embedded again when a bundle is opened, to see that towers and vectors belong together
_TOLERANCE = 1e-3  # of a vector's length: two machines' float32 differ by less, two trainings by far more
_HALF_PRECISION = 2e-3  # an index may store float16
_RECALL_QUERIES = 1000


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; nothing in it changes any more.

    Attributes:
        item_vectors: float32 [N, D].
        user_vectors: float32 [U, D]; zeros for a user without a history.
        user_offsets: int64 [U + 1]; what user u took stands between offsets u and u + 1, oldest first.
        history_items: int32 [interactions], item rows.
        history_times: int64 [interactions], milliseconds since 1970; None if the log has no time.
        history_events: int16 [interactions]; None if the log names none.
        popularity: float32 [N], each item's share of the newest tenth of the log.
        profiles: encoded user features, feature name to [U, …].
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
    def open(cls, path: Path) -> Bundle:
        """Opens a bundle after checking all of it.

        Raises:
            ArtifactError: a digest is off, towers, ids, vectors and index do not belong together, or a vector is not
                finite; the message names the file.
        """
        path = Path(path)
        manifest = verify(path, KIND, FORMAT_VERSION)
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
        item_vectors = np.load(path / "item_vectors.npy")
        item_table = _features(path, "item_features", len(item_ids))
        user_encoder = FeatureEncoder.from_dict(said["user_encoder"])
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
        )
        trained = np.load(path / "trained.npy")
        bundle._refuse_misfits(trained)
        bundle._refuse_strangers(said, item_table, trained)
        return bundle

    def _refuse_misfits(self, trained: np.ndarray) -> None:
        """Compares the lengths of all arrays: a row must mean the same in each."""
        items, users = len(self.item_ids), len(self.user_ids)
        for name, values, expected in (
            ("item_vectors", self.item_vectors, items),
            ("popularity", self.popularity, items),
            ("trained", trained, items),
            ("user_vectors", self.user_vectors, users),
            ("user_offsets", self.user_offsets, users + 1),
            ("history_items", self.history_items, int(self.user_offsets[-1])),
            ("history_times", self.history_times, int(self.user_offsets[-1])),
            ("history_events", self.history_events, int(self.user_offsets[-1])),
        ):
            if values is not None and len(values) != expected:
                raise ArtifactError(f"{self.path / name}.npy has {len(values)} rows, expected {expected}; seal again")

    def _refuse_strangers(self, said: dict[str, Any], item_table: pa.Table, trained: np.ndarray) -> None:
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
        codes = FeatureEncoder.from_dict(said["item_encoder"]).encode(sample)
        catalogue = Catalogue(codes, trained[rows], rows)
        _refuse_unlike(
            self.item_vectors[rows], catalogue.embed(self.towers).numpy(), _TOLERANCE,
            f"{self.path / 'item_vectors.npy'} was not made by item_tower.safetensors",
        )  # fmt: skip
        _refuse_unlike(
            self.item_vectors[rows], self.index.reconstruct(rows), _HALF_PRECISION,
            f"{self.path / 'index.faiss'} was not built from item_vectors.npy",
        )  # fmt: skip
        users = np.flatnonzero(np.diff(self.user_offsets))
        users = users[np.unique(np.linspace(0, len(users) - 1, _SAMPLE // 4).astype(np.int64))] if len(users) else users
        for user in users:
            _refuse_unlike(
                self.user_vectors[[user]], self.embed_user(int(user))[None], _TOLERANCE,
                f"{self.path / 'user_vectors.npy'} was not made by user_tower.safetensors",
            )  # fmt: skip

    def items(self) -> pd.DataFrame:
        """The catalogue, for people to look at: attributes and popularity by item id, in the order of rows."""
        frame = self.attributes.frame()
        frame.index = pd.Index(self.item_ids.array.to_pandas(), name="item_id")
        return frame.assign(popularity=self.popularity)

    def seen(self, user: int) -> np.ndarray:
        """The item rows that a user row took, oldest first."""
        return self.history_items[self.user_offsets[user] : self.user_offsets[user + 1]]

    def embed_user(
        self,
        user: int | None,
        items: np.ndarray | None = None,
        times: np.ndarray | None = None,
        events: np.ndarray | None = None,
    ) -> np.ndarray:
        """The vector of a user now: what the bundle knows of them, then what happened since.

        Args:
            user: their row; None for a user whom the bundle does not know.
            items: int64 [n], item rows taken since, oldest first.
            times: int64 [n], milliseconds since 1970, −1 where unknown.
            events: int64 [n], event codes.

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
        if when is not None:
            # A moment that is not known is taken to be that of the interaction before, or at the start the one after.
            place = np.maximum.accumulate(np.where(when >= 0, np.arange(len(when)), -1))
            first = when[when >= 0][:1] if (when >= 0).any() else np.zeros(1, dtype=np.int64)
            when = np.where(place >= 0, when[place], first)
        rows = joined(self.history_items, fresh)
        profile = {
            name: np.zeros_like(values[:1]) if user is None else values[[user]]
            for name, values in self.profiles.items()
        }
        return self.towers.user_now(
            self.item_vectors[rows],
            None if when is None else gap_buckets(when),
            joined(self.history_events, events),
            profile,
        )


def bundle_id(manifest: Manifest) -> str:
    """A bundle's name, from its manifest."""
    moment = manifest.created.split("+")[0].translate(str.maketrans("", "", "-:."))
    return f"{moment}-{manifest.digest[:12]}"


def seal(
    checkpoint: Path,
    dataset: Path,
    out: Path,
    *,
    kind: Kind | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Manifest:
    """Embeds the catalogue and the users, builds the index and writes all of it as one bundle.

    Args:
        checkpoint: from `recsys fit`.
        dataset: the one it was trained on, or a later one with the same item ids.
        out: where the bundle is to be.
        kind: of index; chosen by the size of the catalogue if left out.
        evaluation: what `recsys evaluate` wrote for this checkpoint.

    Raises:
        ArtifactError: checkpoint, evaluation and dataset do not belong together, or a vector is not finite.
    """
    data = Dataset.open(dataset)
    trained = Trained.open(checkpoint)
    refuse_other_ids(trained.item_ids, data)
    checkpoint_digest = sha256_of(checkpoint)
    if evaluation is not None and evaluation.get("checkpoint") != checkpoint_digest:
        raise ArtifactError("the evaluation is of another checkpoint; run `recsys evaluate` on this one first")
    with writing(out, KIND, FORMAT_VERSION) as draft:
        vectors = _write_vectors(draft.path, data, trained)
        for name, values in vectors.items():
            if not np.isfinite(values).all():
                raise ArtifactError(f"{name} of {checkpoint} are not finite; did the training diverge?")
        index = build(vectors["item_vectors"], kind)
        index.save(draft.path / "index.faiss")
        sample = vectors["user_vectors"][np.flatnonzero(np.diff(data.user_offsets))][:_RECALL_QUERIES]
        _write_towers(draft.path, data, trained)
        _write_data(draft.path, data)
        architecture = trained.towers.architecture
        draft.content.update(
            schema=data.schema.to_dict(),
            dataset=data.manifest.digest,
            checkpoint=checkpoint_digest,
            item_ids=data.item_ids.digest,
            user_ids=data.user_ids.digest,
            items=data.num_items,
            users=data.num_users,
            interactions=len(data),
            time_range=data.manifest.content["time_range"],
            event_names=data.event_names,
            metric="inner product",
            unit=architecture.unit,
            dimension=architecture.dimension,
            dimensions=list(trained.dimensions),
            index={
                "kind": index.kind,
                "bytes": (draft.path / "index.faiss").stat().st_size,
                "recall@10": measured_recall(index, vectors["item_vectors"], sample),
            },
            evaluation=evaluation,
        )
    return read_manifest(out, KIND, FORMAT_VERSION)


def _write_vectors(path: Path, data: Dataset, trained: Trained) -> dict[str, np.ndarray]:
    codes = trained.item_encoder.encode(data.item_features())
    item_ND = Catalogue(codes, trained.trained).embed(trained.towers)
    asked = everyone(data)
    profiles = trained.user_encoder.encode(data.user_features())
    batches = query_loader(data, asked, profiles, trained.towers.architecture.max_length)
    users = np.zeros((data.num_users, item_ND.shape[1]), dtype=np.float32)
    users[asked.user] = query_vectors(trained.towers, item_ND, batches, len(asked))
    vectors = {"item_vectors": item_ND.numpy(), "user_vectors": users}
    for name, values in vectors.items():
        np.save(path / f"{name}.npy", values)
    return vectors


def _write_towers(path: Path, data: Dataset, trained: Trained) -> None:
    for name, tower in (("item", trained.towers.item), ("user", trained.towers.user)):
        save_file(tower.state_dict(), path / f"{name}_tower.safetensors")
    said = {
        "config": trained.towers.config(),
        "item_encoder": trained.item_encoder.to_dict(),
        "user_encoder": trained.user_encoder.to_dict(),
        "item_ids": data.item_ids.digest,
        "user_ids": data.user_ids.digest,
    }
    (path / "towers.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    np.save(path / "trained.npy", trained.trained)


def _write_data(path: Path, data: Dataset) -> None:
    data.item_ids.save(path / "item_ids.arrow")
    data.user_ids.save(path / "user_ids.arrow")
    for name, table in (("item_features", data.item_features()), ("user_features", data.user_features())):
        if table.num_columns:
            pq.write_table(table, path / f"{name}.parquet")
    np.save(path / "user_offsets.npy", data.user_offsets)
    np.save(path / "history_items.npy", data.items)
    for name, values in (("history_times", data.times), ("history_events", data.events)):
        if values is not None:
            np.save(path / f"{name}.npy", values)
    np.save(path / "popularity.npy", _popularity(data))


def _popularity(data: Dataset) -> np.ndarray:
    """Each item's share of the newest tenth of the log, float32 [N]; a log without times is taken whole.

    A share of the log rather than a number of days, since the last days of a log may hold next to nothing.
    """
    rows = np.asarray(data.items)
    if data.times is not None and len(rows) >= 10:
        newest = np.partition(data.times, len(rows) - len(rows) // 10)[len(rows) - len(rows) // 10]
        rows = rows[np.asarray(data.times) >= newest]
    return (np.bincount(rows, minlength=data.num_items) / max(1, len(rows))).astype(np.float32)


def _features(path: Path, name: str, rows: int) -> pa.Table:
    file = path / f"{name}.parquet"
    return pq.read_table(file) if file.exists() else pa.table({"row": pa.nulls(rows)}).select([])


def _refuse_unlike(sealed: np.ndarray, again: np.ndarray, tolerance: float, what: str) -> None:
    """Raises ArtifactError if vectors [n, D] are further from those made again than a share of their length."""
    apart = np.linalg.norm(sealed - again, axis=1)
    if (apart > tolerance * np.maximum(np.linalg.norm(sealed, axis=1), 1e-6)).any():
        raise ArtifactError(f"{what}: its vectors differ by up to {apart.max():.3g} from those made again; seal again")
