"""Chaos: sixty jobs while one process is killed every second and the queue's server twice; nothing is lost or left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.types import Job, JobState
from tests.faults.processes import alive, trainer_of, worker
from tests.service.waiting import wait_until
from tests.service.worker.workshop import Workshop, a_job

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

JOBS, WORKERS = 60, 4
LEASE_S = 3.0
KILL_EVERY_S = 1.0
SERVER_DEATHS = (8.0, 16.0)
WITHIN_S = 240.0
SEED = 20261
KEY_TABLE = Path(__file__).parents[2] / "docs" / "jobs.md"


@dataclass
class Chaos:
    """Four workers that are started again whenever they die, and what was done to them."""

    workshop: Workshop
    server: EmbeddedRedis
    pids: dict[str, int] = field(default_factory=dict)
    killed: list[tuple[str, float]] = field(default_factory=list)  # worker, time
    trainers_killed: int = 0

    async def keep(self, number: int) -> None:
        """One worker's place: filled again, under another name, after every death."""
        for life in range(10_000):
            name = f"w{number}-{life}"
            mark = {"AXON_SOAK": str(self.workshop.root)}
            async with worker(
                self.workshop.root, self.server.url, name, lease_s=LEASE_S, behaviour="steady", **mark
            ) as process:
                self.pids[name] = process.pid
                try:
                    await process.wait()
                finally:
                    del self.pids[name]

    async def kill(self) -> None:
        """Every second a trainer or a supervisor, twice the server, until cancelled."""
        chance, began, deaths = random.Random(SEED), time.monotonic(), list(SERVER_DEATHS)
        while True:
            await asyncio.sleep(KILL_EVERY_S)
            if deaths and time.monotonic() - began > deaths[0]:
                deaths.pop(0)
                os.kill(self.server.pid, signal.SIGKILL)
                continue
            if not self.pids:
                continue
            name, pid = chance.choice(sorted(self.pids.items()))
            trainer = trainer_of(pid)
            with contextlib.suppress(ProcessLookupError):
                if trainer is not None and chance.random() < 0.5:
                    os.kill(trainer, signal.SIGKILL)
                    self.trainers_killed += 1
                else:
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append((name, time.time()))


async def test_jobs_survive_random_kills(tmp_path: Path) -> None:
    """All succeed, each with one version; nothing stays pending, running or in Redis; lost leases are soon taken."""
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url, retries=20), SystemClock(), lease_s=LEASE_S)
    workshop = Workshop.open(tmp_path, lease_s=LEASE_S, queue=queue)
    chaos = Chaos(workshop, server)
    names = [f"job{number}" for number in range(JOBS)]
    try:
        for name in names:
            await queue.submit(a_job(name, model=name, max_attempts=20))
        tasks = [asyncio.create_task(chaos.keep(number)) for number in range(WORKERS)]
        tasks.append(asyncio.create_task(chaos.kill()))
        try:
            async with asyncio.timeout(WITHIN_S):
                await asyncio.gather(*(workshop.history(name, WITHIN_S) for name in names))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert server.restarts == len(SERVER_DEATHS)
        jobs = [await queue.get(name) for name in names]
        assert [job.state for job in jobs] == [JobState.SUCCEEDED] * JOBS
        assert [len(workshop.store.versions(name)) for name in names] == [1] * JOBS
        recoveries = [await recovery_s(workshop, job, chaos.killed) for job in jobs]
        check_recoveries([seconds for found in recoveries for seconds in found], chaos)
        assert await leaked_keys(queue) == []
        await wait_until(lambda: not marked_processes(tmp_path))
        assert workshop.checkpoints.jobs() == [] or await tidied(workshop)
    finally:
        await queue.close()
        await server.stop()
        workshop.close()


async def recovery_s(workshop: Workshop, job: Job, killed: list[tuple[str, float]]) -> list[float]:
    """Seconds from every kill of a supervisor that had this job until somebody else had it."""
    deaths, holder, found = dict(killed), "", []
    for event in await workshop.history(job.id):
        if event.kind != "state":
            continue
        death = deaths.get(holder)
        if event.data["state"] == JobState.RUNNING:
            if death is not None:
                found.append(event.time - death)
            holder = event.data["worker"]
        elif death is None or event.time < death:
            holder = ""  # given back in good order, before its worker died
    return found


def check_recoveries(found: list[float], chaos: Chaos) -> None:
    """95 of 100 within a lease and three seconds, as the issue of this system asks."""
    assert len(found) >= 5
    p95 = statistics.quantiles(found, n=20)[-1]
    print(
        f"{JOBS} jobs, {len(chaos.killed)} supervisors and {chaos.trainers_killed} trainers killed; {len(found)} "
        f"recoveries, median {statistics.median(found):.1f} s, p95 {p95:.1f} s with leases of {LEASE_S:.0f} s"
    )
    assert p95 < LEASE_S + 3


async def leaked_keys(queue: RedisJobQueue) -> list[str]:
    """Keys that docs/jobs.md does not name, and those of waiting or running jobs."""
    rows = re.findall(r"^\| (`\{axon\}.*?) \|", KEY_TABLE.read_text(), re.MULTILINE)
    known = [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]
    assert len(known) > 10
    shapes = [re.compile("".join(_part(part) for part in re.split(r"(<\w+>)", pattern))) for pattern in known]
    keys = [key async for key in queue._redis.scan_iter()]
    alive_only = [key for key in keys if key.startswith(("{axon}:queue", "{axon}:delayed", "{axon}:jobs:running"))]
    return alive_only + [key for key in keys if not any(shape.fullmatch(key) for shape in shapes)]


def _part(part: str) -> str:
    return r"[\w.-]+" if part.startswith("<") else re.escape(part)


def marked_processes(root: Path) -> list[int]:
    """Living processes that were started by this test's workers, and the workers."""
    mark = f"AXON_SOAK={root}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes() and alive(int(folder.name)):
                found.append(int(folder.name))
    return found


async def tidied(workshop: Workshop) -> bool:
    """Whether a last worker removes the checkpoints and folders that killed ones left."""
    async with workshop.working(worker_id="last"):
        await wait_until(lambda: not workshop.checkpoints.jobs())
    return not list((workshop.root / "work").glob("*"))
