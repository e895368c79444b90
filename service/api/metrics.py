"""Prometheus metrics: read from what the served versions count anyway, when somebody asks.

Nothing is observed per request, so metrics cost a request nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import final

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
from service.core.statistics import LATENCY_BOUNDS_S, Duration

_LABELS = ("model", "version")


@final
class InferenceCollector(Collector):
    """Counters, gauges and histograms of every served version; `served` lists the ready ones."""

    def __init__(self, served: Callable[[], Iterable[ServedModel]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """The families as they stand now."""
        served = list(self._served())
        yield _requests(served)
        yield _counter("axon_inference_rows", "Rows computed", served, lambda model: model.statistics.inferences)
        yield _counter("axon_padding_rows", "Rows added to fill buckets", served, lambda m: m.statistics.padding)
        yield _counter("axon_batches", "Batches computed", served, lambda model: model.statistics.executions)
        yield _stages(served)
        yield _latency(served)
        yield _batch_size(served)
        yield _gauge("axon_queue_depth", "Requests waiting for a batch", served, lambda model: model.queue_depth)
        yield _gauge("axon_in_flight", "Requests waiting or being computed", served, lambda model: model.in_flight)
        yield _gauge("axon_parameter_bytes", "Bytes of parameters", served, lambda m: m.spec.parameter_bytes)


def router(registry: CollectorRegistry, compatible: NvMetrics) -> APIRouter:
    """`GET /metrics`: everything in `registry` as Prometheus text, and the same under the names of `compatible`."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        # On the event loop on purpose: the counters belong to it.
        text = generate_latest(registry) + (await compatible.text()).encode()
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


def _counter(
    name: str, text: str, served: Sequence[ServedModel], value: Callable[[ServedModel], float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=_LABELS)
    for model in served:
        family.add_metric(_labels(model), value(model))
    return family


def _gauge(
    name: str, text: str, served: Sequence[ServedModel], value: Callable[[ServedModel], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=_LABELS)
    for model in served:
        family.add_metric(_labels(model), value(model))
    return family


def _requests(served: Sequence[ServedModel]) -> CounterMetricFamily:
    family = CounterMetricFamily("axon_inference_requests", "Requests by outcome", labels=(*_LABELS, "outcome"))
    for model in served:
        family.add_metric([*_labels(model), "success"], model.statistics.success.count)
        for reason, count in sorted(model.statistics.failures.items()):
            family.add_metric([*_labels(model), reason], count)
    return family


def _stages(served: Sequence[ServedModel]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "axon_inference_stage_seconds", "Time that answered requests spent in each stage", labels=(*_LABELS, "stage")
    )
    for model in served:
        stages: tuple[tuple[str, Duration], ...] = (
            ("queue", model.statistics.queue),
            ("assemble", model.statistics.assemble),
            ("compute", model.statistics.compute),
            ("split", model.statistics.split),
        )
        for name, duration in stages:
            family.add_metric([*_labels(model), name], duration.ns * 1e-9)
    return family


def _latency(served: Sequence[ServedModel]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "axon_inference_duration_seconds", "From a request's arrival to its answer", labels=_LABELS
    )
    bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
    for model in served:
        statistics = model.statistics
        buckets = list(zip(bounds, accumulate(statistics.latency), strict=True))
        family.add_metric(_labels(model), buckets, statistics.success.ns * 1e-9)
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
