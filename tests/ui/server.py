"""The service in a process of its own, without Ray: what is served is the same, and it can be stopped and come back."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

PATIENCE_S = 60


class Server:
    """A replica behind uvicorn on one port of this machine.

    Args:
        **settings: as `serve.settings.Settings` has them.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port = int(bound.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, on the same port as before, and waits until it answers."""
        import json

        command = [sys.executable, "-m", "tests.ui.server", str(self.port), json.dumps(self._settings)]
        self._process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/readyz", timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"the server does not answer: {error}") from error
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)
            self._process = None


async def serve(port: int, settings: dict[str, Any]) -> None:
    """Runs a replica until it is told to stop."""
    import torch
    import uvicorn

    from serve.replica import Replica
    from serve.settings import Settings

    torch.set_num_threads(1)
    replica = Replica(Settings(**settings))
    await replica.start()
    config = uvicorn.Config(replica.application(), port=port, log_level="warning", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve()
    await replica.close()


if __name__ == "__main__":
    import json

    asyncio.run(serve(int(sys.argv[1]), json.loads(sys.argv[2])))
