"""The real service and a Redis, in processes of their own, and what the system says of those."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchmarks.loads import HOST

PATIENCE_S = 60.0  # for a swap, and for what was killed to be there again


class Service:
    """`python -m serve` in a process of its own.

    Args:
        registry: what it serves.
        port: where.
        replicas: how many processes answer.
        online: its online store; none if empty.
    """

    def __init__(self, registry: Path, port: int, replicas: int, online: str = "") -> None:
        self.port = port
        self.num_replicas = replicas
        command = [sys.executable, "-m", "serve", "--registry", str(registry), "--port", str(port)]
        command += ["--replicas", str(replicas), *(["--online", online] if online else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ctrl-C" in line:
                break
        else:
            raise RuntimeError(f"the service did not start on port {port}; is the port taken?")

    def stop(self) -> None:
        """Ends it, and waits for it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(90)

    def replicas(self) -> list[int]:
        """The pids of the processes that answer now."""
        return [pid for pid in _descendants(self._process.pid) if _command(pid).startswith("ray::ServeReplica")]

    def proxies(self) -> list[int]:
        """The pids of its HAProxy."""
        ours = _descendants(self._process.pid)
        folders = {found[0] for pid in ours if (found := re.search(r"/tmp/recsys-\w+", _command(pid)))}
        candidates = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        return [
            pid
            for pid in sorted(candidates)
            if any(folder in _command(pid) for folder in folders) and _program(pid) == "haproxy"
        ]

    def bundle(self) -> str | None:
        """The bundle that answers; None while nobody does."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/v1/bundle", timeout=5) as answer:
                found = re.search(rb'"bundle":"([^"]+)"', answer.read())
        except (urllib.error.URLError, OSError):
            return None
        return found[1].decode() if found else None

    def answers_from(self, bundle: str, patience_s: float = PATIENCE_S) -> bool:
        """Waits until every replica answers from a bundle, as far as asking several times can tell; whether they do."""
        deadline, agreed = time.monotonic() + patience_s, 0
        while agreed < 4 * self.num_replicas:
            if time.monotonic() > deadline:
                return False
            agreed = agreed + 1 if self.bundle() == bundle else 0
            if not agreed:
                time.sleep(0.05)
        return True


class Redis:
    """A Redis that keeps what it accepted, on a port and in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self.port = folder, free_port()
        self.address = f"redis://{HOST}:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Starts it, with what its folder holds, and waits until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", HOST, "--dir", str(self._folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: _answers(self.port), 20)

    def kill(self) -> None:
        """Kills it as a crash would."""
        self._process.kill()
        self._process.wait(10)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(found)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def until(holds: Callable[[], bool], patience_s: float) -> bool:
    """Waits until something holds, at most so long; whether it came to hold."""
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((HOST, port)) == 0


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as tried:
        tried.bind((HOST, 0))
        return int(tried.getsockname()[1])
