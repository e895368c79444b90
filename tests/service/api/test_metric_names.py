"""All native metrics together: Prometheus's rules for names, units and labels, and bounds on how many series there are.

The rules are those of https://prometheus.io/docs/practices/naming/ and of `promtool check metrics`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from service.adapters.memory_jobs import MemoryJobQueue
from service.api.admission import Admission
from service.api.job_metrics import JobCollector
from service.api.loop_lag import LoopLag
from service.api.metrics import InferenceCollector
from service.api.observation import Observer
from service.api.server_metrics import ServerCollector
from service.core.errors import NotReady
from service.core.inference import InferenceService
from service.core.types import JobCounts, JobState, WorkerInfo
from tests.service.adapters.job_queues import a_job
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec
from tests.service.fake_tracer import FakeTracer
from tests.service.waiting import FakeClock

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/observability.md").read_text()
BASE_UNITS = {"seconds", "bytes", "ratio", "info"}
NOT_BASE = re.compile(r"_(ms|us|ns|milliseconds|microseconds|minutes|hours|days|kb|mb|kilobytes|percent)(_|$)")
LABELS = {"model", "version", "outcome", "stage", "part", "state", "tag", "what", "server_version"}
"""Every label there is; a new one must be bounded by what the operator runs, not by what clients send."""


async def no_replicas() -> list[object]:
    """Nobody tells of itself."""
    return []


class Away(MemoryJobQueue):
    """A queue whose server is away."""

    async def workers(self) -> list[WorkerInfo]:
        raise NotReady("queue: it is away")


async def collect(queue: MemoryJobQueue | None = None) -> list[Metric]:
    """Every native family of a server that has answered a request."""
    served = serve(HeldModel(spec(max_batch_size=4)))
    inference = InferenceService(FakeRegistry(served), "axon", "1", RealClock())
    observer = Observer(RealClock(), tracer=FakeTracer(), access_log=False)
    admission = Admission(max_connections=10, max_bodies_bytes=1000)
    jobs = JobCollector(queue or MemoryJobQueue(FakeClock()), no_replicas)
    await jobs.refresh()
    registry = CollectorRegistry()
    registry.register(InferenceCollector(lambda: [served]))
    registry.register(ServerCollector(inference, LoopLag(), observer, admission))
    registry.register(jobs)
    found = list(registry.collect())
    assert await served.close(WAIT_S)
    return found


@pytest.fixture
async def families() -> list[Metric]:
    """All of them."""
    return await collect()


def labels_of(family: Metric) -> Iterator[str]:
    """Names of the labels of all its samples."""
    for sample in family.samples:
        yield from (name for name in sample.labels if name != "le")


async def test_names_keep_prometheus_rules(families):
    """One prefix, base units at the end, counters told by `_total` alone, and no type in a name."""
    for family in families:
        name = family.name
        assert re.fullmatch(r"axon_[a-z0-9]+(_[a-z0-9]+)*", name), name
        assert not NOT_BASE.search(name), f"{name}: seconds and bytes only"
        assert not re.search(r"_(total|count|sum|bucket|gauge|counter|histogram)$", name), f"{name}: a suffix of types"
        assert re.search(r"_(seconds|bytes)(_|$)", name) is None or name.rsplit("_", 1)[1] in BASE_UNITS, name
        assert not re.search("(duration|lag|wait)$", name), f"{name}: its unit is missing"
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name


async def test_each_family_says_what_it_is(families):
    """A help text, not the name again, and one type per name."""
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert len(family.documentation) > 10, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name


async def test_each_family_is_documented(families):
    """docs/observability.md has its name, type, labels and meaning as the code has them, and no others."""
    rows = []
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in dict.fromkeys(labels_of(family)))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |".replace(" |  | ", " | | "))
    for row in rows:
        assert row in DOCUMENT
    assert DOCUMENT.count("\n| `axon_") == len(rows)


async def test_labels_are_few_and_known(families):
    """No label that clients could fill with whatever they like."""
    for family in families:
        assert set(labels_of(family)) <= LABELS, family.name


async def test_histograms_end_at_infinity_and_only_rise():
    """Buckets are cumulative and the last holds everything."""
    for family in await collect():
        if family.type == "histogram" and family.samples:
            buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            assert [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")][-1] == "+Inf"


async def test_tags_are_those_of_workers():
    """Clients may give their jobs any tag; series are made only of those that a worker takes."""
    queue = MemoryJobQueue(FakeClock())
    for number in range(30):
        await queue.submit(a_job(f"job-{number}", tag=f"tag-{number}"))
    await queue.beat(WorkerInfo("w", ("tag-3",), "cpu", "idle", None, "1", 0.0, slots=2), ttl_s=60)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in await collect(queue)
        for sample in family.samples
    }
    assert {name[1]: value for name, value in found.items() if name[0] == "axon_waiting_jobs"} == {"tag-3": 1}
    assert found["axon_jobs", "queued"] == 30
    assert (found["axon_workers", "idle"], found["axon_workers", "training"]) == (1, 0)
    assert found["axon_worker_slots",] == 2


async def test_a_queue_that_is_away_leaves_its_metrics_out():
    """The rest is told all the same, at once."""
    names = {family.name for family in await collect(Away(FakeClock()))}
    assert "axon_jobs" not in names
    assert {"axon_ready", "axon_queue_depth", "axon_replicas"} <= names


async def test_a_queue_that_hangs_costs_a_scrape_two_seconds_at_most(monkeypatch):
    """Nobody waits for ever, and those that scrape meanwhile share the look."""
    monkeypatch.setattr("service.api.job_metrics._WITHIN_S", 0.01)
    asked = 0

    class Hanging(MemoryJobQueue):
        async def workers(self) -> list[WorkerInfo]:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            raise AssertionError

        async def counts(self, tags: object) -> JobCounts:
            return JobCounts(dict.fromkeys(JobState, 0), 0, {})

    jobs = JobCollector(Hanging(FakeClock()), no_replicas)
    await asyncio.wait_for(asyncio.gather(jobs.refresh(), jobs.refresh()), WAIT_S)
    assert asked == 1
    assert [family.name for family in jobs.collect()] == ["axon_replicas"]


def test_lag_is_counted_by_how_late_the_loop_was():
    """A look that came 30 ms late is in every bucket from 50 ms on."""
    lag = LoopLag()
    lag.record(0.0)
    lag.record(0.03)
    buckets = dict(lag.buckets())
    assert (buckets["0.001"], buckets["0.025"], buckets["0.05"], buckets["+Inf"]) == (1, 1, 2, 2)
    assert lag.total_s == 0.03


async def test_lag_is_looked_at_until_the_end():
    """It runs beside the server and stops with it."""
    lag, stop = LoopLag(), asyncio.Event()
    running = asyncio.create_task(lag.run(stop))
    while not dict(lag.buckets())["+Inf"]:
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(running, WAIT_S)
