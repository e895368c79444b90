"""SIGKILL of everything in turn while a job trains: it succeeds once, with the parameters of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.types import Job, JobEvent, JobState
from tests.faults.processes import alive, trainer_of, worker
from tests.faults.references import parameters, train_undisturbed
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.workshop import a_job, add_dataset

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainer's process in /proc"),
]

LEASE_S = 2.0
# 60 checkpoints, each of which takes a good part of a tenth of a second: time enough for three kills, each after one.
LONG = {"epochs": 10, "batch_size": 1, "checkpoint_every_steps": 16, "metrics": []}


async def checkpoint_of(events: AsyncIterator[JobEvent], attempt: int) -> None:
    """Wait until this attempt has committed a checkpoint."""
    async with asyncio.timeout(WAIT_S):
        async for event in events:
            assert event.data.get("state") not in ("succeeded", "failed"), "the job ended before it could be disturbed"
            if event.kind == "checkpoint" and event.data["attempt"] == attempt:
                return


async def disturb(root: Path, server: EmbeddedRedis, queue: RedisJobQueue) -> Job:
    """Kill the trainer, its supervisor, then the queue's server, each after a checkpoint; returns the ended job."""
    events = queue.events("job")
    async with worker(root, server.url, "w1", lease_s=LEASE_S) as first:
        await checkpoint_of(events, attempt=1)
        trainer = trainer_of(first.pid)
        assert trainer is not None
        os.kill(trainer, signal.SIGKILL)

        await checkpoint_of(events, attempt=2)
        trainer = trainer_of(first.pid)
        assert trainer is not None
        first.kill()
        await wait_until(lambda: not alive(trainer))

    async with worker(root, server.url, "w2", lease_s=LEASE_S):
        await checkpoint_of(events, attempt=3)
        os.kill(server.pid, signal.SIGKILL)
        await wait_until(lambda: server.restarts == 1)
        async with asyncio.timeout(WAIT_S):
            async for _ in events:
                pass
        return await queue.get("job")


async def test_killed_trainer_supervisor_and_server_cost_nothing(tmp_path):
    """One job survives all three kills: it succeeds once, as one version, bit for bit as if nothing had happened."""
    clock = SystemClock()
    store, datasets = FileModelStore(tmp_path, clock), FileDatasetStore(tmp_path)
    dataset = add_dataset(datasets)
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url, retries=20), clock, lease_s=LEASE_S)
    try:
        await queue.submit(a_job(**LONG, on_success={"alias": "prod"}))
        reference = asyncio.create_task(asyncio.to_thread(train_undisturbed, dataset, tmp_path / "reference", LONG))
        job = await disturb(tmp_path, server, queue)
        assert (job.state, job.attempt, job.worker) == (JobState.SUCCEEDED, 3, "w2")
        (version,) = store.versions("toy")
        assert job.result is not None
        assert (job.result["model"], job.result["version"]) == ("toy", version.version)
        assert store.state("toy").aliases == {"prod": version.version}
        ends = [event.data["state"] async for event in queue.events("job") if event.kind == "state"]
        assert ends == ["queued", "running", "queued", "running", "queued", "running", "succeeded"]
        assert FileCheckpointStore(tmp_path).jobs() == []
        expected, found = parameters(await reference), parameters(version.path)
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    finally:
        await queue.close()
        await server.stop()
        store.close()
        datasets.close()
