"""A replica put together as Ray starts it, without Ray: what it needs to start, and what it can do without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from recsys.online.store import OnlineStoreError
from recsys.registry import Registry
from serve.replica import Replica
from serve.schemas import RulesBody
from serve.settings import Settings
from tests.online.server import Server
from tests.serve.asking import asked


def settings(toy_registry: Registry, online: str) -> Settings:
    return Settings(registry=str(toy_registry.path), online=online, watch_s=0.05)


def test_it_answers_and_says_how_it_stands(toy_registry: Registry, tmp_path: Path) -> None:
    async def run() -> None:
        replica = Replica(settings(toy_registry, str(tmp_path)))
        await replica.start()
        app = replica.application()
        event = {"event_id": "1", "user_id": "nobody", "item_id": "i4"}
        assert (await asked(app, "POST", "/v1/events", event)).json == {"accepted": 1, "duplicates": 0}
        assert (await asked(app, "GET", "/v1/users/nobody/recommendations")).json["strategy"] == "history"
        standing = (await asked(app, "GET", "/v1/bundle")).json["standing"]
        assert standing["registry"]["live"] == standing["registry"]["wanted"] == toy_registry.current
        assert standing["online"]["error"] is None
        counted = (await asked(app, "GET", "/metrics")).body.decode()
        assert 'recsys_events_total{outcome="accepted"} 1.0' in counted
        assert 'strategy="history"' in counted
        await replica.close()

    asyncio.run(run())


def test_it_starts_with_rules_of_its_own(toy_registry: Registry) -> None:
    async def run() -> None:
        chosen = Settings(registry=str(toy_registry.path), rules=RulesBody(caps={"parity": 1}), max_k=7)
        replica = Replica(chosen)
        await replica.start()
        app = replica.application()
        items = (await asked(app, "GET", "/v1/users/u3/recommendations?k=2&include_seen=true")).json["items"]
        assert {int(item["item_id"][1:]) % 2 for item in items} == {0, 1}
        assert (await asked(app, "GET", "/v1/users/u3/recommendations?k=8")).status == 422
        await replica.close()

    asyncio.run(run())


def test_the_page_is_there_unless_it_is_turned_off(toy_registry: Registry) -> None:
    async def run(page: bool) -> int:
        replica = Replica(Settings(registry=str(toy_registry.path), page=page))
        await replica.start()
        status = (await asked(replica.application(), "GET", "/")).status
        await replica.close()
        return status

    assert asyncio.run(run(True)) == 200
    assert asyncio.run(run(False)) == 404


def test_a_store_that_would_lose_events_is_refused(toy_registry: Registry, tmp_path: Path) -> None:
    server = Server(tmp_path)  # with Redis's own settings, which keep nothing on the disk

    async def run() -> None:
        replica = Replica(settings(toy_registry, server.address))
        try:
            with pytest.raises(OnlineStoreError, match="would lose accepted events"):
                await replica.start()
        finally:
            await replica.close()

    try:
        asyncio.run(run())
    finally:
        server.kill()


def test_a_store_that_is_away_holds_up_no_restart(toy_registry: Registry) -> None:
    async def run() -> None:
        replica = Replica(settings(toy_registry, "redis://127.0.0.1:1/0"))
        await replica.start()
        reply = await asked(replica.application(), "GET", "/v1/users/u3/recommendations")
        assert (reply.status, reply.json["degraded"]) == (200, ["events"])
        await replica.close()

    asyncio.run(run())
