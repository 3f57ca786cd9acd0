"""Kills and vanishings under load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.loads import Load, Noted
from benchmarks.serving_faults.service import PATIENCE_S, Redis, until
from benchmarks.serving_faults.setting import STEADY_S, Setting, running
from recsys.online.store import open_online

RATE = 300.0  # requests a second around a fault, if none is said: as fast as refused would say nothing of how many fail
AWAY_S = 5.0  # how long Redis and the registry are gone


def faults(setting: Setting) -> list[dict[str, Any]]:
    """Kills and vanishings under load: what failed, for how long, and whether it healed by itself."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as up:
        redis = Redis(setting.folder / "redis") if shutil.which("redis-server") else None
        if redis is not None:
            up.callback(redis.kill)
        online = redis.address if redis else ""
        service = up.enter_context(running(setting, max(2, setting.said.replicas), online))
        replicas = service.num_replicas

        def whole() -> bool:
            return len(service.replicas()) == replicas and len(service.proxies()) >= 1

        def kill(pids: list[int]) -> None:
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(1)  # until Ray's own view has changed

        def registry_gone() -> None:
            away = setting.registry.with_name("away")
            setting.registry.rename(away)
            time.sleep(AWAY_S)
            away.rename(setting.registry)

        def redis_gone() -> None:
            if redis is not None:
                redis.kill()
                time.sleep(AWAY_S)
                redis.start()

        todo: list[tuple[str, Callable[[], None]]] = [
            ("kill -9 of a replica", lambda: kill(service.replicas())),
            ("kill -9 of HAProxy", lambda: kill(service.proxies())),
            (f"registry gone for {AWAY_S:g} s", registry_gone),
        ]
        if redis is not None:
            todo.append((f"kill -9 of Redis, back after {AWAY_S:g} s", redis_gone))
        for number, (name, strike) in enumerate(todo):
            events = 0.05 if redis else 0.0
            plan = setting.plan(service.port, rate=setting.said.rate or RATE, events=events, name=f"fault{number}")
            with Load(plan) as load:
                load.wait_for(1, PATIENCE_S)
                time.sleep(STEADY_S)
                struck = time.time()
                strike()
                healed = until(whole, PATIENCE_S)
                back = time.time() - struck
                time.sleep(STEADY_S)
                noted = load.stop()
            rows.append({"what": name, **_failed_of(noted, struck), "all there again s": back if healed else None})
            rows[-1] |= {"events accepted": len(noted.accepted), "lost": _lost(online, noted) if redis else None}
            print(f"{name}: {dict(noted.faults)}", file=sys.stderr)
        (other,) = {*setting.bundles} - {service.bundle()}
        setting.promote(other)
        followed = service.answers_from(other)
        rows.append(dict.fromkeys(rows[0]) | {"what": f"after all that a swap is followed: {followed}"})
    return rows


def _failed_of(noted: Noted, struck: float) -> dict[str, Any]:
    """What failed after a moment, and for how long."""
    failures = noted.at[noted.failed & (noted.at >= struck)]
    good = np.sort(noted.at[~noted.failed & (noted.at >= struck)])
    gaps = np.diff(np.concatenate([[struck], good])) if len(good) else np.array([np.inf])
    return {
        "requests": len(noted.at),
        "failed before": int((noted.failed & (noted.at < struck)).sum()),
        "failed": len(failures),
        "first after s": float(failures.min() - struck) if len(failures) else None,
        "last after s": float(failures.max() - struck) if len(failures) else None,
        "longest without an answer s": float(gaps.max()),
        "no answer": int((noted.status == 0).sum()),
        "5xx": int((noted.status >= 500).sum()),
    }


def _lost(online: str, noted: Noted) -> int:
    """How many events were accepted and are not in the store."""

    async def kept() -> set[str]:
        store = open_online(online)
        try:
            users = {user for user, _ in noted.accepted}
            return {event.event_id for user in users for event in await store.events_of(user, 1_000_000)}
        finally:
            await store.close()

    found = asyncio.run(kept())
    return sum(event_id not in found for _, event_id in noted.accepted)
