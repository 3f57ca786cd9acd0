"""What Ray Serve runs in each replica: the parts of the service put together; nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .replica import Replica


class Recommendations:
    """One replica: a whole bundle in memory, behind one event loop.

    Args:
        settings: what the operator chose.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._replica: Replica | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        """Opens the bundle, off the event loop, before the replica takes its first request."""
        # Imported here: torch comes along, and only replicas need it, not who starts them.
        from .replica import Replica

        self._replica = Replica(self._settings)
        await self._replica.start()
        return self._replica.application(sends_request_id=False)

    async def __del__(self) -> None:
        if self._replica is not None:
            await self._replica.close()
