"""What is told of requests and jobs besides their metrics: traces and the access log, when the settings want them."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from service.core.errors import InvalidRequest
from service.core.ports import Clock
from service.core.tracing import Tracer
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.observation import Observer


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
