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

import yaml
from pydantic import ValidationError

from recsys.artifacts import ArtifactError

from .key_file import KeyFileError
from .keys import Keys, refuse_public
from .local import QUIET, ray_serve, stop_signal
from .problems import invalid
from .settings import Settings

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"

EXAMPLES = """examples:
  python -m serve --registry registry
  python -m serve --registry registry --port 8080 --replicas 2 --config configs/serving.yaml
  python -m serve --registry registry --online redis://127.0.0.1:6379/0
  python -m serve keys add shop --scope read --keys keys.json
  python -m serve --registry registry --host 0.0.0.0 --keys keys.json
  curl 'http://127.0.0.1:8000/v1/users/1/recommendations?k=5'

It listens on this machine only, where whoever can reach it may ask. Any other --host needs --keys.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the service; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["keys"]:
        from .keys_command import main as keys

        return keys(given[1:])
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve the promoted bundle of a registry over HTTP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--registry", metavar="ADDRESS", help="the registry, a folder or address")
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (default: %(default)s)")
    parser.add_argument("--replicas", type=int, help="processes that answer (default: 1)")
    parser.add_argument(
        "--online",
        metavar="ADDRESS",
        help="where events and live items are kept: a folder, or redis://… (default: `online` in a registry's folder; "
        "'' keeps none)",
    )
    parser.add_argument("--keys", metavar="FILE", help="the API keys that are asked for; `keys --help` says more")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a YAML file with these and all other settings")
    said = parser.parse_args(given)
    try:
        settings = _checked(said)
    except (ArtifactError, KeyFileError, ValueError, OSError) as error:
        parser.error(str(error))
    with ray_serve(said.host, said.port, num_cpus=settings.replicas) as serve:
        from .app import build

        try:
            serve.run(build(settings), name="recsys", route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            print(f"the service did not start: {error}", file=sys.stderr)
            return 1
        stop = stop_signal()
        _greet(
            f"http://{LOOPBACK if said.host == EVERYWHERE else said.host}:{said.port}",
            locked=bool(settings.keys),
            page=settings.page,
        )
        stop.wait()
    return 0


def _checked(said: argparse.Namespace) -> Settings:
    """Refuses, before anything is started, what could not work."""
    settings = _settings(said)
    if not 1 <= said.port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {said.port}")
    keys = Keys(Path(settings.keys)) if settings.keys else None
    refuse_public(said.host, keys)
    address = settings.registry
    if "://" not in address and not Path(address).is_dir():
        raise ValueError(f"there is no registry at {address}; make one with `recsys bundle seal --promote`")
    from recsys.registry import Registry  # after what is quick to check: torch comes along

    registry = Registry(address)
    if registry.current is None:
        raise ValueError(f"no bundle is live in {address}; run `recsys bundle promote` first")
    registry.manifest(registry.current)
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((said.host, said.port))
        except OSError as error:
            raise ValueError(f"{said.host}:{said.port} is taken or not ours ({error}); choose another --port") from None
    return settings


def _settings(said: argparse.Namespace) -> Settings:
    """What the file says, then the command line; folders as seen from anywhere, since replicas run elsewhere."""
    values: dict[str, Any] = {}
    if said.config is not None:
        values = yaml.safe_load(said.config.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{said.config} must hold settings by name, such as `registry: registry`")
    for name in ("registry", "replicas", "online", "keys"):
        if getattr(said, name) is not None:
            values[name] = getattr(said, name)
    if not values.get("registry"):
        raise ValueError("say which bundles to serve: --registry registry")
    if "online" not in values and "://" not in values["registry"]:
        values["online"] = str(Path(values["registry"]) / "online")
    for name in ("registry", "online", "keys"):
        if values.get(name) and "://" not in values[name]:
            values[name] = str(Path(values[name]).resolve())
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ValueError(str(invalid(error))) from None


def _greet(address: str, *, locked: bool, page: bool) -> None:
    """Says what to try, with an item that exists; that it answers shows that the way through the proxy is open."""
    _patiently(f"{address}/readyz")
    item_id = "1"
    if not locked and (popular := _patiently(f"{address}/v1/users/1/recommendations?k=1")["items"]):
        item_id = quote(str(popular[0]["item_id"]), safe="")
    for what, path in (
        *((("the page", "/"),) if page else ()),
        ("recommendations", "/v1/users/1/recommendations?k=10"),
        ("similar items", f"/v1/items/{item_id}/similar?k=10"),
        ("the bundle", "/v1/bundle"),
        ("metrics", "/metrics"),
        ("documentation", "/docs"),
    ):
        print(f"{what:<16} {address}{path}")
    if locked:
        print("All but the page itself and the documentation want a key: curl -H 'Authorization: Bearer <key>' …")
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
