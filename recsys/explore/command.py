"""`recsys doctor`: looks into a bundle, says what is wrong and what to do, and ends with a status for CI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recsys.artifacts import write_durably
from recsys.bundle import Bundle
from recsys.data.dataset import Dataset
from recsys.explore.doctor import Report, examine, to_json
from recsys.explore.findings import SEVERITIES
from recsys.explore.page import page, text
from recsys.explore.space import Space
from recsys.registry import Registry

EXAMPLES = """examples:
  recsys doctor --registry demo/registry                                 # the live bundle
  recsys doctor --registry demo/registry --dataset demo/dataset --html demo/doctor.html
  recsys doctor demo/registry/bundles/BUNDLE --json
  recsys doctor NEW --registry demo/registry --against OLD               # what changed, too
  recsys doctor --registry demo/registry --fail-on warning --no-dial     # for CI

Exit status: 0 nothing as bad as --fail-on says; 1 something is, or the bundle is damaged; 2 told wrong.
What each finding means, and where its formula comes from: docs/doctor.md.
"""


def main(arguments: list[str]) -> int:
    """Examines a bundle; returns the exit status.

    Raises:
        ArtifactError: a bundle or dataset is not there, or is damaged.
        ValueError: nothing can be compared, or no bundle is live.
    """
    parser = _parser()
    said = parser.parse_args(arguments)
    if said.bundle is None and said.registry is None:
        parser.error("name a bundle's folder, or give --registry for the live one")
    try:
        report = _examined(said)
    except ImportError as error:
        print(f"recsys doctor: {error}", file=sys.stderr)
        return 1
    for file, made in ((said.html, page), (said.out, to_json)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(file, made(report))
    print(to_json(report) if said.json else text(report))
    if said.html is not None and not said.json:
        print(f"\nwith plots: {said.html}")
    limit = len(SEVERITIES) if said.fail_on == "never" else SEVERITIES.index(said.fail_on)
    return int(SEVERITIES.index(report.worst) >= limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recsys doctor",
        description="Look into a bundle: duplicates, clusters, outliers, hubs, collapse, drift, leaks, what each "
        "dimension costs; each finding with examples and what to do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle", nargs="?", help="a bundle's folder, or with --registry its id; the live one if left out"
    )
    parser.add_argument("--registry", metavar="PLACE", help="the registry's folder or address")
    parser.add_argument("--against", metavar="OLDER", help="another bundle, named likewise, to measure drift from")
    parser.add_argument("--dataset", type=Path, help="that it was sealed with: leaks, and NDCG by dimension")
    parser.add_argument("--resolution", type=_above_0, default=1.0, help="of clusters: higher gives more of them (1)")
    parser.add_argument("--map", choices=("pca", "umap"), default="pca", help="how the map is made (pca)")
    parser.add_argument("--no-dial", action="store_true", help="build no indexes to compare dimensions by")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with plots")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write findings and figures as JSON")
    parser.add_argument("--json", action="store_true", help="print findings and figures as JSON")
    parser.add_argument(
        "--fail-on",
        choices=("note", "warning", "serious", "never"),
        default="serious",
        help="the least severe finding that ends it with status 1 (serious)",
    )
    return parser


def _examined(said: argparse.Namespace) -> Report:
    def say(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line} …", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    registry = Registry(said.registry) if said.registry is not None else None
    space = Space.of(_opened(registry, said.bundle), say=say)
    against = Space.of(_opened(registry, said.against), say=say) if said.against is not None else None
    dataset = Dataset.open(said.dataset) if said.dataset is not None else None
    report = examine(
        space,
        against=against,
        dataset=dataset,
        resolution=said.resolution,
        method=said.map,
        with_dial=not said.no_dial,
    )
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return report


def _opened(registry: Registry | None, bundle: str | None) -> Bundle:
    if bundle is None:
        assert registry is not None
        return registry.open_current()
    if registry is not None and bundle in registry.bundles():
        return Bundle.open(registry.bundle_path(bundle))
    if registry is not None and not Path(bundle).is_dir():
        return Bundle.open(registry.bundle_path(bundle))  # which says what there is
    return Bundle.open(Path(bundle))


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0, as 1 or 2.5")
    return value
