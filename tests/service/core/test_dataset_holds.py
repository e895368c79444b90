"""A data set is deleted, and a job queued for it, at the same moment: whoever is first, no job finds its data gone."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.dataset_files import FileDatasetReader
from service.adapters.file_store import FileDatasetStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.core import datasets as module
from service.core.datasets import DatasetService, holding
from service.core.errors import Conflict, InvalidRequest, NotFound, NotReady
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.types import Job, JobState
from tests.service.fake_engine import FakeEngine
from tests.service.waiting import wait_until

SPEC = {
    "model": "m", "graph": {"scale": 2}, "target": "y", "loss": "mean_squared_error", "optimizer": "sgd", "epochs": 1,
    "batch_size": 2, "seed": 0,
}  # fmt: skip


class Gated(MemoryJobQueue):
    """A queue whose submissions, and answers about uses, wait until they may happen."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.may_submit, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_submit.set()
        self.may_answer.set()
        self.asked = 0

    async def submit(self, job: Job, *others: Any) -> Job:
        self.asked += 1
        await self.may_submit.wait()
        return await super().submit(job, *others)

    async def using(self, dataset_id: str) -> list[str]:
        found = await super().using(dataset_id)
        self.asked += 1
        await self.may_answer.wait()
        return found


class Watched(FileDatasetStore):
    """A store that counts the holds that it refused."""

    refused = 0

    def hold(self, dataset_id: str, *, alone: bool) -> Callable[[], None] | None:
        release = super().hold(dataset_id, alone=alone)
        self.refused += release is None
        return release


class Parts:
    """Both services over one store and one queue."""

    def __init__(self, root: Path) -> None:
        clock, limits = SystemClock(), Limits()
        self.queue = Gated()
        self.store = Watched(root)
        nothing: Any = None
        reader = FileDatasetReader()
        self.datasets = DatasetService(self.store, self.store.scratch, reader, clock, limits, self.queue, nothing)
        self.jobs = JobService(self.queue, self.store, FakeEngine(), clock, limits, starts=nothing)

    async def data(self) -> str:
        """A stored data set that fits the jobs."""
        file = io.BytesIO()
        np.savez(file, x=np.zeros((4, 2), np.float32), y=np.zeros((4, 2), np.float32))

        async def chunks() -> AsyncIterator[bytes]:
            yield file.getvalue()

        return (await self.datasets.add(chunks(), "npz")).id

    async def submit(self, dataset_id: str) -> str:
        """Queue a job for it; returns the job's id."""
        return (await self.jobs.submit({**SPEC, "dataset": dataset_id})).job.id


@pytest.fixture
def parts(tmp_path: Path):
    """An empty store and an empty queue."""
    parts = Parts(tmp_path)
    yield parts
    parts.store.close()


async def test_deletion_is_refused_while_unfinished_jobs_need_it(parts):
    """It says how many and which; queued and running ones count, ended ones do not."""
    dataset_id = await parts.data()
    first, second = await parts.submit(dataset_id), await parts.submit(dataset_id)
    with pytest.raises(Conflict, match=f"no unfinished jobs that need it, got 2: {first}, {second}"):
        await parts.datasets.delete(dataset_id)
    lease = await parts.queue.claim("w", ["default"], wait_s=1)
    await parts.jobs.cancel(second)
    with pytest.raises(Conflict, match=f"got 1: {first}"):
        await parts.datasets.delete(dataset_id)
    await parts.queue.settle(lease, JobState.SUCCEEDED)
    await parts.datasets.delete(dataset_id)
    with pytest.raises(NotFound):
        await parts.datasets.get(dataset_id)


async def test_message_names_some_of_many_jobs(parts):
    """The number is told, not every id."""
    dataset_id = await parts.data()
    for _ in range(22):
        await parts.submit(dataset_id)
    with pytest.raises(Conflict, match=r"got 22: (\w+, ){20}\.\.\.$"):
        await parts.datasets.delete(dataset_id)


async def test_submission_that_was_first_keeps_its_data(parts):
    """The deletion waits for it and then finds the job."""
    dataset_id = await parts.data()
    parts.queue.may_submit.clear()
    submitting = asyncio.create_task(parts.submit(dataset_id))
    await wait_until(lambda: parts.queue.asked == 1)
    deleting = asyncio.create_task(parts.datasets.delete(dataset_id))
    await wait_until(lambda: parts.store.refused)
    parts.queue.may_submit.set()
    job_id = await submitting
    with pytest.raises(Conflict, match=f"got 1: {job_id}"):
        await deleting
    assert (await parts.datasets.get(dataset_id)).id == dataset_id


async def test_deletion_that_was_first_refuses_the_job(parts):
    """The submission, already checked, waits for it and then finds the data set gone; no job is there."""
    dataset_id = await parts.data()
    parts.queue.may_answer.clear()
    deleting = asyncio.create_task(parts.datasets.delete(dataset_id))
    await wait_until(lambda: parts.queue.asked == 1)
    submitting = asyncio.create_task(parts.submit(dataset_id))
    await wait_until(lambda: parts.store.refused)
    parts.queue.may_answer.set()
    await deleting
    with pytest.raises(InvalidRequest, match="the id of a stored data set"):
        await submitting
    assert await parts.jobs.find() == []


async def test_race_has_one_winner(parts):
    """In any order either the job was accepted and its data set is there, or both are not."""
    for turn in range(30):
        dataset_id = await parts.data()
        calls = [parts.submit(dataset_id), parts.datasets.delete(dataset_id)]
        results = await asyncio.gather(*(calls if turn % 2 else reversed(calls)), return_exceptions=True)
        accepted, deleted = results if turn % 2 else reversed(results)
        if isinstance(accepted, str):
            assert isinstance(deleted, Conflict)
            assert (await parts.datasets.get(dataset_id)).id == dataset_id
        else:
            assert isinstance(accepted, InvalidRequest)
            assert deleted is None


async def test_nothing_is_deleted_while_the_queue_is_away(parts, monkeypatch):
    """Nobody can say whether a job needs it."""
    dataset_id = await parts.data()

    async def away(dataset_id: str) -> list[str]:
        raise NotReady("away")

    monkeypatch.setattr(parts.queue, "using", away)
    with pytest.raises(NotReady):
        await parts.datasets.delete(dataset_id)
    assert (await parts.datasets.get(dataset_id)).id == dataset_id
    async with holding(parts.store, dataset_id, alone=True):
        pass


async def test_hold_that_does_not_end_is_told(parts, monkeypatch):
    """A deletion does not wait for ever, nor does a submission."""
    monkeypatch.setattr(module, "_HOLD_PAUSE_S", 0.001)
    dataset_id = await parts.data()
    async with holding(parts.store, dataset_id):
        with pytest.raises(Conflict, match="jobs are being queued for it; try again"):
            await parts.datasets.delete(dataset_id)
    async with holding(parts.store, dataset_id, alone=True):
        with pytest.raises(Conflict, match="it is being deleted; try again"):
            await parts.submit(dataset_id)
