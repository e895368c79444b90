"""Prometheus metrics: read from what the served versions count anyway, when somebody asks.

Nothing is observed per request, so metrics cost a request nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, final

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.api.nv_metrics import NvMetrics
from service.api.rest.errors import install
from service.core.serving import ServedModel
from service.core.statistics import LATENCY_BOUNDS_S, Statistics

OUTCOMES: Final = ("invalid", "overloaded", "deadline", "cancelled", "execution", "not_ready", "other")
"""Why requests got no answer; all are there from the start, so that the first of a kind is a rise."""

_LABELS = ("model", "version")

_Value = Callable[[ServedModel], float]
_COUNTERS: Final[Sequence[tuple[str, str, _Value]]] = (
    ("axon_inference_rows", "Rows computed, padding not counted", lambda model: model.statistics.inferences),
    ("axon_padding_rows", "Rows added to fill buckets", lambda model: model.statistics.padding),
    ("axon_batches", "Batches computed", lambda model: model.statistics.executions),
)
_GAUGES: Final[Sequence[tuple[str, str, _Value]]] = (
    ("axon_queue_depth", "Requests waiting for a batch", lambda model: model.queue_depth),
    ("axon_queue_max_depth", "Requests that may wait", lambda model: model.config.max_queue_requests),
    ("axon_queue_bytes", "Bytes of inputs waiting for a batch", lambda model: model.queue_bytes),
    ("axon_queue_max_bytes", "Bytes of inputs that may wait", lambda model: model.config.max_queue_bytes),
    ("axon_queue_wait_seconds", "How long what waits now will take, as measured", lambda model: model.queue_wait_s),
    ("axon_overloaded", "1 while requests are refused for the time they would wait", lambda model: model.overloaded),
    ("axon_in_flight", "Requests waiting or being computed", lambda model: model.in_flight),
    ("axon_computing_seconds", "For how long the oldest running batch has been", lambda model: model.computing_s),
    ("axon_parameter_bytes", "Bytes of parameters", lambda model: model.spec.parameter_bytes),
    ("axon_batch_buffer_bytes", "Bytes of memory that batches are put together in", lambda model: model.buffer_bytes),
    ("axon_model_load_seconds", "How long loading took", lambda model: model.load_s),
)
_Counts = Callable[[Statistics], Sequence[int]]
_TotalNs = Callable[[Statistics], int]
_HISTOGRAMS: Final[Sequence[tuple[str, str, _Counts, _TotalNs]]] = (
    (
        "axon_inference_duration_seconds",
        "From a request's arrival to its answer",
        lambda statistics: statistics.latency,
        lambda statistics: statistics.success.ns,
    ),
    (
        "axon_inference_queue_duration_seconds",
        "How long answered requests waited for a batch",
        lambda statistics: statistics.waiting,
        lambda statistics: statistics.queue.ns,
    ),
    (
        "axon_batch_compute_duration_seconds",
        "How long batches were computed",
        lambda statistics: statistics.computing,
        lambda statistics: sum(batch.compute.ns for batch in statistics.batches.values()),
    ),
)


@final
class InferenceCollector(Collector):
    """Counters, gauges and histograms of every served version; `served` lists the ready ones."""

    def __init__(self, served: Callable[[], Iterable[ServedModel]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """The families as they stand now."""
        served = list(self._served())
        yield _requests(served)
        yield _stages(served)
        for name, text, value in _COUNTERS:
            yield _counter(name, text, served, value)
        for name, text, value in _GAUGES:
            yield _gauge(name, text, served, value)
        for name, text, counts, total_ns in _HISTOGRAMS:
            yield _histogram(name, text, served, counts, total_ns)
        yield _batch_size(served)


@final
class _Collected(Collector):
    """Families as they were."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def router(
    registry: CollectorRegistry, compatible: NvMetrics, refresh: Callable[[], Awaitable[None]] | None = None
) -> APIRouter:
    """`GET /metrics`: everything in `registry` as Prometheus text, and the same under the names of `compatible`.

    `refresh` is awaited first, for collectors that must ask others.
    """
    routes = APIRouter(tags=["operation"])

    @routes.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        if refresh is not None:
            await refresh()
        families = []
        # On the event loop, to which the counters belong; but requests take their turns: hundreds of models take long.
        for family in registry.collect():
            families.append(family)
            await asyncio.sleep(0)
        collected = CollectorRegistry()
        collected.register(_Collected(families))
        text = await asyncio.to_thread(generate_latest, collected) + (await compatible.text()).encode()
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    return routes


def alone(routes: APIRouter) -> FastAPI:
    """An application of nothing but the metrics, for a port of their own."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(routes)
    install(app)
    return app


def _labels(model: ServedModel) -> list[str]:
    return [model.name, str(model.version)]


def _counter(name: str, text: str, served: Sequence[ServedModel], value: _Value) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=_LABELS)
    for model in served:
        family.add_metric(_labels(model), value(model))
    return family


def _gauge(name: str, text: str, served: Sequence[ServedModel], value: _Value) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=_LABELS)
    for model in served:
        family.add_metric(_labels(model), value(model))
    return family


def _requests(served: Sequence[ServedModel]) -> CounterMetricFamily:
    family = CounterMetricFamily("axon_inference_requests", "Requests by outcome", labels=(*_LABELS, "outcome"))
    for model in served:
        family.add_metric([*_labels(model), "success"], model.statistics.success.count)
        for reason, count in (dict.fromkeys(OUTCOMES, 0) | model.statistics.failures).items():
            family.add_metric([*_labels(model), reason], count)
    return family


def _stages(served: Sequence[ServedModel]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "axon_inference_stage_seconds", "Time that answered requests spent in each stage", labels=(*_LABELS, "stage")
    )
    for model in served:
        for name, duration in model.statistics.stages():
            family.add_metric([*_labels(model), name], duration.ns * 1e-9)
    return family


def _histogram(
    name: str,
    text: str,
    served: Sequence[ServedModel],
    counts: _Counts,
    total_ns: _TotalNs,
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=_LABELS)
    bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
    for model in served:
        buckets = list(zip(bounds, accumulate(counts(model.statistics)), strict=True))
        family.add_metric(_labels(model), buckets, total_ns(model.statistics) * 1e-9)
    return family


def _batch_size(served: Sequence[ServedModel]) -> HistogramMetricFamily:
    """Rows per batch, with the model's buckets as bounds: what lies between two bounds was padded to the upper."""
    family = HistogramMetricFamily("axon_batch_rows", "Rows per batch, padding not counted", labels=_LABELS)
    for model in served:
        sizes = {rows: batch.compute.count for rows, batch in model.statistics.batches.items()}
        buckets = [
            (str(float(bound)), sum(count for rows, count in sizes.items() if rows <= bound))
            for bound in sorted(model.spec.buckets)
        ]
        buckets.append(("+Inf", sum(sizes.values())))
        family.add_metric(_labels(model), buckets, sum(rows * count for rows, count in sizes.items()))
    return family
