"""A worker that stood still for longer than its lease, while another finished its job, then changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.types import JobState
from tests.faults.processes import alive, log_of, trainer_of, worker
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.workshop import Workshop, a_job

pytestmark = [
    pytest.mark.faults,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainer's process in /proc"),
]

LEASE_S = 1.0


async def test_woken_zombie_changes_nothing(tmp_path):
    """It kills its trainer and says that it lost the lease; job, events, version and alias stay as they were."""
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url), SystemClock(), lease_s=LEASE_S)
    workshop = Workshop.open(tmp_path, lease_s=LEASE_S, queue=queue)
    options = {"lease_s": LEASE_S, "behaviour": "restless_once"}
    try:
        await queue.submit(a_job(on_success={"alias": "prod"}))
        async with worker(tmp_path, server.url, "zombie", **options) as zombie:
            events = queue.events("job")
            async with asyncio.timeout(WAIT_S):
                async for event in events:
                    if event.kind == "checkpoint":
                        break
            trainer = trainer_of(zombie.pid)
            assert trainer is not None
            os.kill(zombie.pid, signal.SIGSTOP)
            async with worker(tmp_path, server.url, "successor", **options):
                await workshop.history()
            job, told = await queue.get("job"), await workshop.history()
            assert (job.state, job.attempt, job.worker) == (JobState.SUCCEEDED, 2, "successor")
            assert alive(trainer)

            os.kill(zombie.pid, signal.SIGCONT)
            await wait_until(lambda: not alive(trainer))
            log = log_of(tmp_path, "zombie")
            await wait_until(lambda: "attempt 1 lost its lease, nothing is changed" in log.read_text())
            await wait_until(lambda: not list((tmp_path / "work").glob("job*")))
            assert await queue.get("job") == job
            assert await workshop.history() == told
            (version,) = workshop.store.versions("toy")
            assert workshop.store.state("toy").aliases == {"prod": version.version}
            assert version.manifest["lineage"]["attempts"] == 2
            await wait_until(lambda: _idle(queue, "zombie"))
    finally:
        await queue.close()
        await server.stop()
        workshop.close()


async def _idle(queue: RedisJobQueue, worker_id: str) -> bool:
    return [found.job for found in await queue.workers() if found.id == worker_id] == [None]
