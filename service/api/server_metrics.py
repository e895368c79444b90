"""Metrics of the process itself: whether it is ready, its event loop, its connections, what tracing lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.api.admission import Admission
from service.api.loop_lag import LoopLag
from service.api.observation import Observer
from service.core.inference import InferenceService


@final
class ServerCollector(Collector):
    """What `inference` and the event loop tell; where they are, what `observer` lost, and `admission`'s bounds."""

    def __init__(
        self,
        inference: InferenceService,
        lag: LoopLag,
        observer: Observer | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._inference = inference
        self._admission = admission
        self._lag = lag
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        """The families as they stand now."""
        yield from self._health()
        yield from self._models()
        if self._admission is not None:
            yield from _connections(self._admission)
        lag = HistogramMetricFamily("axon_event_loop_lag_seconds", "How late the event loop is, looked at 4 times a s")
        lag.add_metric([], self._lag.buckets(), self._lag.total_s)
        yield lag
        if self._observer is not None:
            yield from _observed(self._observer)

    def _health(self) -> Iterator[Metric]:
        metadata = self._inference.server_metadata()
        about = GaugeMetricFamily("axon_build_info", "Which server this is; always 1", labels=("server_version",))
        about.add_metric([metadata.version], 1)
        yield about
        yield GaugeMetricFamily("axon_ready", "1 while the server takes traffic", value=self._inference.ready())
        parts = GaugeMetricFamily("axon_part_up", "1 while a thing that the server stands on is well", labels=("part",))
        for part in self._inference.parts():
            parts.add_metric([part.part], not part.reason)
        yield parts

    def _models(self) -> Iterator[Metric]:
        loaded = len(self._inference.served())
        yield GaugeMetricFamily("axon_loaded_versions", "Versions that answer requests", value=loaded)
        failed = len(self._inference.degraded())
        yield GaugeMetricFamily("axon_degraded_models", "Models of which something wanted failed", value=failed)


def _connections(use: Admission) -> Iterator[Metric]:
    gauges = (
        ("axon_connections", "Connections of both wires", use.connections),
        ("axon_max_connections", "Connections that may be", use.max_connections),
        ("axon_request_body_bytes", "Bytes of request bodies held until their answers", use.held_bytes),
        ("axon_max_request_body_bytes", "Bytes of request bodies that may be held", use.max_bodies_bytes),
    )
    for name, text, value in gauges:
        yield GaugeMetricFamily(name, text, value=value)
    refused = CounterMetricFamily("axon_refused", "Connections and bodies refused for lack of room", labels=("what",))
    refused.add_metric(["connection"], use.refused_connections)
    refused.add_metric(["body"], use.refused_bodies)
    yield refused


def _observed(observer: Observer) -> Iterator[Metric]:
    spans = CounterMetricFamily("axon_trace_spans", "Spans by what became of them", labels=("outcome",))
    for outcome, count in observer.span_counts().items():
        spans.add_metric([outcome], count)
    yield spans
    dropped = "Requests that came too fast for spans and access log"
    yield CounterMetricFamily("axon_unobserved_requests", dropped, value=observer.dropped)
