"""`python -m serve`: serves the promoted bundle of a registry from this machine, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recsys.artifacts import ArtifactError

from .local import QUIET, ray_serve, stop_signal
from .settings import Settings

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"

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
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="processes that answer (default: %(default)s)")
    said = parser.parse_args(arguments)
    try:
        settings = _checked(said)
    except (ArtifactError, ValueError) as error:
        parser.error(str(error))
    with ray_serve(said.host, said.port, num_cpus=said.replicas) as serve:
        from .app import build

        try:
            serve.run(build(settings), name="recsys", route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            print(f"the service did not start: {error}", file=sys.stderr)
            return 1
        stop = stop_signal()
        _greet(f"http://{LOOPBACK if said.host == EVERYWHERE else said.host}:{said.port}")
        stop.wait()
    return 0


def _checked(said: argparse.Namespace) -> Settings:
    """Refuses, before anything is started, what could not work."""
    if said.replicas < 1:
        raise ValueError(f"--replicas must be 1 or more, got {said.replicas}")
    if not 1 <= said.port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {said.port}")
    address = said.registry
    if "://" not in address:  # replicas may run elsewhere in this machine's folders
        address = str(Path(address).resolve())
        if not Path(address).is_dir():
            raise ValueError(f"there is no registry at {said.registry}; make one with `recsys bundle seal --promote`")
    from recsys.registry import Registry  # after what is quick to check: torch comes along

    registry = Registry(address)
    if registry.current is None:
        raise ValueError(f"no bundle is live in {said.registry}; run `recsys bundle promote` first")
    registry.manifest(registry.current)
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((said.host, said.port))
        except OSError as error:
            raise ValueError(f"{said.host}:{said.port} is taken or not ours ({error}); choose another --port") from None
    return Settings(registry=address, replicas=said.replicas)


def _greet(address: str) -> None:
    """Says what to try, with an item that exists; that it answers shows that the way through the proxy is open."""
    popular = _patiently(f"{address}/v1/users/1/recommendations?k=1")["items"]
    item_id = quote(str(popular[0]["item_id"]), safe="") if popular else "1"
    for what, path in (
        ("recommendations", "/v1/users/1/recommendations?k=10"),
        ("similar items", f"/v1/items/{item_id}/similar?k=10"),
        ("the bundle", "/v1/bundle"),
        ("documentation", "/docs"),
    ):
        print(f"{what:<16} {address}{path}")
    print("Ctrl-C stops it.", flush=True)


def _patiently(address: str, patience_s: float = 60) -> Any:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{address} does not answer within {patience_s:g} s ({error})") from error
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
