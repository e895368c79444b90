"""What the benchmark of serving reads from `/metrics`."""

from __future__ import annotations

from benchmarks.serve_stages import Reading, parse

TEXT = """\
# TYPE axon_inference_requests_total counter
axon_inference_requests_total{model="m",version="1",outcome="success"} 10.0
axon_inference_requests_total{model="m",version="2",outcome="success"} 2.0
axon_inference_requests_total{model="m",version="1",outcome="overloaded"} 5.0
axon_inference_requests_total{model="other",version="1",outcome="success"} 99.0
# TYPE axon_inference_rows_total counter
axon_inference_rows_total{model="m",version="1"} 20.0
# TYPE axon_batches_total counter
axon_batches_total{model="m",version="1"} 4.0
# TYPE axon_inference_stage_seconds_total counter
axon_inference_stage_seconds_total{model="m",version="1",stage="queue"} 0.5
axon_inference_stage_seconds_total{model="m",version="2",stage="queue"} 0.25
axon_inference_stage_seconds_total{model="m",version="1",stage="compute"} 1.5
# TYPE axon_inference_duration_seconds histogram
axon_inference_duration_seconds_bucket{model="m",version="1",le="+Inf"} 10.0
axon_inference_duration_seconds_count{model="m",version="1"} 10.0
axon_inference_duration_seconds_sum{model="m",version="1"} 2.5
"""


def test_a_reading_sums_the_versions_of_one_model() -> None:
    """Refused requests and other models do not count."""
    reading = parse(TEXT, "m")
    assert (reading.requests, reading.rows, reading.batches, reading.total_s) == (12, 20, 4, 2.5)
    assert reading.stages_s == {"queue": 0.75, "compute": 1.5}


def test_differences_add_up() -> None:
    """Two rounds of the same are twice one."""
    before, after, sums = Reading(requests=2), parse(TEXT, "m"), Reading()
    sums.add_difference(before, after)
    sums.add_difference(before, after)
    assert (sums.requests, sums.rows, sums.stages_s["queue"]) == (20, 40, 1.5)
