"""Cancelling races with everything: many jobs, each cancelled at some moment of its life.

The moments are told by what the job does, not by a clock: every way to end occurs on a machine of any speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
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
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.workshop import Workshop, a_job

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainers in /proc"),
]

WORKERS = 4
LEASE_S, BACKOFF_S = 10.0, 1.0
BACKOFF = Backoff(BACKOFF_S, BACKOFF_S, lambda: 1.0)
ENDS_AT_ONCE, CRASHES_FIRST, RUNS_ON = range(3)  # seeds of the fake trainer's behaviour `by_seed`
MOMENTS = {
    "at once": (ENDS_AT_ONCE, None),
    "claimed": (RUNS_ON, {"state": "running"}),
    "reports": (RUNS_ON, {"step": 1}),
    "about to end": (ENDS_AT_ONCE, {"step": 1}),
    "checkpoint": (ENDS_AT_ONCE, {"step": 5}),
    "crashed": (CRASHES_FIRST, {"state": "queued", "retry_in_s": BACKOFF_S}),
    "started again": (CRASHES_FIRST, {"state": "running", "attempt": 2}),
    "ended": (ENDS_AT_ONCE, {"state": "succeeded"}),
}
"""What a job does, and the event after which it is cancelled."""
OF_EACH = 25 if os.environ.get("FAULTS") == "whole" else 10
SEED = 20260


async def wait_for(moment: str, workshop: Workshop, name: str, pause: float) -> None:
    """Until the event of this moment, or the job's end, and a pause: up to a tenth of a second, or about a delay."""
    wanted = MOMENTS[moment][1]
    if wanted is not None:
        async with asyncio.timeout(WAIT_S):
            async for event in workshop.queue.events(name):
                if wanted.items() <= event.data.items():
                    break
    await asyncio.sleep(BACKOFF_S * (0.9 + 0.2 * pause) if moment == "crashed" and pause else 0.1 * pause)


async def live(workshop: Workshop, name: str, moment: str, pause: float) -> str:
    """Submit a job, cancel it at that moment, follow it to its end; returns how the race went."""
    await workshop.queue.submit(a_job(name, model=name, seed=MOMENTS[moment][0]))
    await wait_for(moment, workshop, name, pause)
    try:
        answered = await workshop.queue.cancel(name)
    except Conflict:
        answered = None
    events = await workshop.history(name, WAIT_S)
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
    rounds = [(moment, chance.random() * (number % 2)) for moment in MOMENTS for number in range(OF_EACH)]
    chance.shuffle(rounds)
    options = {"command": (sys.executable, str(FAKE_TRAINER), "by_seed"), "backoff": BACKOFF}
    try:
        async with contextlib.AsyncExitStack() as workers:
            for number in range(WORKERS):
                await workers.enter_async_context(workshop.working(worker_id=f"w{number}", **options))
            gate = asyncio.Semaphore(5 * WORKERS)

            async def one(name: str, moment: str, pause: float) -> str:
                async with gate:
                    return await live(workshop, name, moment, pause)

            ends = Counter(await asyncio.gather(*(one(f"j{n}", *of) for n, of in enumerate(rounds))))
            print(dict(ends))
            assert ends["succeeded"] >= OF_EACH
            assert ends["cancelled while running"] >= OF_EACH
            assert ends["cancelled while queued"] >= OF_EACH // 4
            assert ends["cancelled while delayed"] >= OF_EACH // 4
            await wait_until(lambda: not _trainers())
        assert await queue.find(state=JobState.RUNNING) == await queue.find(state=JobState.QUEUED) == []
    finally:
        await queue.close()
        await server.stop()
        workshop.close()


def _trainers() -> list[int]:
    """Processes of fake trainers that this one has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"fake_trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
