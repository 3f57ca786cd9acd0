"""What an operator chooses: which registry and store, how large a request may be, how many answer at once."""

from __future__ import annotations

from pydantic import Field

from .schemas import Closed, Limits, RulesBody


class Shed(Closed):
    """When a replica begins to do with less. A step is taken as soon as one of its two limits is passed."""

    fewer: float = Field(0.25, ge=0, le=1, description="share of max_waiting: fewer candidates for rules")
    cheaper: float = Field(0.5, ge=0, le=1, description="share of max_waiting: search on the shortest trained prefix")
    popular: float = Field(0.75, ge=0, le=1, description="share of max_waiting: popular items for everybody")
    delay_s: float = Field(
        0.5,
        gt=0,
        description="how late the event loop may be before requests are turned away; the same shares of it count",
    )


class Log(Closed):
    """What is logged of requests; errors always are."""

    access_sample: float = Field(0.0, ge=0, le=1, description="share of requests that get a line of their own")


class Settings(Limits):
    """The settings of the application; an unknown name is an error that names the nearest one."""

    registry: str = Field(min_length=1, description="the registry, a folder or address, whose live bundle is served")
    online: str = Field("", description="where events and live items are kept: a folder, or redis://…; empty: nowhere")
    keys: str = Field("", description="the file of API keys; empty: whoever reaches the service may ask")
    replicas: int = Field(1, ge=1, description="processes that answer, each with the whole bundle")
    threads: int = Field(1, ge=1, description="slow requests that a replica works on at a time")
    watch_s: float = Field(1.0, ge=0.05, description="how often a replica looks which bundle is live")
    timeout_s: float = Field(10.0, gt=0, le=600, description="how long a request may take, its wait included")
    max_waiting: int = Field(128, ge=1, description="slow requests a replica holds before it turns others away")
    rules: RulesBody = Field(RulesBody(), description="how lists are put together where a request says nothing")
    shed: Shed = Field(Shed(), description="when a replica begins to do with less")
    log: Log = Field(Log(), description="what is logged of requests")
    page: bool = Field(True, description="whether the page to try it is at /")
    tracing: bool = Field(False, description="whether spans go to the address of OTEL_EXPORTER_OTLP_ENDPOINT")
