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
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.served import synthetic_registry
from benchmarks.serving_faults.faults import faults
from benchmarks.serving_faults.setting import Setting, answers_by_bundle
from benchmarks.serving_faults.soak import soak
from benchmarks.serving_faults.swaps import swaps
from benchmarks.table import emit, parser

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
        bundles, paths, items, expected = promoter.apply(answers_by_bundle, (str(registry),))
        setting = Setting(said, folder, registry, bundles, paths, items, expected, promoter)
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
