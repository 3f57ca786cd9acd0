"""Promotions and rollbacks under load."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.loads import Load, Noted
from benchmarks.serving_faults.service import PATIENCE_S
from benchmarks.serving_faults.setting import STEADY_S, Setting, running

SETTLED_S = 0.5  # after the last answer of the old bundle, what a swap cost may still show


def swaps(setting: Setting) -> list[dict[str, Any]]:
    """Promotions and rollbacks under load, by what went on when each answer came."""
    with running(setting, setting.said.replicas) as service:
        live = service.bundle()
        moments: list[tuple[float, float]] = []
        followed = 0
        with Load(setting.plan(service.port, expected=setting.expected)) as load:
            load.wait_for(1, PATIENCE_S)
            time.sleep(STEADY_S)
            for _ in range(setting.said.swaps):
                (live,) = {*setting.bundles} - {live}
                moments.append(setting.promote(live))
                if not service.answers_from(live):
                    break
                followed += 1
                time.sleep(setting.said.pause)
            noted = load.stop()
    when = _phases(noted, moments)
    title = f"{followed} of {setting.said.swaps} swaps followed"
    rows = []
    for phase in ("quiet", "promoter checks", "swap"):
        chosen = when == phase
        rows.append({"what": f"{title}: {phase}", **_said_of(noted, chosen)})
    quiet, swap = rows[0]["p99 ms"], rows[2]["p99 ms"]
    for row in rows:
        row["mixed"], row["degraded"] = noted.mixed, noted.degraded
        row["p99 × quiet"] = row["p99 ms"] / quiet if quiet and swap else None
    return rows


def _phases(noted: Noted, moments: list[tuple[float, float]]) -> np.ndarray:
    """What went on when each answer came: quiet, promoter checks, or swap."""
    phases = np.full(len(noted.at), "quiet", dtype=object)
    names = np.array([*noted.bundles, ""])[noted.bundle]
    for number, (began, replaced) in enumerate(moments):
        until = moments[number + 1][0] if number + 1 < len(moments) else np.inf
        after = (noted.at >= replaced) & (noted.at < until) & (noted.bundle >= 0)
        # The bundle that most of these answers are from is the new one; the swap is over when the last old one came.
        found, counts = np.unique(names[after], return_counts=True)
        old = noted.at[after & (names != found[counts.argmax()])] if len(found) else np.array([])
        over = (old.max() if len(old) else replaced) + SETTLED_S
        phases[(noted.at >= began) & (noted.at < replaced)] = "promoter checks"
        phases[(noted.at >= replaced) & (noted.at < over)] = "swap"
    return phases


def _said_of(noted: Noted, chosen: np.ndarray) -> dict[str, Any]:
    milliseconds = noted.seconds[chosen & ~noted.failed] * 1000
    row: dict[str, Any] = {"requests": int(chosen.sum()), "failed": int((chosen & noted.failed).sum())}
    for percentile in (50, 99, 99.9):
        row[f"p{percentile:g} ms"] = float(np.percentile(milliseconds, percentile)) if len(milliseconds) else None
    return row
