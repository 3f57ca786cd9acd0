"""`recsys index`: which kind of index a bundle's vectors want, measured on them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.index.advise import Advice, Budget, Trial, advise, measure
from recsys.index.build import Kind
from recsys.registry import Registry

EXAMPLES = """examples:
  recsys index advise --registry demo/registry
  recsys index advise --registry demo/registry --memory 2GB --p99 2ms --recall 0.98 --build 10min
  recsys index advise --registry demo/registry --bundle BUNDLE --dimensions 64 32 16 --json

The cheapest index is the one that needs least memory, in steps of 100 MB; among equals, the quickest at the median.
"""

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_RESTLESS = 5  # p99 of one pass over memory in medians; on a quiet machine it is below 2
_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def main(arguments: list[str]) -> None:
    """Runs one of the subcommands."""
    parser = argparse.ArgumentParser(
        prog="recsys index",
        description="Measure which index a bundle's vectors want.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    advised = commands.add_parser(
        "advise",
        help="try every kind of index on a bundle's vectors, and say which one meets a budget",
        description="Builds exact, half-precision, HNSW, IVF and product-quantised indexes over a bundle's item "
        "vectors, asks each with its users' vectors, and names the cheapest that meets the budget.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    advised.add_argument("--registry", required=True, help="the registry")
    advised.add_argument("--bundle", help="its id; the live one if left out")
    advised.add_argument("--memory", type=size, help="that may be resident where it serves, as 2GB or 500MiB")
    advised.add_argument("--p99", type=duration, help="of one query on one thread, as 2ms or 500us")
    advised.add_argument("--recall", type=share, default=0.95, help="of the true k, at least (0.95)")
    advised.add_argument("--build", type=duration, help="on this machine, as 90s or 10min")
    advised.add_argument("--k", type=positive, default=10, help="items a query wants (10)")
    advised.add_argument("--queries", type=positive, default=1000, help="users who ask (1000)")
    advised.add_argument(
        "--dimensions", type=positive, nargs="+", default=[], help="to cut vectors to; what the bundle's loss trained"
    )
    advised.add_argument("--json", action="store_true", help="print figures as JSON")
    said = parser.parse_args(arguments)
    _advise(said)


def size(text: str) -> int:
    """Bytes, from a number and a unit."""
    return round(_quantity(text, _SIZES, "a size is a number and B, KB, MB, GB, TB, KiB, MiB or GiB, as 2GB or 1.5GiB"))


def duration(text: str) -> float:
    """Seconds, from a number and a unit."""
    return _quantity(text, _DURATIONS, "a duration is a number and us, ms, s, min or h, as 2ms or 10min")


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text) and 0 < float(text) <= 1:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: a recall is a number above 0 and at most 1, as 0.98")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if re.fullmatch(r"[0-9]+", text) and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")


def _quantity(text: str, units: dict[str, Any], form: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if found is None or found[2] not in units or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: {form}")
    return float(found[1]) * float(units[found[2]])


def _advise(said: argparse.Namespace) -> None:
    registry = Registry(said.registry)
    bundle = Bundle.open(Path(registry.bundle_path(said.bundle))) if said.bundle else registry.open_current()
    users = np.flatnonzero(bundle.user_vectors.any(axis=1))
    if not len(users):
        raise ValueError(f"bundle {bundle.id} knows no user with a history, so nobody can ask; choose another")
    rows = users[np.unique(np.linspace(0, len(users) - 1, min(said.queries, len(users))).astype(np.int64))]
    content = bundle.manifest.content
    trials = measure(
        bundle.item_vectors,
        np.ascontiguousarray(bundle.user_vectors[rows]),
        k=said.k,
        dimensions=said.dimensions or content["dimensions"],
        unit=bool(content["unit"]),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    budget = Budget(memory=said.memory, p99=said.p99, recall=said.recall, build=said.build)
    advice = advise(trials, budget)
    if said.json:
        print(json.dumps(_figures(bundle, trials, budget, advice), indent=1))
    else:
        items = f"{len(bundle.item_ids):,} items of {bundle.id}"
        print(f"{items}, {len(rows):,} users asking for {said.k}, one at a time on one thread")
        print(table(trials, budget, said.k))
        print(sentence(advice, budget))
        if trials[0].p99 > _RESTLESS * trials[0].p50:
            slower = f"{trials[0].p99 / trials[0].p50:.0f} times"
            print(f"Something else kept this machine busy: the floor's own p99 is {slower} its median; measure again.")


def table(trials: list[Trial], budget: Budget, k: int) -> str:
    """What was measured, lined up; ✓ where the budget is met, else what is missed."""
    lines = [["index", "dimensions", f"recall@{k}", "p50 µs", "p99 µs", "memory MB", "file MB", "build s", "budget"]]
    for trial in trials:
        floor = trial.kind is None
        missed = trial.missed(budget)
        lines.append(
            [
                "floor: X @ q" if trial.kind is None else named(trial.kind),
                str(trial.dimension),
                "–" if floor else f"{trial.recall:.4f}",
                f"{trial.p50 * 1e6:,.0f}",
                f"{trial.p99 * 1e6:,.0f}",
                f"{trial.memory / 1e6:,.1f}",
                f"{trial.file_bytes / 1e6:,.1f}",
                "–" if floor else f"{trial.build:,.1f}",
                "–" if floor else "misses " + ", ".join(missed) if missed else "✓",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    ends = {0, len(widths) - 1}  # names stand left, figures right

    def aligned(line: list[str]) -> str:
        cells = (t.ljust(w) if i in ends else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(lines[0]), aligned(["─" * width for width in widths]), *map(aligned, lines[1:])])


def sentence(advice: Advice, budget: Budget) -> str:
    """The advice in a line, with what to write into the configuration."""
    trial = advice.trial
    if trial.kind is None:
        raise ValueError("the floor is no index; advise among those that were built")
    at = f"at {trial.dimension} dimensions"
    if not advice.missed:
        return f"Take {named(trial.kind)} {at}: kind: {json.dumps(configured(trial.kind))}"
    forms = {
        "memory": (f"{trial.memory / 1e6:,.1f} MB", f"{(budget.memory or 0) / 1e6:,.1f} MB"),
        "p99": (f"{trial.p99 * 1e6:,.0f} µs", f"{(budget.p99 or 0) * 1e6:,.0f} µs"),
        "build": (f"{trial.build:,.1f} s", f"{budget.build or 0:,.1f} s"),
        "recall": (f"{trial.recall:.4f}", f"{budget.recall or 0:.4f}"),
    }
    apart = {name: f"{by:.1%}" if by < 1 else f"a factor of {by + 1:.1f}" for name, by in advice.missed.items()}
    misses = "; ".join(f"{name} by {by} ({forms[name][0]}, wanted {forms[name][1]})" for name, by in apart.items())
    return f"None meets the budget. Nearest is {named(trial.kind)} {at}, which misses {misses}."


def named(kind: Kind) -> str:
    """A kind and what of it is not as usual, as a person would say it."""
    values = [f"{name} {value:.4g}" for name, value in _unusual(kind).items()]
    return " ".join([type(kind).__name__, *values])


def configured(kind: Kind) -> dict[str, Any]:
    """A kind as a configuration names it."""
    said: dict[str, Any] = {"class_path": f"{type(kind).__module__}.{type(kind).__name__}"}
    return said | ({"init_args": _unusual(kind)} if _unusual(kind) else {})


def _unusual(kind: Kind) -> dict[str, Any]:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {field.name: value for field in fields if (value := getattr(kind, field.name)) != field.default}


def _figures(bundle: Bundle, trials: list[Trial], budget: Budget, advice: Advice) -> dict[str, Any]:
    def figures(trial: Trial) -> dict[str, Any]:
        values = {field.name: getattr(trial, field.name) for field in dataclasses.fields(trial)}
        kind = None if trial.kind is None else configured(trial.kind)
        return values | {"kind": kind, "missed": trial.missed(budget)}

    return {
        "bundle": bundle.id,
        "items": len(bundle.item_ids),
        "budget": dataclasses.asdict(budget),
        "trials": [figures(trial) for trial in trials],
        "advice": figures(advice.trial),
    }
