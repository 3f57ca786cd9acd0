"""What callers notice when bundles are swapped, processes are killed, stores vanish, and the service runs for long.

    python -m benchmarks.serving_faults [--swaps 100] [--requests 200000] [--parts swaps faults soak]

The real service runs on loopback, with a Redis of its own; the load comes from a process of its own. Percentiles are of
the callers' side of the socket. Who promotes is another process of low priority: what it checks is not the service's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.loads import HOST, Load, Noted, Plan
from benchmarks.serving import K, synthetic_registry
from benchmarks.table import emit, parser

USERS = 500
PATIENCE_S = 60.0  # for a swap, and for what was killed to be there again
RATE = 300.0  # requests a second around a fault, if none is said: as fast as refused would say nothing of how many fail
STEADY_S = 5.0  # of load before and after each fault
AWAY_S = 5.0  # how long Redis and the registry are gone
SETTLED_S = 0.5  # after the last answer of the old bundle, what a swap cost may still show
SWAP_EVERY_S = 5.0  # in the soak
WARM_SWAPS = 4  # the first make room for a second bundle, which is kept for the next ones
BLOCKS = 20  # the soak's memory is compared between as many stretches: neighbouring seconds are no two measurements


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
        self._folder, self.port = folder, _free_port()
        self.address = f"redis://{HOST}:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Starts it, with what its folder holds, and waits until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", HOST, "--dir", str(self._folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _until(lambda: _answers(self.port), 20)

    def kill(self) -> None:
        """Kills it as a crash would."""
        self._process.kill()
        self._process.wait(10)


@dataclass(frozen=True)
class Setting:
    """What every part of the benchmark is given."""

    said: argparse.Namespace
    folder: Path
    registry: Path
    bundles: list[str]
    paths: list[str]
    items: list[str]
    expected: dict[str, list[list[str]]]
    promoter: Any
    has_online: bool

    def plan(self, port: int, **changes: Any) -> Plan:
        """The load of a part."""
        given = {"rate": self.said.rate, "items": self.items} | changes
        return Plan(port, self.paths, self.said.connections, **given)

    def promote(self, bundle: str) -> tuple[float, float]:
        """Makes a bundle live; when its checks began and when CURRENT was replaced, seconds since 1970."""
        began = time.time()
        self.promoter.apply(_promote, (str(self.registry), bundle))
        return began, (self.registry / "CURRENT").stat().st_mtime


def swaps(setting: Setting) -> list[dict[str, Any]]:
    """Promotions and rollbacks under load, by what went on when each answer came."""
    with running(setting, setting.said.replicas) as service:
        live = service.bundle()
        moments: list[tuple[float, float]] = []
        followed = 0
        with Load(setting.plan(service.port, expected=setting.expected)) as load:
            load.wait_for(1, PATIENCE_S)
            time.sleep(STEADY_S)
            for _ in range(setting.said.swaps):
                (live,) = {*setting.bundles} - {live}
                moments.append(setting.promote(live))
                if not service.answers_from(live):
                    break
                followed += 1
                time.sleep(setting.said.pause)
            noted = load.stop()
    when = _phases(noted, moments)
    title = f"{followed} of {setting.said.swaps} swaps followed"
    rows = []
    for phase in ("quiet", "promoter checks", "swap"):
        chosen = when == phase
        rows.append({"what": f"{title}: {phase}", **_said_of(noted, chosen)})
    quiet, swap = rows[0]["p99 ms"], rows[2]["p99 ms"]
    for row in rows:
        row["mixed"], row["degraded"] = noted.mixed, noted.degraded
        row["p99 × quiet"] = row["p99 ms"] / quiet if quiet and swap else None
    return rows


def faults(setting: Setting) -> list[dict[str, Any]]:
    """Kills and vanishings under load: what failed, for how long, and whether it healed by itself."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as up:
        redis = Redis(setting.folder / "redis") if setting.has_online and shutil.which("redis-server") else None
        if redis is not None:
            up.callback(redis.kill)
        online = redis.address if redis else ""
        service = up.enter_context(running(setting, max(2, setting.said.replicas), online))
        replicas = service.num_replicas

        def whole() -> bool:
            return len(service.replicas()) == replicas and len(service.proxies()) >= 1

        def kill(pids: list[int]) -> None:
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(1)  # until Ray's own view has changed

        def registry_gone() -> None:
            away = setting.registry.with_name("away")
            setting.registry.rename(away)
            time.sleep(AWAY_S)
            away.rename(setting.registry)

        def redis_gone() -> None:
            if redis is not None:
                redis.kill()
                time.sleep(AWAY_S)
                redis.start()

        todo: list[tuple[str, Callable[[], None]]] = [
            ("kill -9 of a replica", lambda: kill(service.replicas())),
            ("kill -9 of HAProxy", lambda: kill(service.proxies())),
            (f"registry gone for {AWAY_S:g} s", registry_gone),
        ]
        if redis is not None:
            todo.append((f"kill -9 of Redis, back after {AWAY_S:g} s", redis_gone))
        for number, (name, strike) in enumerate(todo):
            events = 0.05 if redis else 0.0
            plan = setting.plan(service.port, rate=setting.said.rate or RATE, events=events, name=f"fault{number}")
            with Load(plan) as load:
                load.wait_for(1, PATIENCE_S)
                time.sleep(STEADY_S)
                struck = time.time()
                strike()
                healed = _until(whole, PATIENCE_S)
                back = time.time() - struck
                time.sleep(STEADY_S)
                noted = load.stop()
            rows.append({"what": name, **_failed_of(noted, struck), "all there again s": back if healed else None})
            rows[-1] |= {"events accepted": len(noted.accepted), "lost": _lost(online, noted) if redis else None}
            print(f"{name}: {dict(noted.faults)}", file=sys.stderr)
        (other,) = {*setting.bundles} - {service.bundle()}
        setting.promote(other)
        followed = service.answers_from(other)
        rows.append(dict.fromkeys(rows[0]) | {"what": f"after all that a swap is followed: {followed}"})
    return rows


