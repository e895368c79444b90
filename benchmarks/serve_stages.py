"""Where the microseconds of our requests go, from the server's own `/metrics`: differences of two readings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

REQUESTS, ROWS, BATCHES = "axon_inference_requests_total", "axon_inference_rows_total", "axon_batches_total"
IN_FLIGHT = "axon_in_flight"
STAGE, TOTAL = "axon_inference_stage_seconds_total", "axon_inference_duration_seconds_sum"


@dataclass
class Reading:
    """Sums of one model: answered requests, rows, batches, seconds from arrival to answer, seconds by stage."""

    requests: float = 0
    rows: float = 0
    batches: float = 0
    total_s: float = 0
    stages_s: Counter[str] = field(default_factory=Counter)

    def add_difference(self, before: Reading, after: Reading) -> None:
        """Add what happened between two readings."""
        self.requests += after.requests - before.requests
        self.rows += after.rows - before.rows
        self.batches += after.batches - before.batches
        self.total_s += after.total_s - before.total_s
        for stage in after.stages_s:
            self.stages_s[stage] += after.stages_s[stage] - before.stages_s[stage]


def read(base: str, model: str) -> Reading:
    """The sums so far."""
    import httpx

    return parse(httpx.get(f"{base}/metrics", timeout=30).raise_for_status().text, model)


def read_in_flight(base: str, model: str) -> float:
    """How many requests wait or are being computed."""
    import httpx

    text = httpx.get(f"{base}/metrics", timeout=5).raise_for_status().text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == IN_FLIGHT and sample.labels.get("model") == model
    )


def parse(text: str, model: str) -> Reading:
    """The sums in a Prometheus text, over all versions of the model."""
    reading = Reading()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("model") != model:
                continue
            if sample.name == REQUESTS and labels["outcome"] == "success":
                reading.requests += sample.value
            elif sample.name == ROWS:
                reading.rows += sample.value
            elif sample.name == BATCHES:
                reading.batches += sample.value
            elif sample.name == TOTAL:
                reading.total_s += sample.value
            elif sample.name == STAGE:
                reading.stages_s[labels["stage"]] += sample.value
    return reading
