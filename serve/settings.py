"""What an operator chooses: which registry, how large a request may be, how many answer at once."""

from __future__ import annotations

from pydantic import Field

from .schemas import Limits


class Settings(Limits):
    """The settings of the application; an unknown name is an error that names the nearest one."""

    registry: str = Field(min_length=1, description="the registry, a folder or address, whose live bundle is served")
    replicas: int = Field(1, ge=1, description="processes that answer, each with the whole bundle")
    timeout_s: float = Field(10.0, gt=0, le=600, description="how long a request may take, its wait included")
    max_waiting: int = Field(128, ge=1, description="slow requests a replica holds before it turns others away")
