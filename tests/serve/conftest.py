from __future__ import annotations

import pytest

from serve.asgi import Application
from serve.online import Online
from serve.schemas import Limits
from serve.service import Service
from tests.serve.stand_in import StandIn, StandInStore

LIMITS = Limits(max_k=20, max_history=5, max_exclude=3, max_body_bytes=2000)


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def service(stand_in: StandIn) -> Service:
    return Service(LIMITS, stand_in, online=Online(StandInStore()), timeout_s=0.3)  # type: ignore[arg-type]


@pytest.fixture
def app(service: Service) -> Application:
    return Application(service)
