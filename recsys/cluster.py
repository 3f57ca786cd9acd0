"""Where one machine is not enough: `fit` under Ray Train and `embed` under Ray Data, on a cluster or on workers here.

Workers read the dataset and write checkpoints and logs by path, as a person's own machine would; so these paths must
lie on storage that every node reaches under the same name, and `recsys` must be installed on every node.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from recsys.artifacts import ArtifactError
from recsys.data.batches import refuse_other_ids
from recsys.data.dataset import Dataset
from recsys.model.embed import Trained, item_vectors, user_vectors
from recsys.train import FitCLI, run

CHECKPOINT = "last.ckpt"  # in what is handed to Ray after each epoch
LOG = "workers.log"  # what the first worker prints
_START_ATTEMPTS = 10  # a minute each: a cluster that scales needs some, and none waits for ever
_PIECES = 4  # a worker, so that one that is slow does not hold up the others
_REFUSALS = (ArtifactError, ValueError, TypeError)  # what would only be refused again


class ClusterError(RuntimeError):
    """Work on a cluster failed, in a worker or for want of one."""


@dataclass(frozen=True)
class Cluster:
    """Where and how wide to run.

    Args:
        address: of a running Ray cluster, "host:port", or "auto" on one of its nodes; Ray is started on this machine,
            and stopped after, if left out.
        workers: processes that share every batch, and the blocks to embed.
        cpus_per_worker: logical CPUs that Ray sets aside for each.
        gpus_per_worker: likewise; workers with GPUs exchange gradients by NCCL, others by Gloo.
        max_failures: how many times training may go on from its last checkpoint after it lost a worker.
        storage: a folder or address (s3://…) that all nodes reach, where a training in progress keeps what it would go
            on from; within the training's output if left out.
    """

    address: str | None = None
    workers: int = 2
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    max_failures: int = 3
    storage: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_failures", 0), ("gpus_per_worker", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"cluster.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cluster.cpus_per_worker is {self.cpus_per_worker}; it must be more than 0")
        if (self.address or "").startswith("ray://"):
            raise ValueError(
                f"cluster.address is {self.address}, for clients from outside, which Ray Train does not support; "
                f'submit the command as a Ray job and say "auto"'
            )

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"the cluster at {self.address}" if self.address else "this machine"


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray for the length of the block; `fit` and `embed` inside it use this one rather than start their own.

    Ray on this machine listens on loopback only and asks for a secret, and nothing of it is left afterwards. (Where
    another library imported Ray before, there is no secret: it is read on import.)
    """
    with contextlib.ExitStack() as after:
        if not cluster.address:
            after.enter_context(_environment(_local_environment()))
        import ray

        if ray.is_initialized():
            yield
            return
        if not cluster.address:  # a short name, for the sockets in it
            folder = tempfile.mkdtemp(prefix="recsys-", dir="/tmp")
            after.callback(shutil.rmtree, folder, ignore_errors=True)
        after.callback(ray.shutdown)  # of one that came up in part, too
        if cluster.address:
            ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=math.ceil(cluster.workers * cluster.cpus_per_worker),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
            )
        after.enter_context(_leaving_when_told())
        yield


def fit(config: dict[str, Any], out: Path, cluster: Cluster, *, warm_start: Path | None = None) -> None:
    """Trains as `recsys fit` does, on a cluster's workers.

    Every batch is one that a single machine would have had, shared out, so that the training is the same up to the
    order in which floats are added. (Where negatives are drawn from the batch, each worker draws them from its share.)

    Args:
        config: what a configuration of `recsys fit` says.
        out: where `best.ckpt`, `last.ckpt` and logs go.
        cluster: where to run.
        warm_start: the checkpoint to start from.

    Raises:
        ArtifactError, ValueError: a worker refused its input; the message is that of `recsys fit`.
        ClusterError: a worker failed otherwise, more than `max_failures` times.
    """
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["--out", str(out)] + ([] if warm_start is None else ["--warm_start", str(Path(warm_start).resolve())])
    said = {"config": json.dumps(_absolute(config), default=str), "out": str(out), "arguments": arguments}
    storage = cluster.storage or str(out / ".ray")
    name = f"fit-{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as after:
        after.enter_context(connected(cluster))
        after.enter_context(_leaving_when_told())  # again: a fit of Ray's takes them, too
        after.enter_context(_shown(out / LOG))
        after.callback(_remove, storage, name, own=cluster.storage is None)
        for left in reversed(range(cluster.max_failures + 1)):
            error = _attempt(said, cluster, storage, name)
            if error is None:
                return
            refusal = next((e for e in error.worker_failures.values() if isinstance(e, _REFUSALS)), None)
            if refusal is not None:
                raise refusal
            # All of them: one fails by itself, the others for want of it, and either may come first.
            told = "; ".join(f"worker {rank}: {failure!r}" for rank, failure in error.worker_failures.items())
            what = f"{len(error.worker_failures)} of {cluster.workers} workers on {cluster.where} failed ({told})"
            if not left:
                raise ClusterError(f"{what}; after {cluster.max_failures + 1} attempts it is given up") from error
            print(f"{what}; going on from the last checkpoint, {left} more times at most", flush=True)


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
        if isinstance(cause, _REFUSALS):
            raise cause from None
        raise ClusterError(f"a worker that embeds on {cluster.where} failed: {cause!r}") from error
    return vectors


