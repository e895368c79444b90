"""Promotion: what a worker that has lost its job must not do any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import StaleLease
from service.core.types import Job, JobState, Lease
from service.worker.publish import promote
from tests.service.waiting import FakeClock
from tests.service.worker.workshop import Workshop, a_job

LEASE_S = 1.0


class Interrupted(MemoryJobQueue):
    """A queue in whose first renewal something else happens, after the lease was proved."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, lease_s=LEASE_S)
        self.happens = []

    async def renew(self, lease: Lease) -> Job:
        job = await super().renew(lease)
        happens, self.happens = self.happens, []
        for event in happens:
            await event()
        return job


@pytest.fixture
def clock():
    """Stands still."""
    return FakeClock()


@pytest.fixture
def workshop(tmp_path, clock):
    """A model with two versions, and a queue that can be interrupted."""
    workshop = Workshop.open(tmp_path, queue=Interrupted(clock))
    for number in (1, 2):
        bundle = workshop.store.scratch() / "bundle"
        bundle.write_bytes(b"bundle")
        assert workshop.store.allocate("toy") == number
        manifest = {"lineage": {"job": f"job-{number}", "metrics": {}}}
        workshop.store.publish("toy", number, bundle, manifest=manifest)
    yield workshop
    workshop.close()


def point(workshop, version):
    """Somebody moves the alias."""
    workshop.store.change("toy", lambda s: replace(s, loaded=s.loaded | {version}, aliases={"prod": version}))


async def claimed(workshop, worker="w1"):
    """A lease on a job that wants its version to be `prod`."""
    lease = await workshop.queue.claim(worker, ["default"], wait_s=0)
    assert lease is not None
    return lease


async def test_promotion_moves_the_alias_whatever_else_changes(workshop):
    """A change of the same model by somebody else meanwhile is kept, and does not stop it."""
    await workshop.queue.submit(a_job(on_success={"alias": "prod"}))
    lease = await claimed(workshop)

    async def other() -> None:
        workshop.store.change("toy", lambda s: replace(s, aliases={**s.aliases, "old": 2}, loaded=s.loaded | {2}))

    workshop.queue.happens.append(other)
    await promote(workshop.queue, workshop.store, lease, {"model": "toy", "version": 1})
    assert workshop.store.state("toy").aliases == {"old": 2, "prod": 1}


async def test_late_promotion_of_a_lost_job_is_refused(workshop, clock):
    """After another worker has finished the job and a person has moved the alias on, nothing moves it back."""
    await workshop.queue.submit(a_job(on_success={"alias": "prod"}))
    zombie = await claimed(workshop)
    clock.advance(LEASE_S + 1)
    second = await claimed(workshop, "w2")
    await promote(workshop.queue, workshop.store, second, {"model": "toy", "version": 1})
    await workshop.queue.settle(second, JobState.SUCCEEDED)
    point(workshop, 2)
    with pytest.raises(StaleLease):
        await promote(workshop.queue, workshop.store, zombie, {"model": "toy", "version": 1})
    assert workshop.store.state("toy").aliases == {"prod": 2}


async def test_worker_paused_between_proof_and_promotion_changes_nothing(workshop, clock):
    """Even one that stood still right after its lease was proved finds the model changed, asks again and is refused."""
    await workshop.queue.submit(a_job(on_success={"alias": "prod"}))
    zombie = await claimed(workshop)

    async def pause() -> None:
        clock.advance(LEASE_S + 1)
        second = await claimed(workshop, "w2")
        await promote(workshop.queue, workshop.store, second, {"model": "toy", "version": 1})
        await workshop.queue.settle(second, JobState.SUCCEEDED)
        point(workshop, 2)

    workshop.queue.happens.append(pause)
    with pytest.raises(StaleLease):
        await promote(workshop.queue, workshop.store, zombie, {"model": "toy", "version": 1})
    assert workshop.store.state("toy").aliases == {"prod": 2}
