"""`make demo`: MovieLens 1M from raw ratings to live answers, by the commands that a person would type."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.data.dataset import Dataset
from recsys.data.ml_1m import FetchError, fetch_movielens_1m

FOLDER = Path("demo")
SHOWN_USER = 1
SHOWN = 10
_READY_SECONDS = 200  # a first start compiles every library it imports


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recsys.demo", description="MovieLens 1M, from ratings to answers.")
    parser.add_argument("--port", type=int, default=8000, help="where the service listens, on this machine only")
    parser.add_argument("--exit", action="store_true", help="stop the service at the end")
    parser.add_argument("--stop", action="store_true", help="only stop the service that an earlier demo left up")
    said = parser.parse_args(arguments)
    try:
        if said.stop:
            print("the service is stopped" if _stop() else "no service of the demo was up")
            return 0
        _demo(said.port, leave_up=not said.exit)
    except (DemoError, FetchError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _stop()
        return 130
    return 0


def _demo(port: int, *, leave_up: bool) -> None:
    began = time.monotonic()
    _stop()
    _refuse_taken(port)
    dataset, run, registry = FOLDER / "dataset", FOLDER / "run", FOLDER / "registry"
    evaluation, checkpoint = FOLDER / "evaluation.json", run / "best.ckpt"

    _say("1  MovieLens 1M")
    raw = fetch_movielens_1m(FOLDER / "ml-1m")
    _say("2  Prepare: raw ratings to a dataset")
    if not dataset.exists():
        _recsys("prepare", "--config", "configs/ml-1m-prepare.yaml", "--tables.init_args.path", str(raw))
    _say("3  Fit: two towers, on the ratings before the cut in time")
    if not evaluation.exists():
        resume = ["--ckpt_path", "last"] if (run / "last.ckpt").exists() else []
        _recsys("fit", "--config", "configs/ml-1m.yaml", *resume)
    _say("4  Evaluate: every held-out rating, all films ranked, beside the baselines")
    made = ["--checkpoint", str(checkpoint), "--dataset", str(dataset)]
    if not evaluation.exists():
        _recsys("evaluate", *made, "--out", str(evaluation))
    _say("5  Seal and promote: towers, vectors and index in one bundle")
    if not (registry / "CURRENT").exists():
        seal = ["--evaluation", str(evaluation), "--registry", str(registry), "--promote", "--why", "the demo"]
        _recsys("bundle", "seal", *made, *seal)
    _recsys("bundle", "list", "--registry", str(registry))
    _say("6  Serve")
    address = f"http://127.0.0.1:{port}"
    try:
        _serve(registry, port)
        _say("7  Ask")
        _ask(address, Dataset.open(dataset, check=False))
    finally:
        if not leave_up:
            _stop()
    _say(f"Done in {(time.monotonic() - began) / 60:.1f} minutes")
    if leave_up:
        print("The service is up; `make stop` stops it. To try:\n")
        for path in (
            f"/#user={SHOWN_USER}",
            "/docs",
            f"/v1/users/{SHOWN_USER}/recommendations?k=5",
            "/v1/items/260/similar?k=5",
            "/v1/bundle",
        ):
            print(f"  {address}{path}")
        body = '{"history": [1, 3114], "k": 5, "filter": {"genres": "Animation"}}'
        print(f"  curl -s {address}/v1/recommendations -H 'content-type: application/json' -d '{body}'")
    else:
        print("The service is stopped again.")


def _ask(address: str, data: Dataset) -> None:
    user = data.user_ids.row(SHOWN_USER)
    if user is None:
        raise DemoError(f"user {SHOWN_USER} is not in {data.path}; remove {FOLDER}/ and run the demo again")
    recent = data.items[data.user_offsets[user] : data.user_offsets[user + 1]][-SHOWN:][::-1]
    table = data.item_features().take(pa.array(recent))
    films = [
        {"item_id": item, "attributes": attributes}
        for item, attributes in zip(data.item_ids.ids(recent), table.to_pylist(), strict=True)
    ]
    _show(f"User {SHOWN_USER} rated last", films)
    answer = _get(f"{address}/v1/users/{SHOWN_USER}/recommendations?k={SHOWN}")
    _show(f"Recommended to user {SHOWN_USER} ({answer['strategy']}, bundle {answer['bundle']})", answer["items"])
    liked = films[0]
    similar = _get(f"{address}/v1/items/{liked['item_id']}/similar?k={SHOWN}")
    _show(f"Similar to {liked['attributes']['title']}", similar["items"])


def _show(heading: str, items: list[dict[str, Any]]) -> None:
    print(f"\n{heading}\n{'─' * len(heading)}")
    for place, item in enumerate(items, 1):
        attributes = item["attributes"]
        score = f"{item['score']:>7.2f}" if "score" in item else ""
        title, genres = str(attributes.get("title", "")), ", ".join(attributes.get("genres") or [])
        print(f"{place:>3} {score}  {item['item_id']:>5}  {title[:52]:<52}  {genres}".rstrip())


def _recsys(*arguments: str) -> None:
    """Runs a command as a person would, and shows it; its own progress goes to the terminal."""
    print(f"$ recsys {shlex.join(arguments)}", flush=True)
    if status := subprocess.run([sys.executable, "-m", "recsys.cli", *arguments], check=False).returncode:
        raise DemoError(f"`recsys {arguments[0]}` ended with {status}; what it printed says why")


def _serve(registry: Path, port: int) -> None:
    arguments = ["--registry", str(registry), "--port", str(port)]
    print(f"$ recsys serve {shlex.join(arguments)}    (its log: {_log()})", flush=True)
    with open(_log(), "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C at the demo's end must not reach a service that is to stay up
        )
    _pid_file().write_text(f"{process.pid} {_started(process.pid)}")
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the service ended with {process.returncode}:\n{_log().read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            _get(f"http://127.0.0.1:{port}/readyz")
            print("ready", flush=True)
            return
        time.sleep(0.2)
    raise DemoError(f"the service is not ready after {_READY_SECONDS} s; see {_log()}")


def _stop() -> bool:
    """Stops the service that a demo started, if it is still up; whether there was one."""
    file = _pid_file()
    if not file.exists():
        return False
    pid, started = (int(number) for number in file.read_text().split())
    file.unlink()
    if _started(pid) != started:  # it ended, and its number may be another process's by now
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _READY_SECONDS
    while _started(pid) == started:
        if time.monotonic() > deadline:
            raise DemoError(f"process {pid} does not stop; see {_log()}, or end it with `kill {pid}`")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
    return True


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise DemoError(f"something else listens on port {port}; choose another: make demo PORT={port + 80}")


def _get(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        said: dict[str, Any] = json.load(answer)
        return said


def _log() -> Path:
    return FOLDER / "serve.log"


def _pid_file() -> Path:
    return FOLDER / "serve.pid"


def _say(what: str) -> None:
    print(f"\n── {what} {'─' * max(0, 96 - len(what))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
