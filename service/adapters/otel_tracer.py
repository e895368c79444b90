"""Spans to an OpenTelemetry collector; the one file that imports `opentelemetry` (extra `otel`), and only when wanted.

Where, how and what share is said by OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, `..._HEADERS`,
`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_...`.

Spans are made when a request is over, with the ids and times that it has had since it came. The SDK's own `Tracer`
cannot do that, so spans go to the exporter as the SDK's read-only ones. Its batch processor drops without a count.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from service.core.errors import InvalidRequest
from service.core.tracing import Span, TraceContext

_KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER, "internal": SpanKind.INTERNAL}
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OURS = "http/protobuf"

_log = logging.getLogger(__name__)


@final
class OtelTracer:
    """The `Tracer` that exports through `exporter` (None: OTLP over HTTP, as the environment says).

    `ratio` is the share of requests that are recorded when their caller has not decided; None leaves everything to
    `OTEL_TRACES_SAMPLER`. Spans wait in a bounded queue for a thread; when it is full, new ones are dropped.
    """

    def __init__(
        self,
        service_version: str,
        ratio: float | None,
        environ: Mapping[str, str],
        exporter: SpanExporter | None = None,
    ) -> None:
        self._sampler = _sampler(ratio)
        self._resource = _resource(service_version)
        self._scope = InstrumentationScope("axon", service_version)
        self._exporter = _otlp(environ) if exporter is None else exporter
        self._delay_s = _whole(environ, "OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        self._room = _whole(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        self._most = min(_whole(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), self._room)
        self._ids = RandomIdGenerator()
        self._waiting: deque[Span] = deque()
        self._counts = {"exported": 0, "failed": 0, "dropped": 0}
        self._failing = False
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """The context of a new span, and whether the sampler wants it."""
        trace_id = self._ids.generate_trace_id() if parent is None else int(parent.trace_id, 16)
        around = None if parent is None else set_span_in_context(NonRecordingSpan(_foreign(parent)))
        decided = self._sampler.should_sample(around, trace_id, "", SpanKind.SERVER)
        state = "" if parent is None else parent.state
        span_id = self._ids.generate_span_id()
        return TraceContext(
            f"{trace_id:032x}", f"{span_id:016x}", decided.decision is Decision.RECORD_AND_SAMPLE, state
        )

    def child(self, parent: TraceContext) -> TraceContext:
        """The context of a further span in the same trace."""
        return TraceContext(parent.trace_id, f"{self._ids.generate_span_id():016x}", parent.sampled, parent.state)

    def record(self, spans: Sequence[Span]) -> None:
        """Queue `spans` for export, all or none of them."""
        if self._closing or len(self._waiting) + len(spans) > self._room:
            self._counts["dropped"] += len(spans)
            return
        self._waiting.extend(spans)
        if len(self._waiting) >= self._most:
            self._wake.set()

    def counts(self) -> Mapping[str, int]:
        """Spans by what became of them."""
        return dict(self._counts)

    def close(self, timeout_s: float) -> None:
        """Export what waits; what is left after `timeout_s` is lost."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._delay_s)
            self._wake.clear()
            last = self._closing
            while self._waiting:
                self._export([self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))])
            if last:
                return

    def _export(self, spans: Sequence[Span]) -> None:
        try:
            done = self._exporter.export([self._readable(span) for span in spans]) is SpanExportResult.SUCCESS
        except Exception:
            _log.debug("spans: the exporter failed", exc_info=True)
            done = False
        self._counts["exported" if done else "failed"] += len(spans)
        if done and self._failing:
            _log.info("spans: the collector takes them again; %d were lost", self._counts["failed"])
        elif not done and not self._failing:
            _log.warning("spans: the collector does not take them; counted in axon_trace_spans_total until it does")
        self._failing = not done

    def _readable(self, span: Span) -> ReadableSpan:
        status = Status(StatusCode.ERROR, span.error or None) if span.failed else Status(StatusCode.UNSET)
        parent = span.parent
        return ReadableSpan(
            span.name,
            _own(span.context),
            # The server's own parent came from outside, the stages' did not.
            None if parent is None else _foreign(parent) if span.kind != "internal" else _own(parent),
            self._resource,
            span.attributes,
            links=[Link(_own(each)) for each in span.links],
            kind=_KINDS[span.kind],
            status=status,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(context: TraceContext, *, remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), remote, flags, state)


def _own(context: TraceContext) -> SpanContext:
    return _context(context, remote=False)


def _foreign(context: TraceContext) -> SpanContext:
    return _context(context, remote=True)


def _sampler(ratio: float | None) -> Sampler:
    if ratio is not None:
        return ParentBased(TraceIdRatioBased(ratio))
    return TracerProvider(shutdown_on_exit=False).sampler  # which reads OTEL_TRACES_SAMPLER


def _resource(service_version: str) -> Resource:
    given = Resource.create({SERVICE_VERSION: service_version})
    if str(given.attributes[SERVICE_NAME]).startswith("unknown_service"):
        given = given.merge(Resource({SERVICE_NAME: "axon"}))
    return given


def _otlp(environ: Mapping[str, str]) -> SpanExporter:
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _OURS)
    if protocol != _OURS:
        raise InvalidRequest(f"{_PROTOCOLS[1]}: expected {_OURS}, which is what this server speaks, got {protocol!r}")
    # It logs every try of every batch.
    for noisy in ("opentelemetry.exporter", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return OTLPSpanExporter()


def _whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "") or str(default)
    if not text.isdecimal() or not int(text):
        raise InvalidRequest(f"{name}: expected a positive integer, got {text[:64]!r}")
    return int(text)
