"""How many recommendations a second go over HTTP, and how long one takes, beside the floors and peers of the same run.

Known users without new events, whose answers need no tower; and histories of 20 in the request, which run it. The
service has its online store, as it comes, and looks there for each known user.

    python -m benchmarks.serving --seconds 10 [--registry demo/registry]

Every server runs around the same bundle, on loopback, and the load comes from one process of its own. All of them take
turns in short rounds, those that are compared side by side and in another order each time, and every ratio is the
median over rounds of one round's ratio, so that what else the machine does hits both sides alike. The second table has
the aims, each with the 95 % interval of its median: a run that the machine disturbed says so itself. Servers that wait
their turn are up and idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

import numpy as np
from scipy.stats import quantile_test

from benchmarks.loads import Connection, get, post
from benchmarks.served import lean, serve_uvicorn, synthetic_registry
from benchmarks.table import emit, parser

CONNECTIONS = (1, 16)
ROUNDS = 20
K = 10
HISTORY = 20
Result = tuple[int, float, list[float]]  # requests, seconds taken, each one's seconds
Line = tuple[str, int]  # of the table: what, and over how many connections
Measure = Callable[[Result], float]
MOST_REQUESTS = 200_000  # a round ends at the latest here


def load(port: int, asked: list[bytes], connections: int, seconds: float) -> Result:
    """Asks for `seconds` over keep-alive connections; returns requests, seconds taken and each latency in seconds."""

    async def run() -> Result:
        loop = asyncio.get_running_loop()
        requests = itertools.cycle(asked)
        latencies_s: list[float] = []
        start = time.perf_counter()

        def ask() -> tuple[bytes, float] | None:
            now = time.perf_counter()
            return (next(requests), now) if now < start + seconds and len(latencies_s) < MOST_REQUESTS else None

        def answered(request: bytes, status: int, body: bytes, latency_s: float) -> None:
            if status != 200:
                raise RuntimeError(f"the server answered {status} {body[:300]!r}")
            latencies_s.append(latency_s)

        opened = [
            await loop.create_connection(lambda: Connection(ask, answered), "127.0.0.1", port)
            for _ in range(connections)
        ]
        await asyncio.gather(*(protocol.closed for _, protocol in opened))
        return len(latencies_s), time.perf_counter() - start, latencies_s

    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    return asyncio.run(run())


def plain_fastapi(registry: str) -> Any:
    """What one would write by hand: FastAPI, a typed route, a pydantic response model."""
    from fastapi import FastAPI, Query
    from pydantic import BaseModel

    from recsys.recommender import Event
    from serve.opening import open_current

    recommender = open_current(registry)
    app = FastAPI()

    class Item(BaseModel):
        item_id: str | int
        score: float
        rank: int
        attributes: dict[str, Any]

    class Recommendations(BaseModel):
        bundle: str
        strategy: str
        items: list[Item]

    async def recommend(user_id, k=K, include_seen=False):  # type: ignore[no-untyped-def]
        return recommender.recommend(user_id=user_id, k=k, include_seen=include_seen)

    recommend.__annotations__ = {"user_id": str, "k": Annotated[int, Query(ge=1, le=500)], "include_seen": bool}
    app.get("/v1/users/{user_id}/recommendations", response_model=Recommendations)(recommend)

    class Asked(BaseModel):
        history: list[str | int] = []
        k: int = K

    async def from_history(body):  # type: ignore[no-untyped-def]
        return recommender.recommend(history=[Event(item) for item in body.history], k=body.k)

    from_history.__annotations__ = {"body": Asked}
    app.post("/v1/recommendations", response_model=Recommendations)(from_history)
    return app


def serve_ray(registry: str, port: int, replicas: int) -> None:
    """Runs the real application and, beside it under /noop, one that does nothing."""
    from serve.local import QUIET, ray_serve, stop_signal
    from serve.settings import Settings

    with tempfile.TemporaryDirectory() as folder, ray_serve("127.0.0.1", port, num_cpus=replicas + 1) as serve:
        from serve.app import build

        async def nothing(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                while (await receive()).get("more_body", False):
                    pass
                headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"{}"})

        noop = serve.deployment(name="noop", max_ongoing_requests=256)(serve.ingress(lambda: nothing)()).bind()
        serve.run(noop, name="noop", route_prefix="/noop", logging_config=QUIET)
        serve.run(
            build(Settings(registry=registry, replicas=replicas, online=folder)),
            name="recsys",
            route_prefix="/",
            logging_config=QUIET,
        )
        stop_signal().wait()


PEER, RAY = "uvicorn + FastAPI", "Ray Serve + our app"
IN_PROCESS, FLOOR, WITH = "Recommender in process", "tower's forward + search", f", history of {HISTORY}"
SERVERS: dict[str, Any] = {PEER: plain_fastapi, "uvicorn + our app": lean}


@contextlib.contextmanager
def server(role: str, registry: str, port: int, path: str, replicas: int) -> Iterator[None]:
    """A server in a process of its own, from when it answers to the end of the block."""
    command = [sys.executable, "-m", "benchmarks.serving", "--role", role, "--registry", registry]
    command += ["--port", str(port), "--replicas", str(replicas)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{role} did not start on port {port}; is the port taken?")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


class InProcess:
    """The Recommender called straight, one call after the other, in a process of its own."""

    recommender: ClassVar[Any] = None

    @classmethod
    def open(cls, registry: str) -> None:
        """Loads the bundle, once, into a process as ready as a replica."""
        from serve.opening import open_current, settle

        settle()
        cls.recommender = open_current(registry)

    @classmethod
    def users(cls, count: int) -> list[Any]:
        """Ids of users drawn at random."""
        ids = cls.recommender.bundle.user_ids
        return ids.ids(np.random.default_rng(0).choice(len(ids), min(count, len(ids)), replace=False))

    @classmethod
    def histories(cls, count: int) -> list[list[Any]]:
        """Of items drawn at random, `HISTORY` each."""
        ids, rng = cls.recommender.bundle.item_ids, np.random.default_rng(1)
        return [ids.ids(rng.choice(len(ids), HISTORY, replace=False)) for _ in range(count)]

    @classmethod
    def ask(cls, users: list[Any], seconds: float) -> Result:
        """Asks for one user after the other."""
        return cls._timed(lambda user_id: cls.recommender.recommend(user_id=user_id, k=K), users, seconds)

    @classmethod
    def ask_with(cls, histories: list[list[Any]], seconds: float) -> Result:
        """Asks with one history after the other."""
        from recsys.recommender import Event

        events = [[Event(item) for item in history] for history in histories]
        return cls._timed(lambda history: cls.recommender.recommend(history=history, k=K), events, seconds)

    @classmethod
    def raw(cls, histories: list[list[Any]], seconds: float) -> Result:
        """The floor of a request with a history: PyTorch's own forward pass of the tower, and FAISS's own search."""
        import torch

        bundle = cls.recommender.bundle
        rows = [bundle.item_ids.rows(history) for history in histories]
        times = np.zeros(HISTORY, dtype=np.int64) if bundle.history_times is not None else None
        events = np.zeros(HISTORY, dtype=np.int64) if bundle.history_events is not None else None
        profile = {name: np.zeros_like(values[:1]) for name, values in bundle.profiles.items()}

        def once(history: np.ndarray) -> None:
            vector = bundle.towers.user_now(bundle.item_vectors[history], times, events, profile)
            bundle.index.search(vector[None], K, exclude=history)

        torch.backends.mkldnn.set_flags(True)  # as PyTorch comes, but on the one thread
        try:
            return cls._timed(once, rows, seconds)
        finally:
            torch.backends.mkldnn.set_flags(False)

    @staticmethod
    def _timed(work: Callable[[Any], object], over: list[Any], seconds: float) -> Result:
        latencies_s: list[float] = []
        start = now = time.perf_counter()
        for each in itertools.cycle(over):
            before = now
            work(each)
            now = time.perf_counter()
            latencies_s.append(now - before)
            if now - start > seconds:
                break
        return len(latencies_s), now - start, latencies_s


def main() -> None:
    """Measures and prints."""
    said = arguments()
    if said.role == "ray":
        serve_ray(said.registry, said.port, said.replicas)
    elif said.role:
        serve_uvicorn(SERVERS[said.role], said.registry, said.port)
    else:
        measure(said)


def measure(said: argparse.Namespace) -> None:
    """Starts the servers, lets rounds take turns, and prints the table."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory()))
        generator, straight = up.enter_context(spawn.Pool(1)), up.enter_context(spawn.Pool(1))
        registry = said.registry or str(straight.apply(synthetic_registry, (folder,)))
        straight.apply(InProcess.open, (registry,))
        users = straight.apply(InProcess.users, (1000,))
        histories = straight.apply(InProcess.histories, (1000,))
        paths = [f"/v1/users/{quote(str(user), safe='')}/recommendations?k={K}" for user in users]
        ports = {name: said.port + number for number, name in enumerate(SERVERS, 1)}
        for name, port in ports.items():
            up.enter_context(server(name, registry, port, paths[0], said.replicas))
        ports[RAY] = said.port
        up.enter_context(server("ray", registry, said.port, paths[0], said.replicas))
        kinds = {
            "": [get(path) for path in paths],
            WITH: [post("/v1/recommendations", {"history": history, "k": K}) for history in histories],
        }
        targets = {name + kind: (port, asked) for kind, asked in kinds.items() for name, port in ports.items()}
        targets["Ray Serve, no-op"] = (said.port, [get("/noop/x")])
        targets["Ray Serve, no-op" + WITH] = (said.port, [post("/noop/x", {"history": histories[0], "k": K})])
        alone: list[Any] = [
            (IN_PROCESS, straight, InProcess.ask, (users,)),
            (IN_PROCESS + WITH, straight, InProcess.ask_with, (histories,)),
            (FLOOR + WITH, straight, InProcess.raw, (histories,)),
        ]
        turn = [
            ((name, connections), generator, load, (*target, connections))
            for connections in CONNECTIONS
            for name, target in targets.items()
        ]
        turn += [((name, 1), pool, function, given) for name, pool, function, given in alone]
        turn.sort(key=compared)
        taken: dict[Line, list[Result]] = {line: [] for line, *_ in turn}
        order = random.Random(0)
        for round_number in range(ROUNDS + 1):
            seconds = said.seconds / ROUNDS if round_number else 0.5  # the first one only warms up
            for line, pool, function, given in sorted(order.sample(turn, len(turn)), key=compared):
                result = pool.apply(function, (*given, seconds))
                if round_number:
                    taken[line].append(result)
    title = f"serving: k {K}, {said.replicas} replica(s), {ROUNDS} rounds in turn"
    emit(title, [row(line, taken) for line in taken], as_json=said.json)
    emit("the aims, from ratios round by round", aims(taken), as_json=said.json)