def _embed_piece(
    piece: dict[str, np.ndarray], checkpoint: str, dataset: str, digest: str, items: Any = None
) -> dict[str, np.ndarray]:
    """Runs in a worker: the vectors of one stretch of rows, of users where `items` says where the items' are."""
    import ray

    _require(dataset, checkpoint)
    trained, data = _opened(checkpoint, dataset)
    if data.manifest.digest != digest:
        raise ArtifactError(f"{_host()} finds another dataset at {dataset} than the one asked for; share its storage")
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


def _attempt(said: dict[str, Any], cluster: Cluster, storage: str, name: str) -> Any:
    """Trains once from the newest checkpoint that Ray has of the run; returns the error of a worker, or None."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        _fit_in_worker,
        train_loop_config=said,
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # Ray names the older one
            name=name,
            storage_path=storage,
            # Ray would try a refusal again, too, so how often to go on is decided by the caller.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=_START_ATTEMPTS - 1),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return error
    except ControllerError as error:
        raise ClusterError(
            f"{cluster.where} gave no {cluster.workers} workers with {resources} each: {error.controller_failure}"
        ) from error
    return None


def _fit_in_worker(said: dict[str, Any]) -> None:
    """Runs in a worker: `recsys fit`, from the run's own last checkpoint if there is one."""
    import ray.train

    config, out = json.loads(said["config"]), Path(said["out"])
    _require(config.get("data", {}).get("dataset"), out)
    before = ray.train.get_checkpoint()
    with contextlib.ExitStack() as after:
        file = Path(after.enter_context(tempfile.TemporaryDirectory())) / "fit.json"
        file.write_text(said["config"], encoding="utf-8")
        arguments = ["fit", "--config", str(file), *said["arguments"]]
        if before is not None:
            last = Path(after.enter_context(before.as_directory())) / CHECKPOINT
            arguments += ["--ckpt_path", str(last), "--weights_only", "true"]
        if not ray.train.get_context().get_world_rank():
            log = after.enter_context((out / LOG).open("a", encoding="utf-8", buffering=1))
            after.enter_context(contextlib.redirect_stdout(log))
        run(arguments, WorkerCLI)


class WorkerCLI(FitCLI):
    """`recsys fit` in one of many workers."""

    def init_parser(self, **kwargs: Any) -> Any:
        # A worker that leaves because of a bad setting would take the message with it.
        return super().init_parser(**kwargs | {"exit_on_error": False})

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        import ray.train.torch
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

        trainer = super().instantiate_trainer(
            # Buffers are the same everywhere from the start: the encoded catalogue need not be sent at each step.
            strategy=RayDDPStrategy(forward_sync_buffers=False),
            plugins=[RayLightningEnvironment()],
            accelerator=ray.train.torch.get_device().type,
            devices="auto",
            **kwargs,
        )
        # All the same callbacks in all workers: one that looks at the metrics alone would wait for the others' share.
        trainer.callbacks.append(ToRay())  # type: ignore[attr-defined]
        return prepare_trainer(trainer)


class ToRay(Checkpoint):
    """Hands a checkpoint to Ray after each epoch, for another attempt to go on from.

    It must stand behind Lightning's ModelCheckpoint, so that what that keeps of the epoch is in it; Lightning puts all
    that are a `Checkpoint` last, in their order. (Ray's own callback stands before, and its checkpoints do not know the
    best one yet.)
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / CHECKPOINT)  # only the first worker writes
            mine = ray.train.Checkpoint.from_directory(folder) if trainer.is_global_zero else None
            ray.train.report({"epoch": trainer.current_epoch}, checkpoint=mine)


def _require(*paths: str | Path | None) -> None:
    for path in paths:
        if path is not None and not Path(path).exists():
            raise ArtifactError(
                f"{_host()} finds nothing at {path}; a cluster's workers need it on storage that all of them reach "
                f"under this path"
            )


def _host() -> str:
    import ray

    return f"the worker on {ray.util.get_node_ip_address()}"


def _absolute(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with paths that mean the same from any working directory: workers have their own."""
    said = json.loads(json.dumps(config, default=str))
    if "dataset" in said.get("data", {}):
        said["data"]["dataset"] = str(Path(said["data"]["dataset"]).resolve())
    for name in ("ckpt_path", "warm_start"):
        if Path(said.get(name) or "last").suffix:  # rather than "last" or "best"
            said[name] = str(Path(said[name]).resolve())
    return said


def _local_environment() -> dict[str, str]:
    said = {
        # Despite its name: off keeps Ray's own servers to loopback on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # no lower than `recsys fit` has; Ray would yield to everything else here
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
    }
    if _secret() is not None:
        said |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": str(_secret())}
    return said


@functools.cache
def _secret() -> str | None:
    """What Ray's servers here ask for, the same for the life of this process, since Ray reads it once, on import."""
    return None if "ray" in sys.modules else secrets.token_hex(32)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _leaving_when_told() -> Iterator[None]:
    """Told to stop, the process unwinds and so clears away; Ray takes the signals for itself, and would not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Prints what is appended to a file meanwhile: the first worker's lines, from whichever node it is on."""
    start, done = log.stat().st_size if log.exists() else 0, threading.Event()

    def follow() -> None:
        place = start
        while True:
            last = done.wait(1)
            if log.exists():
                with log.open(encoding="utf-8") as file:
                    file.seek(place)
                    print(file.read(), end="", flush=True)
                    place = file.tell()
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _remove(storage: str, name: str, *, own: bool) -> None:
    """Removes what a training would have gone on from, and the folder if it is our own."""
    if own:
        shutil.rmtree(storage, ignore_errors=True)
        return
    system, path = pyarrow.fs.FileSystem.from_uri(storage)
    with contextlib.suppress(FileNotFoundError):  # it never came to start
        system.delete_dir(f"{path}/{name}")
