"""Where to run: a Ray cluster that is there already, or Ray on this machine for as long as it is needed.

Workers read the dataset and write checkpoints and logs by path, as a person's own machine would; so these paths must
lie on storage that every node reaches under the same name, and `recsys` must be installed on every node.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.artifacts import ArtifactError

REFUSALS = (ArtifactError, ValueError, TypeError)  # what a worker would only refuse again


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
        after.enter_context(leaving_when_told())
        yield


def require(*paths: str | Path | None) -> None:
    """Raises ArtifactError, in a worker, for a path at which its machine finds nothing."""
    for path in paths:
        if path is not None and not Path(path).exists():
            raise ArtifactError(
                f"{host()} finds nothing at {path}; a cluster's workers need it on storage that all of them reach "
                f"under this path"
            )


def host() -> str:
    """How messages call the machine that a worker is on."""
    import ray

    return f"the worker on {ray.util.get_node_ip_address()}"


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
def leaving_when_told() -> Iterator[None]:
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
