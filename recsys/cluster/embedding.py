"""The vectors of a dataset's items and users, made by a cluster's workers under Ray Data."""

from __future__ import annotations

import functools
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifacts import ArtifactError
from recsys.cluster.place import REFUSALS, Cluster, ClusterError, connected, host, require
from recsys.data.batches import refuse_other_ids
from recsys.data.dataset import Dataset
from recsys.model.embed import Trained, item_vectors, user_vectors

_PIECES = 4  # a worker, so that one that is slow does not hold up the others


def embed(checkpoint: Path, dataset: Path, cluster: Cluster) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a dataset's items and users, made in blocks by a cluster's workers.

    Args:
        checkpoint: from `recsys fit`.
        dataset: the one it was trained on, or a later one with the same item ids.
        cluster: where to run.

    Returns:
        Items, float32 [N, D], and users, float32 [U, D]: zeros for a user without a history.

    Raises:
        ArtifactError, ValueError: checkpoint or dataset are refused, here or by a worker.
        ClusterError: a worker failed otherwise.
    """
    checkpoint, dataset = Path(checkpoint).resolve(), Path(dataset).resolve()
    data, trained = Dataset.open(dataset), Trained.open(checkpoint)
    refuse_other_ids(trained.item_ids, data)
    with connected(cluster):
        import ray

        work = {"checkpoint": str(checkpoint), "dataset": str(dataset), "digest": data.manifest.digest}
        dimension = trained.towers.architecture.dimension
        items = _mapped(work, data.num_items, dimension, cluster)
        users = _mapped(work | {"items": ray.put(items)}, data.num_users, dimension, cluster)
    return items, users


def _mapped(work: dict[str, Any], count: int, dimension: int, cluster: Cluster) -> np.ndarray:
    """Vectors [count, D] of all rows, which Ray Data returns in any order."""
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    edges = np.linspace(0, count, min(count, _PIECES * cluster.workers) + 1).astype(int).tolist()
    pieces = [{"start": start, "stop": stop} for start, stop in itertools.pairwise(edges)]
    embed_piece: Any = _embed_piece  # Ray's types know no keyword arguments
    blocks = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        embed_piece,
        batch_size=1,
        fn_kwargs=work,
        concurrency=cluster.workers,
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
    )
    vectors = np.full((count, dimension), np.nan, dtype=np.float32)
    try:
        for block in blocks.iter_batches(batch_size=None, batch_format="numpy"):
            vectors[block["row"]] = block["vector"]
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, REFUSALS):
            raise cause from None
        raise ClusterError(f"a worker that embeds on {cluster.where} failed: {cause!r}") from error
    return vectors


def _embed_piece(
    piece: dict[str, np.ndarray], checkpoint: str, dataset: str, digest: str, items: Any = None
) -> dict[str, np.ndarray]:
    """Runs in a worker: the vectors of one stretch of rows, of users where `items` says where the items' are."""
    import ray

    require(dataset, checkpoint)
    trained, data = _opened(checkpoint, dataset)
    if data.manifest.digest != digest:
        raise ArtifactError(f"{host()} finds another dataset at {dataset} than the one asked for; share its storage")
    start, stop = int(piece["start"][0]), int(piece["stop"][0])
    if items is None:
        vectors = item_vectors(trained, data, slice(start, stop))
    else:
        vectors = user_vectors(trained, data, ray.get(items), slice(start, stop))
    return {"row": np.arange(start, stop), "vector": vectors}


@functools.lru_cache(maxsize=1)
def _opened(checkpoint: str, dataset: str) -> tuple[Trained, Dataset]:
    import ray

    trained, data = Trained.open(Path(checkpoint)), Dataset.open(dataset, check=False)  # checked where it was asked for
    if ray.get_gpu_ids():
        trained.towers.to("cuda")
    return trained, data
