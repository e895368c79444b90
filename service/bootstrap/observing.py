"""What the API is seen by: metrics always, traces and the access log when the settings want them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from service.adapters.nvml import Nvml
from service.core.errors import InvalidRequest
from service.core.ports import Clock, JobQueue
from service.core.tracing import Tracer
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import APIRouter

    from service.api.admission import Admission
    from service.api.loop_lag import LoopLag
    from service.api.observation import Observer
    from service.core.inference import InferenceService
    from service.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Measured:
    """The route of all metrics, and what counts for them while the server runs."""

    routes: APIRouter
    lag: LoopLag


def build_metrics(
    inference: InferenceService,
    registry: Registry,
    queue: JobQueue,
    observer: Observer | None,
    admission: Admission | None = None,
) -> Measured:
    """Everything that `/metrics` tells of."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    from service.api.job_metrics import JobCollector
    from service.api.loop_lag import LoopLag
    from service.api.metrics import InferenceCollector, router
    from service.api.nv_metrics import NvMetrics
    from service.api.server_metrics import ServerCollector

    lag, jobs = LoopLag(), JobCollector(queue, registry.replicas)
    collectors = CollectorRegistry()
    for each in (InferenceCollector(inference.served), ServerCollector(inference, lag, observer, admission), jobs):
        collectors.register(each)
    ProcessCollector(registry=collectors)
    nvml = Nvml()
    compatible = NvMetrics(inference.served, nvml.read if nvml.available else None)
    return Measured(router(collectors, compatible, jobs.refresh), lag)


def build_tracer(settings: Settings) -> Tracer | None:
    """The tracer; None without `AXON_TRACING`, or with OpenTelemetry's own `OTEL_SDK_DISABLED`.

    Raises `InvalidRequest` where the extra `otel` is not installed.
    """
    if not settings.tracing or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from service.adapters.otel_tracer import OtelTracer
    except ModuleNotFoundError as error:
        message = f"AXON_TRACING: expected the extra otel, pip install 'axon-server[otel]'; got no module {error.name}"
        raise InvalidRequest(message) from error
    return OtelTracer(version("axon-server"), settings.trace_ratio, os.environ)


def build_observer(settings: Settings, clock: Clock) -> Observer | None:
    """Who is told of each request; None when nobody wants to know."""
    tracer = build_tracer(settings)
    if tracer is None and not settings.access_log:
        return None
    from service.api.observation import Observer

    return Observer(clock, tracer=tracer, access_log=settings.access_log)