def soak(setting: Setting) -> list[dict[str, Any]]:
    """Many requests with swaps and events: what memory the replicas hold, in stretches after a warm-up."""
    online = str(setting.folder / "online") if setting.has_online else ""
    samples: list[tuple[int, int, dict[int, dict[str, float]]]] = []
    swapped = 0
    with running(setting, setting.said.replicas, online) as service:
        live = service.bundle()
        with Load(setting.plan(service.port, events=0.02 if online else 0.0, name="soak")) as load:
            due = time.monotonic() + SWAP_EVERY_S
            while load.count < setting.said.requests:
                samples.append((load.count, swapped, {pid: _memory_mb(pid) for pid in service.replicas()}))
                if time.monotonic() > due:
                    (live,) = {*setting.bundles} - {live}
                    setting.promote(live)
                    swapped += service.answers_from(live, 20)
                    due = time.monotonic() + SWAP_EVERY_S
                time.sleep(1)
                if len(samples) > 60 and samples[-1][0] == samples[-60][0]:
                    break  # nothing is answered any more: the table says so
            noted = load.stop()
    rows = []
    warm = [each for each in samples if each[0] > samples[-1][0] / 5 and each[1] >= WARM_SWAPS]
    for pid in sorted({pid for *_, found in samples for pid in found}):
        for kind in ("resident", "anonymous"):
            points = [(count, found[pid][kind]) for count, _, found in warm if pid in found]
            if len(points) >= 2 * BLOCKS:
                row = {"what": f"replica {pid}, {kind}", "requests": len(noted.at), "failed": int(noted.failed.sum())}
                rows.append(row | {"swaps": swapped, "events": len(noted.accepted), **_slope(np.array(points))})
    return rows


