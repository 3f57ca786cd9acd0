"""Sealing: a checkpoint becomes vectors, the vectors an index, and all of it one Bundle; each stage an artefact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from recsys.artifacts import ArtifactError, Manifest, drafting, read_manifest, sha256_of, verify, writing
from recsys.bundle import FORMAT_VERSION, KIND
from recsys.data.batches import refuse_other_ids
from recsys.data.dataset import Dataset
from recsys.index.build import Kind, build, measured_recall
from recsys.model.embed import Trained, item_vectors, user_vectors

VECTORS, INDEX = "vectors", "index"  # what the first two stages write
_STAGE_VERSION = 1
_RECALL_QUERIES = 1000

Embed = Callable[[Trained, Dataset], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stages:
    """Where the first two stages lie, if they were made before."""

    vectors: Path
    index: Path


def embed(trained: Trained, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all items, float32 [N, D], and of all users, float32 [U, D]: zeros for who has no history.

    Computed on a GPU where there is one.
    """
    trained.towers.to("cuda" if torch.cuda.is_available() else "cpu")
    items = item_vectors(trained, data)
    users = user_vectors(trained, data, items)
    trained.towers.to("cpu")
    return items, users


def write_vectors(checkpoint: Path, dataset: Path, out: Path, *, embed: Embed = embed) -> Manifest:
    """Embeds the catalogue and the users.

    Args:
        checkpoint: from `recsys fit`.
        dataset: the one it was trained on, or a later one with the same item ids.
        out: the directory to write.
        embed: how; a cluster has its own way.

    Raises:
        ArtifactError: checkpoint and dataset do not belong together.
    """
    data, trained = Dataset.open(dataset), Trained.open(checkpoint)
    refuse_other_ids(trained.item_ids, data)
    with writing(out, VECTORS, _STAGE_VERSION) as draft:
        for name, values in zip(("item_vectors", "user_vectors"), embed(trained, data), strict=True):
            np.save(draft.path / f"{name}.npy", values)
        draft.content.update(checkpoint=sha256_of(checkpoint), dataset=data.manifest.digest)
    return read_manifest(out, VECTORS, _STAGE_VERSION)


def write_index(vectors: Path, out: Path, *, kind: Kind | None = None) -> Manifest:
    """Builds the index of the item vectors and measures its recall with users as queries.

    Args:
        vectors: what `write_vectors` wrote.
        out: the directory to write.
        kind: of index; chosen by the size of the catalogue if left out.

    Raises:
        ArtifactError: a vector is not finite.
    """
    made = verify_vectors(vectors)
    items, users = (np.load(vectors / f"{name}.npy", mmap_mode="r") for name in ("item_vectors", "user_vectors"))
    for name, values in (("item_vectors", items), ("user_vectors", users)):
        if not np.isfinite(values).all():
            raise ArtifactError(f"{vectors / name}.npy is not finite; did the training diverge?")
    with writing(out, INDEX, _STAGE_VERSION) as draft:
        index = build(items, kind)
        index.save(draft.path / "index.faiss")
        asking = users[np.flatnonzero(users.any(axis=1))[:_RECALL_QUERIES]]
        draft.content.update(
            vectors=made.digest,
            index={
                "kind": index.kind,
                "bytes": (draft.path / "index.faiss").stat().st_size,
                "recall@10": measured_recall(index, items, asking),
            },
        )
    return read_manifest(out, INDEX, _STAGE_VERSION)


def verify_vectors(path: Path) -> Manifest:
    """Checks what `write_vectors` wrote."""
    return verify(path, VECTORS, _STAGE_VERSION)


def verify_index(path: Path) -> Manifest:
    """Checks what `write_index` wrote."""
    return verify(path, INDEX, _STAGE_VERSION)


def seal(
    checkpoint: Path,
    dataset: Path,
    out: Path,
    *,
    stages: Stages | None = None,
    kind: Kind | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Manifest:
    """Writes towers, vectors, index, ids and what else answers need as one bundle.

    Args:
        checkpoint: from `recsys fit`.
        dataset: the one it was trained on, or a later one with the same item ids.
        out: where the bundle is to be.
        stages: vectors and index, if they were made before; they are made here if left out.
        kind: of index, where it is made here; chosen by the size of the catalogue if left out.
        evaluation: what `recsys evaluate` wrote for this checkpoint.

    Raises:
        ArtifactError: checkpoint, evaluation, stages and dataset do not belong together, or a vector is not finite.
    """
    data, trained = Dataset.open(dataset), Trained.open(checkpoint)
    refuse_other_ids(trained.item_ids, data)
    digest = sha256_of(checkpoint)
    if evaluation is not None and evaluation.get("checkpoint") != digest:
        raise ArtifactError("the evaluation is of another checkpoint; run `recsys evaluate` on this one first")
    out = Path(out)
    with (
        writing(out, KIND, FORMAT_VERSION) as draft,
        drafting(out.with_name(f"{out.name}.stages")) as scratch,
    ):
        if stages is None:
            stages = Stages(scratch / VECTORS, scratch / INDEX)
            write_vectors(checkpoint, dataset, stages.vectors)
            write_index(stages.vectors, stages.index, kind=kind)
        built = _refuse_other_stages(stages, digest, data)
        for file in (*stages.vectors.glob("*.npy"), stages.index / "index.faiss"):
            shutil.copyfile(file, draft.path / file.name)
        _write_towers(draft.path, data, trained)
        _write_data(draft.path, data)
        architecture = trained.towers.architecture
        draft.content.update(
            schema=data.schema.to_dict(),
            dataset=data.manifest.digest,
            checkpoint=digest,
            trained_until=trained.trained_until,
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
            index=built.content["index"],
            evaluation=evaluation,
        )
    return read_manifest(out, KIND, FORMAT_VERSION)


def with_verdict(candidate: Path, out: Path, files: Mapping[str, str], verdict: dict[str, Any]) -> Manifest:
    """The same bundle once more, with the verdict on it inside.

    Args:
        candidate: a bundle.
        out: where the bundle with its verdict is to be.
        files: texts to add, by file name.
        verdict: what the manifest says of it, `passed` and the `failed` gates at least.
    """
    manifest = verify(candidate, KIND, FORMAT_VERSION)
    with writing(out, KIND, FORMAT_VERSION) as draft:
        for name in manifest.files:
            shutil.copyfile(candidate / name, draft.path / name)
        for name, text in files.items():
            (draft.path / name).write_text(text, encoding="utf-8")
        draft.content.update(manifest.content, verdict=verdict)
    return read_manifest(out, KIND, FORMAT_VERSION)


def _refuse_other_stages(stages: Stages, checkpoint: str, data: Dataset) -> Manifest:
    vectors, index = verify_vectors(stages.vectors), verify_index(stages.index)
    if (vectors.content["checkpoint"], vectors.content["dataset"]) != (checkpoint, data.manifest.digest):
        raise ArtifactError(f"{stages.vectors} are of another checkpoint or dataset; embed again")
    if index.content["vectors"] != vectors.digest:
        raise ArtifactError(f"{stages.index} was built from other vectors; build it again")
    return index


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
