"""Traces: one span a request, in its caller's trace, and stages in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs the extra recsys[otel]")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve.tracing import Tracing, open_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROUTE = "/v1/users/{user_id}/recommendations"
ENDED: dict[str, Any] = {"route": ROUTE, "status": 200, "request_id": "r1"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    made = Tracing(exporter)
    yield made
    made.close()


def finished(tracing: Tracing, exporter: InMemorySpanExporter) -> dict[str, Any]:
    """Every finished span by its name."""
    tracing.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_its_stages(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    span = tracing.begin("GET", [(b"host", b"x")])
    stages = [("tower", 0.002), ("search", 0.0005)]
    tracing.end(span, **ENDED, strategy="personalised", bundle="b1", stages=stages, degraded=("fewer",))
    spans = finished(tracing, exporter)
    request, tower, search = spans[f"GET {ROUTE}"], spans["tower"], spans["search"]
    assert request.kind.name == "SERVER"
    assert request.parent is None
    assert dict(request.attributes) == {
        "http.request.method": "GET",
        "http.route": ROUTE,
        "http.response.status_code": 200,
        "recsys.request_id": "r1",
        "recsys.strategy": "personalised",
        "recsys.bundle": "b1",
        "recsys.degraded": ("fewer",),
    }
    assert request.status.status_code.name == "UNSET"
    assert request.resource.attributes["service.name"] == "recsys"
    assert tower.parent.span_id == search.parent.span_id == request.context.span_id
    assert (tower.end_time - tower.start_time, search.end_time - search.start_time) == (2_000_000, 500_000)
    assert (tower.end_time, search.end_time) == (search.start_time, request.end_time)


def test_it_is_part_of_its_callers_trace(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    span = tracing.begin("GET", [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"a=1")])
    tracing.end(span, **ENDED, stages=[("search", 0.1)])
    for span in finished(tracing, exporter).values():
        assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{exporter.get_finished_spans()[-1].parent.span_id:016x}" == PARENT


def test_a_caller_that_does_not_sample_gets_no_spans(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    span = tracing.begin("GET", [(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
    tracing.end(span, **ENDED, stages=[("search", 0.1)])
    assert finished(tracing, exporter) == {}


@pytest.mark.parametrize("said", [b"", b"00-zz-1-01", b"\xff" * 55, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"])
def test_a_wrong_traceparent_begins_a_trace(tracing: Tracing, exporter: InMemorySpanExporter, said: bytes) -> None:
    tracing.end(tracing.begin("GET", [(b"traceparent", said)]), **ENDED)
    assert finished(tracing, exporter)[f"GET {ROUTE}"].parent is None


@pytest.mark.parametrize(("status", "said"), [(200, "UNSET"), (404, "UNSET"), (500, "ERROR"), (503, "ERROR")])
def test_what_failed_is_marked(tracing: Tracing, exporter: InMemorySpanExporter, status: int, said: str) -> None:
    tracing.end(tracing.begin("GET", []), **ENDED | {"status": status})
    (span,) = finished(tracing, exporter).values()
    assert span.status.status_code.name == said


def test_requests_at_once_do_not_mix(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    first, second = tracing.begin("GET", []), tracing.begin("POST", [])
    tracing.end(first, **ENDED, stages=[("search", 0.1)])
    tracing.end(second, **ENDED, stages=[("tower", 0.1)])
    spans = finished(tracing, exporter)
    assert spans["search"].parent.span_id == spans[f"GET {ROUTE}"].context.span_id
    assert spans["tower"].parent.span_id == spans[f"POST {ROUTE}"].context.span_id
    assert len({span.context.trace_id for span in spans.values()}) == 2


def test_off_it_is_nothing_and_imports_nothing() -> None:
    program = (
        "import sys, serve.tracing as t; assert t.open_tracing(False) is None; print('opentelemetry' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(RuntimeError, match=r"pip install 'recsys\[otel\]'"):
        open_tracing(True)


def test_it_is_sent_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra recsys[otel]")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    made = open_tracing(True)
    assert made._provider.resource.attributes["service.name"] == "shop"
    processor: Any
    (processor,) = made._provider._active_span_processor._span_processors
    assert processor.span_exporter._endpoint == "http://127.0.0.1:9/v1/traces"
    made.close()
