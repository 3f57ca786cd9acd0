"""A long run with swaps and events: whether memory grows."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.loads import Load
from benchmarks.serving_faults.setting import Setting, running

SWAP_EVERY_S = 5.0
SAMPLE_EVERY_S = 0.25
STALLED = round(60 / SAMPLE_EVERY_S)  # samples without an answer, after which nothing more is waited for
WARM_SWAPS = 4  # the first make room for a second bundle, which is kept for the next ones
BLOCKS = 20  # memory is compared between as many stretches: neighbouring seconds are no two measurements


def soak(setting: Setting) -> list[dict[str, Any]]:
    """Many requests with swaps and events: what memory the replicas hold, in stretches after a warm-up."""
    online = str(setting.folder / "online")
    samples: list[tuple[int, int, dict[int, dict[str, float]]]] = []
    swapped = 0
    with running(setting, setting.said.replicas, online) as service:
        live = service.bundle()
        with Load(setting.plan(service.port, events=0.02, name="soak")) as load:
            due = time.monotonic() + SWAP_EVERY_S
            while load.count < setting.said.requests:
                samples.append((load.count, swapped, {pid: _memory_mb(pid) for pid in service.replicas()}))
                if time.monotonic() > due:
                    (live,) = {*setting.bundles} - {live}
                    setting.promote(live)
                    swapped += service.answers_from(live, 20)
                    due = time.monotonic() + SWAP_EVERY_S
                time.sleep(SAMPLE_EVERY_S)
                if len(samples) > STALLED and samples[-1][0] == samples[-STALLED][0]:
                    break  # nothing is answered any more: the table says so
            noted = load.stop()
    rows = []
    warm = [each for each in samples if each[0] > samples[-1][0] / 5 and each[1] >= WARM_SWAPS]
    for pid in sorted({pid for *_, found in samples for pid in found}):
        for kind in ("resident", "anonymous"):
            points = [(count, found[pid][kind]) for count, _, found in warm if pid in found]
            if len(points) >= 2 * BLOCKS:  # else it was there too briefly for a line
                row = {"what": f"replica {pid}, {kind}", "requests": len(noted.at), "failed": int(noted.failed.sum())}
                rows.append(row | {"swaps": swapped, "events": len(noted.accepted), **_slope(np.array(points))})
    if not rows:
        raise RuntimeError(f"the load ended too soon after {WARM_SWAPS} swaps for a line; ask for more --requests")
    return rows


def _slope(points: np.ndarray) -> dict[str, Any]:
    """Memory by requests, points float64 [n, 2] of requests and MB: a line through the means of stretches."""
    means = np.array([block.mean(axis=0) for block in np.array_split(points, BLOCKS)])
    line = stats.linregress(means[:, 0] / 1e5, means[:, 1])
    return {
        "start MB": float(means[0, 1]),
        "end MB": float(means[-1, 1]),
        "most MB": float(points[:, 1].max()),
        "MB a 100,000 requests": float(line.slope),
        "± 95 %": float(stats.t.ppf(0.975, BLOCKS - 2) * line.stderr),
    }


def _memory_mb(pid: int) -> dict[str, float]:
    """What a process holds: resident, with the pages of files that it maps, and anonymous, which are its alone."""
    with contextlib.suppress(OSError):
        said = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), flags=re.M))
        return {"resident": int(said["VmRSS"]) / 1024, "anonymous": int(said["RssAnon"]) / 1024}
    return {"resident": float("nan"), "anonymous": float("nan")}
