"""Spans as OpenTelemetry's own exporter gets them, samplers as its SDK has them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.adapters.otel_tracer import OtelTracer
from service.core.errors import InvalidRequest
from service.core.tracing import Span, TraceContext
from tests.service.waiting import WAIT_S

PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True, "rojo=1")
UNSAMPLED = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", False)
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "1"}


class Held(SpanExporter):
    """An exporter that hangs until `gate` is set, and then says `result`."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.gate, self.called = threading.Event(), threading.Event()
        self.result = result
        self.taken: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        assert self.gate.wait(WAIT_S)
        self.taken += spans
        return self.result

    def shutdown(self) -> None:
        pass


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps what it gets."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[OtelTracer]:
    """A tracer that records everything that its callers do not forbid."""
    made = OtelTracer("1.2", None, QUICK, exporter)
    yield made
    made.close(WAIT_S)


def span(context: TraceContext, name: str = "work", **more: object) -> Span:
    """A span of one second."""
    return Span(name, context, None, 1_000_000_000, 2_000_000_000, **more)  # type: ignore[arg-type]


def test_span_is_exported_as_it_was(tracer, exporter):
    """Ids, parent, state, times, kind, attributes, links and status arrive."""
    context = tracer.begin(PARENT)
    tracer.record(
        [
            Span("POST /x", context, PARENT, 10, 20, "server", {"axon.batch.rows": 3}, True, "Overloaded", [UNSAMPLED]),
            Span("queue", tracer.child(context), context, 11, 12),
        ]
    )
    tracer.close(WAIT_S)
    server, queue = exporter.get_finished_spans()
    assert f"{server.context.trace_id:032x}" == PARENT.trace_id == f"{queue.context.trace_id:032x}"
    assert f"{server.parent.span_id:016x}" == PARENT.span_id
    assert (server.parent.is_remote, queue.parent.is_remote) == (True, False)
    assert queue.parent.span_id == server.context.span_id
    assert server.context.trace_state.get("rojo") == "1"
    assert (server.start_time, server.end_time, server.kind) == (10, 20, SpanKind.SERVER)
    assert dict(server.attributes) == {"axon.batch.rows": 3}
    assert (server.status.status_code, server.status.description) == (StatusCode.ERROR, "Overloaded")
    assert [f"{link.context.span_id:016x}" for link in server.links] == [UNSAMPLED.span_id]
    assert server.resource.attributes["service.name"] == "axon"
    assert server.resource.attributes["service.version"] == "1.2"


def test_service_name_is_the_environments(monkeypatch, exporter):
    """OTEL_SERVICE_NAME says whose spans they are."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pricing")
    tracer = OtelTracer("1", None, QUICK, exporter)
    tracer.record([span(tracer.begin(None))])
    tracer.close(WAIT_S)
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "pricing"


def test_caller_decides_what_is_sampled(tracer):
    """A caller's sampled flag holds either way; whoever brings none is recorded."""
    assert tracer.begin(PARENT).sampled
    assert not tracer.begin(UNSAMPLED).sampled
    assert tracer.begin(None).sampled


def test_ratio_holds_for_those_that_bring_no_decision(exporter):
    """A quarter of new traces, and all that their callers sampled."""
    tracer = OtelTracer("1", 0.25, QUICK, exporter)
    share = sum(tracer.begin(None).sampled for _ in range(4000)) / 4000
    assert 0.2 < share < 0.3  # six standard deviations
    assert tracer.begin(PARENT).sampled
    tracer.close(WAIT_S)


def test_sampler_of_the_environment_holds_without_a_ratio(monkeypatch, exporter):
    """OTEL_TRACES_SAMPLER is OpenTelemetry's own: here one that ignores callers."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer = OtelTracer("1", None, QUICK, exporter)
    assert not tracer.begin(PARENT).sampled
    tracer.close(WAIT_S)


def test_collector_that_hangs_costs_spans_and_no_time():
    """While the exporter hangs, spans wait up to the bound; those beyond it are dropped and counted."""
    exporter = Held()
    tracer = OtelTracer("1", None, QUICK | {"OTEL_BSP_MAX_QUEUE_SIZE": "10"}, exporter)
    context = tracer.begin(None)
    tracer.record([span(context)])
    assert exporter.called.wait(WAIT_S)
    tracer.record([span(context)] * 8)
    tracer.record([span(context)] * 3)  # eight of ten places are taken: all three or none
    assert tracer.counts()["dropped"] == 3
    exporter.gate.set()
    tracer.close(WAIT_S)
    assert tracer.counts() == {"exported": 9, "failed": 0, "dropped": 3}


def test_collector_that_is_away_is_logged_once(caplog):
    """Every lost span is counted, and one line says so however many there are."""
    exporter = Held(SpanExportResult.FAILURE)
    exporter.gate.set()
    tracer = OtelTracer("1", None, QUICK | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}, exporter)
    tracer.record([span(tracer.begin(None))] * 20)
    tracer.close(WAIT_S)
    assert tracer.counts() == {"exported": 0, "failed": 20, "dropped": 0}
    assert len([record for record in caplog.records if record.name == "service.adapters.otel_tracer"]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "many"), ("OTEL_BSP_SCHEDULE_DELAY", "0"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_wrong_variables_are_refused_by_name(name, value):
    """What cannot be done is said at the start."""
    with pytest.raises(InvalidRequest, match=name):
        OtelTracer("1", None, {name: value})
