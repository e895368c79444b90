"""Metrics: what Prometheus reads is what the served versions counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.api import metrics
from service.api.nv_metrics import NvMetrics
from service.core.errors import InvalidRequest
from service.core.gpus import GpuReading
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
    app.include_router(metrics.router(registry, NvMetrics(lambda: [served])))
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


async def test_names_that_dashboards_know(tmp_path: Path) -> None:
    """Counters without a suffix, whole microseconds, bytes without exponents; what perf_analyzer matches."""
    (tmp_path / "meminfo").write_text("MemTotal:  131072000 kB\nMemFree: 1 kB\nMemAvailable:   31072000 kB\n")
    (tmp_path / "stat").write_text("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\n")
    served = serve(HeldModel(spec(max_batch_size=4)))
    gpu = GpuReading("GPU-1", 0.5, 123.456, None, 1e10, 150_754_820_096, 14_000_000_000)
    compatible = NvMetrics(lambda: [served], lambda: [gpu], proc=tmp_path)
    await served.infer({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(InvalidRequest):
        await served.infer({})
    (tmp_path / "stat").write_text("cpu  40 0 10 150 0 0 0 0 0 0\n")
    app = metrics.alone(metrics.router(CollectorRegistry(), compatible))
    reply = await call(app, "GET", "/metrics")
    assert reply is not None
    text = reply.body.decode()
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert families["nv_inference_request_success"] == "counter"
    assert families["nv_inference_first_response_histogram_ms"] == "histogram"
    labels = 'model="fake",version="1"'
    for line in (
        f"nv_inference_request_success{{{labels}}} 1",
        f"nv_inference_count{{{labels}}} 2",
        f"nv_inference_exec_count{{{labels}}} 1",
        f'nv_inference_request_failure{{{labels},reason="OTHER"}} 1',
        f'nv_inference_request_failure{{{labels},reason="REJECTED"}} 0',
        f"nv_inference_pending_request_count{{{labels}}} 0",
        f'nv_inference_first_response_histogram_ms_bucket{{{labels},le="+Inf"}} 1',
        f'nv_inference_first_response_histogram_ms_bucket{{{labels},le="30000"}} 1',
        "nv_cpu_memory_total_bytes 134217728000",
        "nv_cpu_memory_used_bytes 102400000000",
        "nv_cpu_utilization 0.300000",
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.500000',
        'nv_gpu_power_usage{gpu_uuid="GPU-1"} 123.456000',
        'nv_energy_consumption{gpu_uuid="GPU-1"} 10000000000.000000',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 150754820096',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 14000000000',
    ):
        assert line in text.splitlines()
    assert "nv_gpu_power_limit" not in text
    assert re.search(rf"nv_inference_queue_duration_us{{{labels}}} [0-9]+$", text, re.MULTILINE)
    assert (await call(app, "GET", "/other")).status == 404  # type: ignore[union-attr]
    assert await served.close(WAIT_S)


async def test_machine_without_proc_has_no_machine_metrics(tmp_path: Path) -> None:
    """Nothing is made up."""
    assert await NvMetrics(list, proc=tmp_path).text() == ""
    assert "nv_gpu" not in await NvMetrics(list, lambda: [GpuReading("GPU-1")], proc=tmp_path).text()
