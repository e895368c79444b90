"""The time limit of a job, over all its attempts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from service.core.types import JobState
from tests.faults.processes import alive
from tests.service.worker.workshop import Workshop, a_job


def trainer(behaviour: str) -> tuple[str, ...]:
    """How a fake one is started."""
    return (sys.executable, str(Path(__file__).with_name("fake_trainer.py")), behaviour)


@pytest.fixture
def workshop(tmp_path: Path):
    """A data folder and a queue in memory."""
    workshop = Workshop.open(tmp_path)
    yield workshop
    workshop.close()


async def test_time_limit_stops_the_trainer_and_fails_the_job(workshop):
    """The time of all attempts together counts, whatever the trainer does about SIGTERM."""
    await workshop.queue.submit(a_job(time_limit_s=0.3))
    async with workshop.working(command=trainer("hang"), grace_s=0.1):
        events = await workshop.history()
    assert not any(alive(event.data["pid"]) for event in events if event.kind == "progress")
    job = await workshop.queue.get("job")
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "the time limit of 0.3 s is over", 1)
    assert job.ran_s >= 0.3


async def test_job_beyond_its_time_limit_is_not_begun(workshop):
    """Earlier attempts have used the time up."""
    await workshop.queue.submit(a_job(time_limit_s=0.1))
    lease = await workshop.queue.claim("w0", ["default"], wait_s=0)
    await asyncio.sleep(0.15)
    await workshop.queue.release(lease, reason="the worker shuts down")
    async with workshop.working(command=trainer("finish")):
        events = await workshop.history()
    assert (await workshop.queue.get("job")).error == "the time limit of 0.1 s is over"
    assert not any(event.kind == "progress" for event in events)