def _phases(noted: Noted, moments: list[tuple[float, float]]) -> np.ndarray:
    """What went on when each answer came: quiet, promoter checks, or swap."""
    phases = np.full(len(noted.at), "quiet", dtype=object)
    names = np.array([*noted.bundles, ""])[noted.bundle]
    for number, (began, replaced) in enumerate(moments):
        until = moments[number + 1][0] if number + 1 < len(moments) else np.inf
        after = (noted.at >= replaced) & (noted.at < until) & (noted.bundle >= 0)
        # The bundle that most of these answers are from is the new one; the swap is over when the last old one came.
        found, counts = np.unique(names[after], return_counts=True)
        old = noted.at[after & (names != found[counts.argmax()])] if len(found) else np.array([])
        over = (old.max() if len(old) else replaced) + SETTLED_S
        phases[(noted.at >= began) & (noted.at < replaced)] = "promoter checks"
        phases[(noted.at >= replaced) & (noted.at < over)] = "swap"
    return phases


def _said_of(noted: Noted, chosen: np.ndarray) -> dict[str, Any]:
    milliseconds = noted.seconds[chosen & ~noted.failed] * 1000
    row: dict[str, Any] = {"requests": int(chosen.sum()), "failed": int((chosen & noted.failed).sum())}
    for percentile in (50, 99, 99.9):
        row[f"p{percentile:g} ms"] = float(np.percentile(milliseconds, percentile)) if len(milliseconds) else None
    return row


def _failed_of(noted: Noted, struck: float) -> dict[str, Any]:
    """What failed after a moment, and for how long."""
    failures = noted.at[noted.failed & (noted.at >= struck)]
    good = np.sort(noted.at[~noted.failed & (noted.at >= struck)])
    gaps = np.diff(np.concatenate([[struck], good])) if len(good) else np.array([np.inf])
    return {
        "requests": len(noted.at),
        "failed before": int((noted.failed & (noted.at < struck)).sum()),
        "failed": len(failures),
        "first after s": float(failures.min() - struck) if len(failures) else None,
        "last after s": float(failures.max() - struck) if len(failures) else None,
        "longest without an answer s": float(gaps.max()),
        "no answer": int((noted.status == 0).sum()),
        "5xx": int((noted.status >= 500).sum()),
    }


def _lost(online: str, noted: Noted) -> int:
    """How many events were accepted and are not in the store."""
    import asyncio

    from recsys.online.store import open_online

    async def kept() -> set[str]:
        store = open_online(online)
        try:
            users = {user for user, _ in noted.accepted}
            return {event.event_id for user in users for event in await store.events_of(user, 1_000_000)}
        finally:
            await store.close()

    found = asyncio.run(kept())
    return sum(event_id not in found for _, event_id in noted.accepted)


def _slope(points: np.ndarray) -> dict[str, Any]:
    """Memory by requests, points float64 [n, 2] of requests and MB: a line through the means of stretches."""
    from scipy import stats

    means = np.array([block.mean(axis=0) for block in np.array_split(points, BLOCKS)])
    line = stats.linregress(means[:, 0] / 1e5, means[:, 1])
    return {
        "start MB": float(means[0, 1]),
        "end MB": float(means[-1, 1]),
        "most MB": float(points[:, 1].max()),
        "MB a 100,000 requests": float(line.slope),
        "± 95 %": float(stats.t.ppf(0.975, BLOCKS - 2) * line.stderr),
    }


@contextlib.contextmanager
def running(setting: Setting, replicas: int, online: str = "") -> Iterator[Service]:
    """The service, up to the end of the block."""
    service = Service(setting.registry, _free_port(), replicas, online)
    try:
        yield service
    finally:
        service.stop()


def _promote(registry: str, bundle: str) -> None:
    import torch

    from recsys.registry import Registry

    torch.set_num_threads(1)
    found = Registry(registry)
    if found.previous == bundle:  # what came before comes back by a rollback, as a person would do it
        found.rollback(why="a benchmark")
    else:
        found.promote(bundle, why="a benchmark")


