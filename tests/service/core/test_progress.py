"""Waiting for jobs: bounded in number."""

from __future__ import annotations

import asyncio

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import Overloaded
from service.core.progress import JobProgress
from service.core.types import Job, JobState
from tests.service.waiting import WAIT_S


async def test_waiters_are_bounded_and_their_places_given_back():
    """One too many is told to come again; whoever goes away makes room."""
    queue = MemoryJobQueue(SystemClock())
    job = await queue.submit(Job("job", {}, JobState.QUEUED, "default", 0, 1, 1.0))
    progress, stopping = JobProgress(queue, SystemClock(), max_waiting=2), asyncio.Event()
    waiting = [asyncio.create_task(progress.changed(job, stopping, known=None, wait_s=60)) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match="at most 2 requests"):
        await progress.changed(job, stopping, known=None, wait_s=60)
    assert (await progress.changed(job, stopping, known=JobState.RUNNING, wait_s=60)).state is JobState.QUEUED
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert (await progress.changed(job, stopping, known=None, wait_s=0.01)).state is JobState.QUEUED
    await queue.cancel("job")
    async with asyncio.timeout(WAIT_S):
        assert (await waiting[1]).state is JobState.CANCELLED