def compared(turn: tuple[Line, Any, Any, Any]) -> tuple[int, bool]:
    """Equal for those that are compared with one another."""
    (name, connections), *_ = turn
    return connections, WITH in name


def row(line: Line, taken: dict[Line, list[Result]]) -> dict[str, Any]:
    """One line of the table."""
    name, connections = line
    results, kind = taken[line], WITH if WITH in name else ""
    latencies_s = np.concatenate([each for _, _, each in results])
    peer, floor = taken[PEER + kind, connections], taken[FLOOR + WITH, 1]
    rates = [rate(each) for each in results]
    return {
        "what": name,
        "connections": connections,
        "requests/s": float(np.median(rates)),
        "± rounds": float(np.std(rates)),
        "p50 ms": 1000 * float(np.median(latencies_s)),
        "p99 ms": 1000 * float(np.percentile(latencies_s, 99)),
        "× FastAPI": float(np.median(ratios(rate, results, peer))),
        "p50 × FastAPI": float(np.median(ratios(p50, results, peer))),
        "p50 × raw": float(np.median(ratios(p50, results, floor))) if kind and connections == 1 else None,
    }


def aims(taken: dict[Line, list[Result]]) -> list[dict[str, Any]]:
    """What the service is to reach, what it reached, and between what."""

    def aim(what: str, measure: Measure, of: Line, to: Line, bound: str) -> dict[str, Any]:
        found = ratios(measure, taken[of], taken[to])
        between = quantile_test(found, p=0.5).confidence_interval(0.95)
        return {"ratio": what, "median": float(np.median(found)), "from": between.low, "to": between.high, "aim": bound}

    return [
        aim("requests/s to FastAPI's, 16 connections", rate, (RAY, 16), (PEER, 16), "≥ 0.9"),
        aim("p50 to FastAPI's, 1 connection", p50, (RAY, 1), (PEER, 1), "≤ 1.3"),
        aim(f"p50{WITH}, in process, to the raw floor", p50, (IN_PROCESS + WITH, 1), (FLOOR + WITH, 1), "≤ 1.5"),
        aim(f"p50{WITH}, over HTTP, to the raw floor", p50, (RAY + WITH, 1), (FLOOR + WITH, 1), "≤ 1.5"),
    ]


def rate(result: Result) -> float:
    """Requests a second."""
    return result[0] / result[1]


def p50(result: Result) -> float:
    """The median latency, in seconds."""
    return float(np.median(result[2]))


def ratios(measure: Measure, of: Sequence[Result], to: Sequence[Result]) -> list[float]:
    """Of each round, what the one measured by what the other did."""
    return [measure(one) / measure(other) for one, other in zip(of, to, strict=True)]


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--registry", default="", help="a registry with a live bundle; a synthetic one if left out")
    made.add_argument("--seconds", type=float, default=10.0, help="time for each line of the table")
    made.add_argument("--replicas", type=int, default=1, help="replicas of the Ray Serve application")
    made.add_argument("--port", type=int, default=8190, help="the first of three ports to use")
    made.add_argument("--role", default="", help=argparse.SUPPRESS)
    return made.parse_args()


if __name__ == "__main__":
    main()
