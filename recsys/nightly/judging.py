"""The gates step: everything a night measured, brought before the gates, and the verdict written."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import recsys
from recsys.artifacts import verify, writing
from recsys.bundle import Bundle
from recsys.evaluate.ranking import Result
from recsys.index.engine import faiss
from recsys.nightly import late, measures, verdict
from recsys.nightly.exposure import exposure
from recsys.nightly.gates import Gates, Outcome
from recsys.nightly.late import Sealed
from recsys.nightly.measured import CANDIDATE, LIVE
from recsys.nightly.rules import rules
from recsys.nightly.verdict import Verdict

_KIND, _VERSION = "verdict", 1
JSON, PAGE = "verdict.json", "verdict.html"


@dataclass(frozen=True)
class Evidence:
    """What the late gates ask, and the page shows besides.

    Attributes:
        outcomes: of the gates.
        exposure: what a promotion would change for users; empty where nothing is live.
    """

    outcomes: list[Outcome]
    exposure: dict[str, Any]


def weigh(
    gates: Gates, candidate: Path, live: Bundle | None, results: dict[str, Result], asked_from: int | None
) -> Evidence:
    """Brings a sealed candidate before the late gates.

    Args:
        gates: the limits.
        candidate: the bundle.
        live: what it would take the place of.
        results: what was measured of both, and of the popularity baselines.
        asked_from: when the first held-out interaction happened, milliseconds since 1970.
    """
    began = time.monotonic()
    bundle = Bundle.open(candidate)
    seconds = time.monotonic() - began
    users = measures.sampled_users(bundle, live)
    before = None if live is None else measures.lists(live, users)
    after = measures.lists(bundle, users)
    outcomes = late.quality(
        gates,
        results[CANDIDATE],
        results.get(LIVE),
        {name: result for name, result in results.items() if name not in (CANDIDATE, LIVE)},
        incomparable=None if live is None else _incomparable(live, asked_from),
    )
    outcomes += late.sealed(
        gates,
        _sealed(bundle, seconds=seconds, violations=rules(bundle)),
        None if live is None else _sealed(live),
        None if before is None else measures.shift(before, after),
    )
    shown = {} if live is None or before is None else exposure(live, bundle, before, after)
    return Evidence(outcomes, shown)


def write(said: Verdict, out: Path) -> None:
    """Writes a verdict as JSON and as a page."""
    with writing(out, _KIND, _VERSION) as draft:
        (draft.path / JSON).write_text(verdict.to_json(said), encoding="utf-8")
        (draft.path / PAGE).write_text(verdict.page(said), encoding="utf-8")


def opened(path: Path) -> Verdict:
    """A verdict that was written, checked."""
    verify(path, _KIND, _VERSION)
    return Verdict.from_json((path / JSON).read_text(encoding="utf-8"))


def rejected_examples(dataset: Path) -> dict[str, str]:
    """For each reason, a row that was rejected for it."""
    table = pq.read_table(dataset / "rejected.parquet").to_pandas().drop_duplicates("reason")
    return {
        row.reason: f"{Path(row.source).name}, row {row.row}: {row.raw[:200]}" for row in table.itertuples(index=False)
    }


def versions() -> dict[str, str]:
    """Of this code and what its figures stand on."""
    libraries = ("torch", "pytorch-lightning", "numpy", "pyarrow")
    own = {"recsys": recsys.__version__, "Python": platform.python_version(), "FAISS": faiss.__version__}
    return own | {name: importlib.metadata.version(name) for name in libraries}


def _sealed(bundle: Bundle, *, seconds: float | None = None, violations: list[str] | None = None) -> Sealed:
    return Sealed(
        size=sum(said["bytes"] for said in bundle.manifest.files.values()),
        recall=bundle.manifest.content["index"]["recall@10"],
        seconds=seconds,
        violations=violations,
    )


def _incomparable(live: Bundle, asked_from: int | None) -> str | None:
    until = live.manifest.content.get("trained_until")
    if until is None or asked_from is None or until < asked_from:
        return None
    return (
        "the live bundle was trained on interactions as new as those that are asked, so it knows answers; let "
        "data.split hold out newer ones, or wait for them"
    )
