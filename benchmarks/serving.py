"""How many recommendations a second go over HTTP, and how long one takes, beside the floors and peers of the same run.

    python -m benchmarks.serving --seconds 10 [--registry demo/registry]

Every server runs around the same bundle, on loopback; rounds of all of them take turns, so that what else the machine
does hits each alike. Servers that wait their turn are up and idle, and the load comes from one process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

import numpy as np

from benchmarks.loads import Connection, get
from benchmarks.table import emit, parser

CONNECTIONS = (1, 16)
ROUNDS = 5
K = 10
Result = tuple[int, float, list[float]]  # requests, seconds taken, each one's seconds
MOST_REQUESTS = 200_000  # a round ends at the latest here


def load(port: int, paths: list[str], connections: int, seconds: float) -> Result:
    """Asks for `seconds` over keep-alive connections; returns requests, seconds taken and each latency in seconds."""

    async def run() -> Result:
        loop = asyncio.get_running_loop()
        requests = itertools.cycle([get(path) for path in paths])
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
    return app


def lean(registry: str) -> Any:
    """The service's own application, without Ray."""
    from serve.asgi import Application
    from serve.opening import open_current
    from serve.schemas import Limits
    from serve.service import Service

    return Application(Service(Limits(), open_current(registry)))


def serve_uvicorn(build: Any, registry: str, port: int) -> None:
    """Runs an ASGI application in one process under uvicorn."""
    import uvicorn

    uvicorn.run(build(registry), host="127.0.0.1", port=port, access_log=False, log_level="error")


def serve_ray(registry: str, port: int, replicas: int) -> None:
    """Runs the real application and, beside it under /noop, one that does nothing."""
    from serve.local import QUIET, ray_serve, stop_signal
    from serve.settings import Settings

    with ray_serve("127.0.0.1", port, num_cpus=replicas + 1) as serve:
        from serve.app import build

        async def nothing(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"{}"})

        noop = serve.deployment(name="noop", max_ongoing_requests=256)(serve.ingress(lambda: nothing)()).bind()
        serve.run(noop, name="noop", route_prefix="/noop", logging_config=QUIET)
        serve.run(
            build(Settings(registry=registry, replicas=replicas)), name="recsys", route_prefix="/", logging_config=QUIET
        )
        stop_signal().wait()


PEER, RAY = "uvicorn + FastAPI", "Ray Serve + our app"
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


def synthetic_registry(folder: Path, trainings: int = 1) -> Path:
    """A registry with bundles of MovieLens's size: what they recommend is of no matter here, so two steps train each.

    Args:
        folder: where to make it.
        trainings: how many bundles, each of another training; the last one is live.
    """
    import pytorch_lightning as pl

    from recsys.data.module import HistoryData
    from recsys.data.prepare import prepare
    from recsys.data.synthetic import Synthetic
    from recsys.model.two_tower import TwoTower
    from recsys.registry import Registry
    from recsys.seal import seal

    prepare(Synthetic(users=6_000, items=3_700, interactions=300_000), folder / "dataset", max_rejected=0.5)
    registry = Registry(folder / "registry")
    for training in range(trainings):
        pl.seed_everything(training, verbose=False)
        data = HistoryData(folder / "dataset")
        model = TwoTower(data.num_items, data.item_inputs, data.user_inputs, data.num_events, data.has_times)
        trainer = pl.Trainer(
            max_steps=2,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        checkpoint = folder / f"model-{training}.ckpt"
        trainer.save_checkpoint(checkpoint)
        bundle = registry.publish(functools.partial(seal, checkpoint, folder / "dataset"))
        registry.promote(bundle, why="a benchmark")
    return registry.path


class InProcess:
    """The Recommender called straight, one call after the other, in a process of its own."""

    recommender: ClassVar[Any] = None

    @classmethod
    def open(cls, registry: str) -> None:
        """Loads the bundle, once."""
        from serve.opening import open_current

        cls.recommender = open_current(registry)

    @classmethod
    def users(cls, count: int) -> list[Any]:
        """Ids of users drawn at random."""
        ids = cls.recommender.bundle.user_ids
        return ids.ids(np.random.default_rng(0).choice(len(ids), min(count, len(ids)), replace=False))

    @classmethod
    def ask(cls, users: list[Any], seconds: float) -> Result:
        """Asks for one user after the other."""
        latencies_s: list[float] = []
        start = now = time.perf_counter()
        for user_id in itertools.cycle(users):
            before = now
            cls.recommender.recommend(user_id=user_id, k=K)
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
    taken: dict[tuple[str, int], list[Result]] = {}
    with contextlib.ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory()))
        generator, straight = up.enter_context(spawn.Pool(1)), up.enter_context(spawn.Pool(1))
        registry = said.registry or str(straight.apply(synthetic_registry, (folder,)))
        straight.apply(InProcess.open, (registry,))
        users = straight.apply(InProcess.users, (1000,))
        paths = [f"/v1/users/{quote(str(user), safe='')}/recommendations?k={K}" for user in users]
        targets = {name: (said.port + number, paths) for number, name in enumerate(SERVERS, 1)}
        for name, (port, asked) in targets.items():
            up.enter_context(server(name, registry, port, asked[0], said.replicas))
        targets |= {RAY: (said.port, paths), "Ray Serve, no-op": (said.port, ["/noop/x"])}
        up.enter_context(server("ray", registry, said.port, paths[0], said.replicas))
        for round_number in range(ROUNDS + 1):
            seconds = said.seconds / ROUNDS if round_number else 0.5  # the first one only warms up
            for connections in CONNECTIONS:
                turn: list[Any] = [
                    (name, generator, load, (*target, connections, seconds)) for name, target in targets.items()
                ]
                if connections == 1:
                    turn.append(("Recommender in process", straight, InProcess.ask, (users, seconds)))
                for name, pool, function, given in turn:
                    result = pool.apply(function, given)
                    if round_number:
                        taken.setdefault((name, connections), []).append(result)
    rows = [row(name, connections, results) for (name, connections), results in taken.items()]
    rows.sort(key=lambda each: each["connections"])
    by = {(each["what"], each["connections"]): each["requests/s"] for each in rows}
    for each in rows:
        each["× FastAPI"] = each["requests/s"] / by[PEER, each["connections"]]
    emit(f"serving: k {K}, {said.replicas} replica(s), {ROUNDS} rounds in turn", rows, as_json=said.json)


def row(name: str, connections: int, results: list[Result]) -> dict[str, Any]:
    """One line of the table."""
    rates = [count / seconds for count, seconds, _ in results]
    latencies_ms = np.concatenate([latencies for _, _, latencies in results]) * 1000
    return {
        "what": name,
        "connections": connections,
        "requests/s": float(np.median(rates)),
        "± rounds": float(np.std(rates)),
        "p50 ms": float(np.percentile(latencies_ms, 50)),
        "p99 ms": float(np.percentile(latencies_ms, 99)),
    }


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
