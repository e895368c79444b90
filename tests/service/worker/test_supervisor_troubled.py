"""The supervisor on a queue that fails it: leases that are lost, a server that is away, answers that do not come."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import NotReady, StaleLease
from service.core.types import Job, JobState, Lease
from tests.service.waiting import wait_until
from tests.service.worker.supervised import alive, ended, trainer, trainer_pid
from tests.service.worker.workshop import Workshop, a_job


class Troubled(MemoryJobQueue):
    """A queue whose answers can be spoiled: `trouble[method]` is raised, before or after the call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(SystemClock(), **options)
        self.before: dict[str, Exception] = {}
        self.after: dict[str, Exception] = {}

    async def renew(self, lease: Lease) -> Job:
        self._spoil(self.before, "renew")
        return await super().renew(lease)

    async def append(self, lease: Lease, kind: str, data: Any) -> str:
        self._spoil(self.before, "append")
        return await super().append(lease, kind, data)

    async def reserve(self, lease: Lease, model: str, version: int) -> tuple[str, int]:
        self._spoil(self.before, "reserve")
        answer = await super().reserve(lease, model, version)
        self._spoil(self.after, "reserve")
        return answer

    async def settle(self, lease: Lease, state: JobState, **content: Any) -> Job:
        self._spoil(self.before, "settle")
        job = await super().settle(lease, state, **content)
        self._spoil(self.after, "settle")
        return job

    @staticmethod
    def _spoil(trouble: dict[str, Exception], method: str) -> None:
        if method in trouble:
            raise trouble[method]


@pytest.fixture
def troubled(tmp_path: Path):
    """A workshop with a queue that can be spoiled."""
    workshop = Workshop.open(tmp_path, lease_s=1.0, queue=Troubled(lease_s=1.0))
    yield workshop
    workshop.close()


async def test_lost_lease_kills_the_trainer_and_changes_nothing(troubled):
    """Once the job may be another's, the trainer dies at once, without grace, and nothing is written."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("hang"), grace_s=1000.0):
        pid = await trainer_pid(troubled)
        troubled.queue.before["renew"] = StaleLease("taken")
        await wait_until(lambda: not alive(pid))
        job = await troubled.queue.get("job")
        assert (job.state, job.attempt, job.error) == (JobState.RUNNING, 1, None)
        assert troubled.store.models() == []
        await wait_until(lambda: not list((troubled.root / "work").glob("job*")))
        del troubled.queue.before["renew"]
        assert await trainer_pid(troubled, count=2) != pid
        await troubled.queue.cancel("job")
        await wait_until(lambda: _is_asked(troubled))
        _kill(await trainer_pid(troubled, count=2))
        await troubled.history()


async def _is_asked(workshop: Workshop) -> bool:
    return (await workshop.queue.get("job")).cancel_requested


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def test_absent_server_leaves_the_trainer_alone_for_a_while(troubled):
    """Shorter than a lease: the job goes on, and its events arrive afterwards."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("patient_once")) as stop:
        pid = await trainer_pid(troubled)
        away = NotReady("away")
        troubled.queue.before |= {"renew": away, "append": away, "settle": away}
        await asyncio.sleep(0.4)  # real time: a good part of the lease
        assert alive(pid)
        troubled.queue.before.clear()
        stop.set()
    job = await troubled.queue.get("job")
    assert (job.state, job.checkpoint) == (JobState.QUEUED, {"attempt": 1, "step": 7, "path": "job/1/7"})


async def test_job_says_what_it_waits_for(troubled, monkeypatch):
    """A store that stays away is no failure of the job, but nobody should have to guess why nothing happens."""
    await troubled.queue.submit(a_job())
    get, calls = troubled.datasets.get, 0

    def away(dataset_id):
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise NotReady("the object store does not answer: UnauthenticatedError")
        return get(dataset_id)

    monkeypatch.setattr(troubled.datasets, "get", away)
    async with troubled.working(command=trainer("finish")):
        events = await troubled.history()
    lines = [event.data["line"] for event in events if event.kind == "log"]
    assert "the job waits: the object store does not answer: UnauthenticatedError" in lines
    assert (await troubled.queue.get("job")).state is JobState.SUCCEEDED


async def test_server_absent_for_longer_than_the_lease_costs_the_trainer(troubled):
    """When another worker could have the job, this one stops working on it."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("hang"), grace_s=0.1):
        pid = await trainer_pid(troubled)
        troubled.queue.before["renew"] = NotReady("away")
        await wait_until(lambda: not alive(pid))
        del troubled.queue.before["renew"]
        assert await trainer_pid(troubled, count=2) != pid
    job = await troubled.queue.get("job")
    assert (job.state, job.released, job.error) == (JobState.QUEUED, 1, None)


@pytest.mark.parametrize(("when", "method"), [("before", "settle"), ("before", "reserve"), ("after", "reserve")])
async def test_finish_broken_off_anywhere_publishes_once(troubled, when, method):
    """A supervisor that dies between two steps of the finish leaves them to the next attempt: one version."""
    queue = troubled.queue
    getattr(queue, when)[method] = RuntimeError("the supervisor dies here")
    await queue.submit(a_job(on_success={"alias": "prod"}))
    async with troubled.working(command=trainer("finish")):
        await wait_until(lambda: _second_attempt(troubled))
        getattr(queue, when).clear()
        await troubled.history()
    job = await queue.get("job")
    assert job.state is JobState.SUCCEEDED
    assert job.attempt > 1
    (version,) = troubled.store.versions("toy")
    assert job.reserved == ("toy", version.version)
    assert troubled.store.state("toy").aliases == {"prod": version.version}
    # A second training is needed only where nothing had been published.
    trained = sum(event.kind == "progress" for event in await troubled.history())
    assert (trained == 1) is (method == "settle")


async def _second_attempt(workshop: Workshop) -> bool:
    return (await workshop.queue.get("job")).attempt >= 2


async def test_settlement_whose_answer_was_lost_is_repeated(troubled):
    """The queue knows the same worker's repetition."""
    troubled.queue.after["settle"] = NotReady("the answer was lost")
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("finish")):
        await troubled.history()
        troubled.queue.after.clear()
    job = await troubled.queue.get("job")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


async def test_cancellation_before_the_reservation_wins(troubled, monkeypatch):
    """Cancelled when the trainer has finished already: no version is published."""
    queue = troubled.queue
    allocate = troubled.store.allocate
    loop = asyncio.get_running_loop()

    def cancelled_meanwhile(name: str) -> int:
        asyncio.run_coroutine_threadsafe(queue.cancel("job"), loop).result(10)
        return allocate(name)

    monkeypatch.setattr(troubled.store, "allocate", cancelled_meanwhile)
    job = await ended(troubled, "finish")
    assert (job.state, job.reserved, job.result) == (JobState.CANCELLED, None, None)
    assert troubled.store.versions("toy") == []
