"""`python -m serve`: serves the promoted bundle of a registry from this machine, until it is told to stop."""

from __future__ import annotations

import argparse
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from .local import QUIET, ray_serve, stop_signal

EXAMPLES = """examples:
  python -m serve --registry registry
  python -m serve --registry registry --port 8080 --replicas 2
  curl 'http://127.0.0.1:8000/v1/users/1/recommendations?k=5'

It listens on this machine only. With --host 0.0.0.0 anyone who reaches the machine can ask, without a password:
put it behind something that knows your users.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the service; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve the promoted bundle of a registry over HTTP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--registry", required=True, metavar="DIR", help="the registry folder")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="processes that answer (default: %(default)s)")
    said = parser.parse_args(arguments)
    if not Path(said.registry).is_dir():
        parser.error(f"there is no registry at {said.registry}; make one with `recsys bundle seal` and `promote`")
    if said.replicas < 1:
        parser.error(f"--replicas must be 1 or more, got {said.replicas}")

    # Imported before Ray, to refuse a bad setting before anything is started.
    from .settings import Settings

    settings = Settings(registry=str(Path(said.registry).resolve()), replicas=said.replicas)
    address = f"http://{'127.0.0.1' if said.host == '0.0.0.0' else said.host}:{said.port}"
    with ray_serve(said.host, said.port, num_cpus=said.replicas) as serve:
        from .app import build

        stop = stop_signal()
        serve.run(build(settings), name="recsys", route_prefix="/", logging_config=QUIET)
        if _wait_until_ready(address, stop):
            _greet(address)
            stop.wait()
    return 0


def _wait_until_ready(address: str, stop: threading.Event, patience_s: float = 60) -> bool:
    deadline = time.monotonic() + patience_s
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{address}/readyz does not answer within {patience_s:g} s ({error})") from error
        time.sleep(0.05)
    return False


def _greet(address: str) -> None:
    for what, path in (
        ("recommendations", "/v1/users/1/recommendations?k=10"),
        ("similar items", "/v1/items/1/similar?k=10"),
        ("the bundle", "/v1/bundle"),
        ("documentation", "/docs"),
    ):
        print(f"{what:<16} {address}{path}")
    print("Ctrl-C stops it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
