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


def with_metrics(workshop, **metrics):
    """A third version whose job reported these."""
    bundle = workshop.store.scratch() / "bundle"
    bundle.write_bytes(b"bundle")
    number = workshop.store.allocate("toy")
    workshop.store.publish("toy", number, bundle, manifest={"lineage": {"job": "job-3", "metrics": metrics}})
    return number


async def promoted(workshop, metrics, **on_success):
    """The result of a job that made version 1 with these metrics."""
    changes = {"on_success": {"alias": "prod", "if_better": "accuracy", **on_success}}
    await workshop.queue.submit(a_job(**changes))
    result = {"model": "toy", "version": 1, "metrics": metrics}
    return await promote(workshop.queue, workshop.store, await claimed(workshop), result)


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "moves", "reason"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.8}, "accuracy", True, "accuracy 0.9, that of version 3 0.8"),
        ({"accuracy": 0.8}, {"accuracy": 0.9}, "accuracy", False, "accuracy 0.8, that of version 3 0.9"),
        ({"accuracy": 0.9}, {"accuracy": 0.9}, "accuracy", False, "accuracy 0.9, that of version 3 0.9"),
        ({"loss": 0.8}, {"loss": 0.9}, "loss", True, "loss 0.8, that of version 3 0.9"),
        ({"loss": 0.8}, {"loss": 0.9}, {"metric": "loss", "mode": "max"}, False, "loss 0.8, that of version 3 0.9"),
        ({"accuracy": 0.1}, {"loss": 2.0}, "accuracy", True, "accuracy 0.1, that of version 3 not known"),
        ({"accuracy": None}, {"accuracy": 0.9}, "accuracy", False, "accuracy not known, that of version 3 0.9"),
        ({"accuracy": None}, {}, "accuracy", False, "accuracy not known, that of version 3 not known"),
    ],
)
async def test_alias_moves_if_the_metric_is_better(workshop, ours, theirs, better, moves, reason):
    """Than that of the version which has it; the result says whether and why."""
    point(workshop, with_metrics(workshop, **theirs))
    result = await promoted(workshop, ours, if_better=better)
    assert result == {"model": "toy", "version": 1, "metrics": ours, "promoted": moves, "reason": reason}
    state = workshop.store.state("toy")
    assert state.aliases == {"prod": 1 if moves else 3}
    assert state.loaded == ({1, 3} if moves else {3})


async def test_version_that_is_not_better_is_loaded_if_asked(workshop):
    """`load` holds either way."""
    point(workshop, with_metrics(workshop, accuracy=1.0))
    result = await promoted(workshop, {"accuracy": 0.5}, load=True)
    assert not result["promoted"]
    assert workshop.store.state("toy").loaded == {1, 3}


async def test_alias_without_a_version_is_taken(workshop):
    """There is nothing to be better than; a repetition finds its own version."""
    result = await promoted(workshop, {"accuracy": 0.1})
    assert (result["promoted"], result["reason"]) == (True, "no version was prod")
    again = await promote(
        workshop.queue, workshop.store, await _lease_again(workshop), {k: result[k] for k in result if k != "reason"}
    )
    assert (again["promoted"], again["reason"]) == (True, "version 1 is prod already")


async def _lease_again(workshop):
    await workshop.queue.submit(a_job("again", on_success={"alias": "prod", "if_better": "accuracy"}))
    return await claimed(workshop)


async def test_comparison_is_with_the_version_that_has_the_alias_in_the_end(workshop):
    """A better one that takes the alias after the comparison, but before the change, is compared with again."""
    point(workshop, 2)

    async def better_one() -> None:
        point(workshop, with_metrics(workshop, accuracy=0.95))

    workshop.queue.happens.append(better_one)
    result = await promoted(workshop, {"accuracy": 0.9})
    assert (result["promoted"], result["reason"]) == (False, "accuracy 0.9, that of version 3 0.95")
    assert workshop.store.state("toy").aliases == {"prod": 3}


async def test_result_without_an_alias_says_nothing_of_it(workshop):
    """There is nothing to tell; with one but no condition it is moved."""
    await workshop.queue.submit(a_job(on_success={"load": True}))
    result = {"model": "toy", "version": 1, "metrics": {}}
    assert await promote(workshop.queue, workshop.store, await claimed(workshop), result) == result
    await workshop.queue.submit(a_job("second", on_success={"alias": "prod"}))
    told = await promote(workshop.queue, workshop.store, await claimed(workshop), result)
    assert (told["promoted"], told["reason"]) == (True, "without a condition")
