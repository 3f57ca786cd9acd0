"""A replica behind a real port, without Ray: what it serves is the same, and it can be stopped and come back."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import uvicorn

from serve.replica import Replica
from serve.settings import Settings

PATIENCE_S = 60


class Server:
    """A replica on a thread of its own, on one port of this machine, from when it is made.

    Args:
        **settings: as `serve.settings.Settings` has them.
    """

    def __init__(self, **settings: Any) -> None:
        # A busy machine is not what is tested here.
        self._settings = Settings(**{"shed": {"delay_s": 600}} | settings)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port = int(bound.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts it, on the same port as before, and waits until it answers."""
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE_S), "the replica did not start"

    def stop(self) -> None:
        """Ends it; whoever is connected is cut off."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the replica does not end"

    async def _serve(self) -> None:
        replica = Replica(self._settings)
        await replica.start()
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", self.port))
            bound.listen()
            self._server = uvicorn.Server(
                uvicorn.Config(replica.application(), log_config=None, access_log=False, timeout_graceful_shutdown=1)
            )
            self._started.set()
            await self._server.serve(sockets=[bound])
        await replica.close()
        gc.unfreeze()  # what a replica freezes is the whole process's
