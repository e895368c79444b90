"""SIGKILL of the worker that ends a sweep, at each step: another one chooses the same job and ends it once."""

from __future__ import annotations

import asyncio
import sys

import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.types import JobState
from tests.faults.processes import worker
from tests.service.waiting import WAIT_S
from tests.service.worker.test_sweep import a_sweep
from tests.service.worker.workshop import add_dataset

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG"),
]

LEASE_S = 2.0
SEEDS = [6, 2, 4]


@pytest.mark.parametrize("point", ["claimed", "publishing", "published"])
async def test_killed_end_of_a_sweep_is_made_once(tmp_path, point):
    """The first worker dies when it comes there for the fourth time: with the sweep's own job, after its three."""
    clock = SystemClock()
    store, datasets = FileModelStore(tmp_path, clock), FileDatasetStore(tmp_path)
    add_dataset(datasets)
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url, retries=20), clock, lease_s=LEASE_S)
    fault = {"AXON_FAULT_POINT": point, "AXON_FAULT_HIT": str(len(SEEDS) + 1)}
    try:
        await queue.submit(*a_sweep(SEEDS, on_success={"alias": "prod"}))
        async with worker(tmp_path, server.url, "w1", lease_s=LEASE_S, behaviour="measured", **fault) as first:
            async with asyncio.timeout(WAIT_S):
                await first.wait()
        assert first.returncode == -9
        before = await queue.get("s")
        assert (before.state, before.attempt) == (JobState.RUNNING, 1)
        async with worker(tmp_path, server.url, "w2", lease_s=LEASE_S, behaviour="measured"), asyncio.timeout(WAIT_S):
            events = [event async for event in queue.events("s")]
        job = await queue.get("s")
        assert (job.state, job.attempt, job.worker) == (JobState.SUCCEEDED, 2, "w2"), job.error
        assert job.result is not None
        assert (job.result["best"], job.result["version"], job.result["promoted"]) == ("s.1", 2, True)
        assert [stored.version for stored in store.versions("toy")] == [2]
        assert (dict(store.state("toy").aliases), store.state("toy").loaded) == ({"prod": 2}, {2})
        assert [event.data["child"] for event in events if event.kind == "child"] == ["s.0", "s.1", "s.2"]
        assert sum(event.data.get("state") == "succeeded" and event.kind == "state" for event in events) == 1
    finally:
        await queue.close()
        await server.stop()
        store.close()
        datasets.close()
