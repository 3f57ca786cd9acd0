"""One process of the service: the bundle, what happened since, keys and metrics put together; no Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from recsys.online.store import OnlineStore, OnlineStoreAway, OnlineStoreError, open_online
from recsys.recommender import Recommender
from recsys.rules import Rules

from .asgi import Application
from .follow import Follower
from .guard import Guard
from .keys import Keys
from .load import Load
from .observer import Observer
from .online import Online
from .opening import opener, settle
from .schemas import Limits
from .service import Service
from .settings import Settings
from .swap import Current, Watcher, on_loop

_TOLD_S = 1.0

log = logging.getLogger(__name__)


class Replica:
    """Everything that a process needs to answer, from `start` to `close`.

    Args:
        settings: what the operator chose.

    Raises:
        ArtifactError: the registry has no bundle that can be served.
        KeyFileError: the keys cannot be used.
        OnlineStoreError: the store cannot be used as it stands.
    """

    def __init__(self, settings: Settings) -> None:
        settle()
        self._settings = settings
        self._observer = Observer.of(settings)
        log.info("a replica starts over %s", settings.registry)
        self._keys = Keys(Path(settings.keys)) if settings.keys else None
        # Here and not where the settings are read: what it stands for may hold a password, and Ray shows settings.
        address = os.path.expandvars(settings.online)
        store = open_online(address) if address else None
        self._online = None if store is None else Online(store, observe=self._observer.stored)
        self.service = Service(
            # These alone: they are hashed, and settings may hold rules that cannot be.
            Limits(**settings.model_dump(include=set(Limits.model_fields))),
            online=self._online,
            rules=settings.rules.rules(Rules()),
            load=Load(settings.max_waiting, settings.shed),
            threads=settings.threads,
            timeout_s=settings.timeout_s,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._unchecked: OnlineStore | None = None
        self._follower: Follower | None = None
        self._watcher: Watcher | None = None

    async def start(self) -> None:
        """Opens the live bundle, with what is live beside it, and follows both from then on."""
        loop = asyncio.get_running_loop()
        current = Current(on_loop(loop, self._use))
        if self._online is not None:
            await self._check_store(self._online.store)
            self._follower = Follower(self._online.store, current)
            await self._follower.first()
            self._follower.start()
            self.service.caught_up = self._follower.caught_up
        self._watcher = Watcher(
            self._settings.registry,
            opened=opener(self._settings.registry),
            use=current.put,
            report=self._observer.swapped,
            interval_s=self._settings.watch_s,
        )
        self.service.standing = self._standing
        await asyncio.to_thread(self._watcher.first)
        await asyncio.sleep(0)  # so that what the thread handed over is in use
        self._watcher.start()
        self._tasks = [
            loop.create_task(self.service.load.watch(), name="watch-load"),
            loop.create_task(self._keep_telling(), name="tell-observer"),
        ]

    def application(self, *, sends_request_id: bool = True) -> Application:
        """The service over HTTP."""
        settings = self._settings
        guard = Guard(self._keys, settings, share=1 / settings.replicas)
        return Application(
            self.service,
            guard=guard,
            observer=self._observer,
            page=settings.page,
            sends_request_id=sends_request_id,
        )

    async def close(self) -> None:
        """Follows nothing any more, lets slow requests finish, and keeps what was counted."""
        for task in self._tasks:
            task.cancel()
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        if self._follower is not None:
            await self._follower.close()
        self.service.close()
        if self._online is not None:
            await self._online.store.close()
        await asyncio.to_thread(self._observer.close)

    async def _check_store(self, store: OnlineStore) -> None:
        """Refuses a store that would lose what it is given; one that is away is followed from when it is back."""
        try:
            await store.check()
        except OnlineStoreAway as error:
            log.error("a replica starts without its online store: %s", error)
            self._unchecked = store

    def _use(self, recommender: Recommender) -> None:
        before, self.service.recommender = self.service.recommender, recommender
        if before is None or before.bundle is not recommender.bundle:
            self._observer.uses(recommender.bundle)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_TOLD_S)
            if self._follower is not None and self.service.recommender is not None:
                live = self.service.recommender.live
                items = live.num_rows - len(live.bundle.item_ids)
                self._observer.follows(items, self._follower.standing.failing_since)
            if self._keys is not None:
                self._observer.keys(self._keys.problem)
            if self._unchecked is not None and self._follower is not None and not self._follower.standing.error:
                store, self._unchecked = self._unchecked, None
                try:
                    await self._check_store(store)
                except OnlineStoreError as error:  # too late to refuse it, but not to say so
                    log.error("the online store is not to be trusted: %s", error)

    def _standing(self) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if self._watcher is not None:
            said["registry"] = dataclasses.asdict(self._watcher.standing)
        if self._follower is not None:
            said["online"] = dataclasses.asdict(self._follower.standing)
        if self._keys is not None:
            said["keys"] = {"problem": self._keys.problem}
        return said
