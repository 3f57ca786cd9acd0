"""OpenTelemetry traces, for those who ask for them: a span a request, in its caller's trace, with a span a stage.

Where spans go, and how many, is said by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER. Nothing here is imported, and a request costs nothing, where tracing is off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

PASSED_ON = (b"traceparent", b"tracestate")
MOST_STATE = 512  # characters of a caller's tracestate that are read


class Tracing:
    """Makes spans and has them sent from a thread of its own.

    Args:
        exporter: where finished spans go; OTLP over HTTP by default.

    Raises:
        RuntimeError: OpenTelemetry is not installed.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise RuntimeError(
                f"tracing needs OpenTelemetry ({error}); install the extra: pip install 'recsys[otel]', or leave it off"
            ) from None
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        # Not the process's own provider: Ray and others may have theirs.
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "recsys"}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("recsys.serve")

    def begin(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Span:
        """A request has come.

        Args:
            method: GET, POST, …
            headers: as ASGI has them; a W3C traceparent puts the span into its caller's trace.
        """
        carrier = {}
        for name, value in headers:
            if name in PASSED_ON and len(value) <= MOST_STATE:
                carrier[name.decode()] = value.decode("latin-1")
        context = self._propagator.extract(carrier) if carrier else None
        return self._tracer.start_span(
            method,
            context=context if context is not None else self._trace.set_span_in_context(self._trace.INVALID_SPAN),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method},
        )

    def end(
        self,
        span: Span,
        *,
        route: str,
        status: int,
        request_id: str,
        strategy: str | None = None,
        bundle: str | None = None,
        stages: Sequence[tuple[str, float]] = (),
        degraded: Sequence[str] = (),
    ) -> None:
        """It was answered.

        Args:
            span: what `begin` gave.
            route: the route's template, never the path.
            status: of the answer.
            request_id: as its header says.
            strategy: of the answer, if it has one.
            bundle: what gave it.
            stages: name and seconds of each part in the order they were done; shown back to back up to the end, since
                only their lengths are known.
            degraded: what was left out.
        """
        if span.is_recording():
            said: dict[str, Any] = {
                "http.route": route,
                "http.response.status_code": status,
                "recsys.request_id": request_id,
                "recsys.strategy": strategy,
                "recsys.bundle": bundle,
                "recsys.degraded": list(degraded) or None,
            }
            span.update_name(f"{span.name} {route}")  # type: ignore[attr-defined]
            span.set_attributes({name: value for name, value in said.items() if value is not None})
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            now = time.time_ns()
            self._stages(span, stages, now)
            span.end(now)
        else:
            span.end()

    def close(self) -> None:
        """Sends what is finished."""
        self._provider.shutdown()

    def _stages(self, span: Span, stages: Sequence[tuple[str, float]], now: int) -> None:
        parent = self._trace.set_span_in_context(span)
        begin = now - sum(round(seconds * 1e9) for _, seconds in stages)
        for name, seconds in stages:
            end = begin + round(seconds * 1e9)
            self._tracer.start_span(name, context=parent, start_time=begin).end(end)
            begin = end


def open_tracing(wanted: bool) -> Tracing | None:
    """Tracing, or None where it is off.

    Raises:
        RuntimeError: it is wanted, and OpenTelemetry is not installed.
    """
    return Tracing() if wanted else None
