"""Cancelling races with everything: 200 jobs, each cancelled at a random moment of its life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.errors import Conflict
from service.core.retry import Backoff
from service.core.types import JobState
from tests.faults.run_worker import FAKE_TRAINER
from tests.service.waiting import wait_until
from tests.service.worker.workshop import Workshop, a_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainers in /proc"),
]

ROUNDS, WORKERS = 200, 4
LEASE_S = 3.0
SEED = 20260


async def live(workshop: Workshop, name: str, after_s: float, crashes: bool) -> str:
    """Submit a job, cancel it after a while, follow it to its end; returns how the race went."""
    await workshop.queue.submit(a_job(name, model=name, seed=int(crashes)))
    await asyncio.sleep(after_s)
    try:
        answered = await workshop.queue.cancel(name)
    except Conflict:
        answered = None
    events = await workshop.history(name)
    job = await workshop.queue.get(name)
    states = [event.data["state"] for event in events if event.kind == "state"]
    asked = next((n for n, e in enumerate(events) if e.data.get("cancel_requested")), None)
    assert [state for state in states if JobState(state).final] == [str(job.state)] == states[-1:]
    published = name in workshop.store.models() and len(workshop.store.versions(name)) > 0
    if answered is None:  # refused: it has won, or was about to
        assert (job.state, published) == (JobState.SUCCEEDED, True)
        assert asked is None
        return "succeeded"
    assert (job.state, published, job.reserved) == (JobState.CANCELLED, False, None)
    if answered.state is JobState.CANCELLED:
        assert states[-2:] == ["queued", "cancelled"], "it was queued when it was cancelled, and never started again"
        return "cancelled while delayed" if job.attempt else "cancelled while queued"
    assert asked is not None
    after = [event.data for event in events[asked + 1 :] if event.kind == "state"]
    assert after == [{"state": "cancelled"}], "nothing begins after an accepted cancellation"
    return "cancelled while running"


async def test_cancel_has_one_winner_at_every_moment(tmp_path: Path) -> None:
    """The answer to the cancellation always is what happens: cancelled without a version, or succeeded with one."""
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url), SystemClock(), lease_s=LEASE_S)
    workshop = Workshop.open(tmp_path, lease_s=LEASE_S, queue=queue)
    chance = random.Random(SEED)
    options = {"command": (sys.executable, str(FAKE_TRAINER), "crash_if_seeded"), "backoff": Backoff(0.5, 0.5)}
    try:
        async with contextlib.AsyncExitStack() as workers:
            for number in range(WORKERS):
                await workers.enter_async_context(workshop.working(worker_id=f"w{number}", **options))
            began = time.monotonic()
            await queue.submit(a_job("warm"))
            await workshop.history("warm")
            usual_s = 5 * (time.monotonic() - began)
            gate = asyncio.Semaphore(5 * WORKERS)

            async def one(number: int) -> str:
                async with gate:
                    return await live(workshop, f"j{number}", chance.uniform(0, usual_s), number % 4 == 0)

            ends = Counter(await asyncio.gather(*(one(number) for number in range(ROUNDS))))
            print(dict(ends))
            assert ends["succeeded"] >= 10
            assert ends["cancelled while running"] >= 10
            assert ends["cancelled while queued"] >= 10
            await wait_until(lambda: not _trainers(), within_s=15)
        assert await queue.find(state=JobState.RUNNING) == await queue.find(state=JobState.QUEUED) == []
    finally:
        await queue.close()
        await server.stop()
        workshop.close()


def _trainers() -> list[int]:
    """Processes of fake trainers that this one has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"fake_trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
