"""`recsys fit` on a cluster's workers, under Ray Train."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from recsys.cluster.place import REFUSALS, Cluster, ClusterError, connected, leaving_when_told, require
from recsys.train import FitCLI, run

CHECKPOINT = "last.ckpt"  # in what is handed to Ray after each epoch
LOG = "workers.log"  # what the first worker prints
_START_ATTEMPTS = 10  # a minute each: a cluster that scales needs some, and none waits for ever


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
        after.enter_context(leaving_when_told())  # again: a fit of Ray's takes them, too
        after.enter_context(_shown(out / LOG))
        after.callback(_remove, storage, name, own=cluster.storage is None)
        for left in reversed(range(cluster.max_failures + 1)):
            error = _attempt(said, cluster, storage, name)
            if error is None:
                return
            refusal = next((e for e in error.worker_failures.values() if isinstance(e, REFUSALS)), None)
            if refusal is not None:
                raise refusal
            # All of them: one fails by itself, the others for want of it, and either may come first.
            told = "; ".join(f"worker {rank}: {failure!r}" for rank, failure in error.worker_failures.items())
            what = f"{len(error.worker_failures)} of {cluster.workers} workers on {cluster.where} failed ({told})"
            if not left:
                raise ClusterError(f"{what}; after {cluster.max_failures + 1} attempts it is given up") from error
            print(f"{what}; going on from the last checkpoint, {left} more times at most", flush=True)


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
    require(config.get("data", {}).get("dataset"), out)
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


def _absolute(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with paths that mean the same from any working directory: workers have their own."""
    said = json.loads(json.dumps(config, default=str))
    if "dataset" in said.get("data", {}):
        said["data"]["dataset"] = str(Path(said["data"]["dataset"]).resolve())
    for name in ("ckpt_path", "warm_start"):
        if Path(said.get(name) or "last").suffix:  # rather than "last" or "best"
            said[name] = str(Path(said[name]).resolve())
    return said


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
