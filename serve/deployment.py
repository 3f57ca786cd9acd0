"""What Ray Serve runs in each replica: it opens the promoted bundle and lets the application answer; nothing more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from recsys.recommender import Recommender


def open_recommender(registry: str) -> Recommender:
    """A warm Recommender around the promoted bundle of a registry."""
    from recsys.recommender import Recommender
    from recsys.registry import Registry

    recommender = Recommender(Registry(registry).open_current())
    recommender.warm()
    return recommender


class Recommendations:
    """One replica: a whole bundle in memory, behind one event loop.

    Args:
        settings: what the operator chose.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __serve_build_asgi_app__(self) -> Any:
        """Opens the bundle, off the event loop, before the replica takes its first request."""
        # Imported here, as in `open_recommender`: torch comes along, and only replicas need it, not who starts them.
        from .asgi import Application
        from .service import Service

        said = self._settings
        recommender = await asyncio.to_thread(open_recommender, said.registry)
        service = Service(said, recommender, max_waiting=said.max_waiting, timeout_s=said.timeout_s)
        return Application(service, sends_request_id=False)