def _answers_by_bundle(registry: str) -> tuple[list[str], list[str], list[str], dict[str, list[list[str]]]]:
    """The two bundles, the paths to ask, some items, and by bundle the item ids that each path gives."""
    from recsys.bundle import Bundle
    from recsys.recommender import Recommender
    from recsys.registry import Registry

    found = Registry(registry)
    live, before = found.current, found.previous
    if live is None or before is None:
        raise RuntimeError(f"{registry} needs a live bundle and one before it; promote another one")
    expected, users, items = {}, None, []
    for bundle in (live, before):
        recommender = Recommender(Bundle.open(found.bundle_path(bundle)))
        if users is None:
            ids = recommender.bundle.user_ids
            users = ids.ids(np.random.default_rng(0).choice(len(ids), min(USERS, len(ids)), replace=False))
            items = [str(item) for item in recommender.bundle.item_ids.ids(np.arange(len(recommender.bundle.item_ids)))]
        answers = [recommender.recommend(user_id=user, k=K).items for user in users]
        expected[bundle] = [[str(item.item_id) for item in answer] for answer in answers]
    paths = [f"/v1/users/{quote(str(user), safe='')}/recommendations?k={K}" for user in users or ()]
    return [live, before], paths, items, expected


def _memory_mb(pid: int) -> dict[str, float]:
    """What a process holds: resident, with the pages of files that it maps, and anonymous, which are its alone."""
    with contextlib.suppress(OSError):
        said = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), flags=re.M))
        return {"resident": int(said["VmRSS"]) / 1024, "anonymous": int(said["RssAnon"]) / 1024}
    return {"resident": float("nan"), "anonymous": float("nan")}


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


def _until(holds: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((HOST, port)) == 0


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind((HOST, 0))
        return int(tried.getsockname()[1])


PARTS: dict[str, Callable[[Setting], list[dict[str, Any]]]] = {"swaps": swaps, "faults": faults, "soak": soak}


def main() -> None:
    """Measures and prints."""
    said = arguments()
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        promoter = up.enter_context(spawn.Pool(1, initializer=os.nice, initargs=(10,)))
        if said.registry:  # a copy: promotions here are nobody else's
            registry = Path(shutil.copytree(said.registry, folder / "registry"))
        else:
            registry = promoter.apply(functools.partial(synthetic_registry, trainings=2), (folder,))
        bundles, paths, items, expected = promoter.apply(_answers_by_bundle, (str(registry),))
        helped = subprocess.run([sys.executable, "-m", "serve", "--help"], capture_output=True, text=True, check=True)
        has_online = "--online" in helped.stdout
        if not has_online:
            print("the service has no online store yet: nothing is said of events", file=sys.stderr)
        setting = Setting(said, folder, registry, bundles, paths, items, expected, promoter, has_online)
        rate = f"{said.rate:g} requests/s" if said.rate else "as fast as answered"
        for part in said.parts:
            title = f"{part}: {said.connections} connections, {rate}, {said.replicas} replica(s)"
            emit(title, PARTS[part](setting), as_json=said.json)


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    made.add_argument("--registry", default="", help="a registry of two bundles to copy; a synthetic one if left out")
    made.add_argument("--replicas", type=int, default=1, help="replicas; the faults take two at least")
    made.add_argument("--connections", type=int, default=16, help="how many ask at once")
    made.add_argument("--rate", type=float, default=0.0, help="requests a second in all; 0: as fast as answered")
    made.add_argument("--swaps", type=int, default=100, help="promotions and rollbacks, in turn")
    made.add_argument("--pause", type=float, default=1.0, help="seconds of quiet after each swap")
    made.add_argument("--requests", type=int, default=200_000, help="requests of the soak")
    return made.parse_args()


if __name__ == "__main__":
    main()
