"""Metrics: what Prometheus reads is what the served versions counted."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.api import metrics
from service.core.errors import InvalidRequest
from tests.service.api.asgi import call
from tests.service.core.served import WAIT_S, HeldModel, serve, spec


async def scrape(app: FastAPI) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels (model and version left out)."""
    reply = await call(app, "GET", "/metrics")
    assert reply is not None
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (
            sample.name,
            tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("model", "version"))),
        ): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


async def test_metrics_follow_the_counters() -> None:
    """Two requests of three rows together, one refused."""
    served = serve(HeldModel(spec(max_batch_size=4)))
    registry = CollectorRegistry()
    registry.register(metrics.InferenceCollector(lambda: [served]))
    app = FastAPI()
    app.include_router(metrics.router(registry))
    await served.infer({"x": np.zeros((2, 3), np.float32)})
    await served.infer({"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InvalidRequest):
        await served.infer({})
    samples = await scrape(app)
    assert samples["axon_inference_requests_total", (("outcome", "success"),)] == 2
    assert samples["axon_inference_requests_total", (("outcome", "invalid"),)] == 1
    assert samples["axon_inference_rows_total", ()] == 3
    assert samples["axon_batches_total", ()] == 2
    assert samples["axon_queue_depth", ()] == 0
    assert samples["axon_batch_rows_bucket", (("le", "1.0"),)] == 1
    assert samples["axon_batch_rows_bucket", (("le", "2.0"),)] == 2
    assert samples["axon_batch_rows_sum", ()] == 3
    assert samples["axon_inference_duration_seconds_count", ()] == 2
    assert samples["axon_inference_duration_seconds_bucket", (("le", "30.0"),)] == 2
    stages = [samples["axon_inference_stage_seconds_total", (("stage", name),)] for name in ("queue", "compute")]
    assert all(seconds > 0 for seconds in stages)
    assert await served.close(WAIT_S)


async def test_registries_do_not_share_metrics() -> None:
    """Nothing is global: two registries, two collectors, no clash."""
    for _ in range(2):
        CollectorRegistry().register(metrics.InferenceCollector(list))
