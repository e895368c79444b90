"""What every `JobQueue` keeps about repeated submissions, on the memory queue and on a real Valkey."""

from __future__ import annotations

import asyncio

import pytest

from service.core.errors import Conflict, NotFound, Overloaded
from service.core.types import JobState
from tests.service.adapters.job_queues import a_job, claimed, history, running, states
from tests.service.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_key_leads_to_the_first_job_in_every_state(queue):
    """The same key and request give the job as it is by now."""
    job = await queue.submit(a_job("a", idempotency_key="k"))
    assert await queue.submit(a_job("b", idempotency_key="k")) == job
    lease = await claimed(queue)
    assert (await queue.submit(a_job("c", idempotency_key="k"))).state is JobState.RUNNING
    done = await queue.settle(lease, JobState.SUCCEEDED, result={"version": 1})
    assert await queue.submit(a_job("d", idempotency_key="k")) == done
    assert [found.id for found in await queue.find()] == ["a"]
    assert await queue.claim("w", ["default"], wait_s=0) is None


async def test_key_of_another_request_conflicts(queue):
    """Nothing is stored then."""
    await queue.submit(a_job("a", idempotency_key="k"))
    with pytest.raises(Conflict, match="request of job a"):
        await queue.submit(a_job("b", idempotency_key="k", spec={"model": "other"}))
    with pytest.raises(NotFound):
        await queue.get("b")


async def test_owners_have_keys_of_their_own(queue):
    """Nobody finds another's job by guessing a key."""
    for owner in ("", "a", "b"):
        assert (await queue.submit(a_job(f"job-{owner}", owner=owner, idempotency_key="k"))).id == f"job-{owner}"


async def test_racing_submissions_with_one_key_make_one_job(queue):
    """However they meet."""
    jobs = await asyncio.gather(*(queue.submit(a_job(f"j{n}", idempotency_key="k")) for n in range(8)))
    assert len({job.id for job in jobs}) == 1
    assert len(await queue.find()) == 1


async def test_key_finds_its_job_when_the_queue_is_full(harness):
    """A repetition needs no room."""
    queue = harness.with_options(max_jobs=1)
    job = await queue.submit(a_job("a", idempotency_key="k"))
    assert await queue.submit(a_job("b", idempotency_key="k")) == job
    with pytest.raises(Overloaded):
        await queue.submit(a_job("c", idempotency_key="l"))


async def test_key_of_a_forgotten_job_is_free(harness):
    """When the job is gone the key makes a new one."""
    queue = harness.with_options(keep_s=0.2)
    await queue.submit(a_job("a", idempotency_key="k"))
    await queue.settle(await claimed(queue), JobState.SUCCEEDED)
    if harness.clock is not None:
        harness.clock.advance(0.3)

    async def gone() -> bool:
        return await queue.find() == []

    await wait_until(gone)
    assert (await queue.submit(a_job("b", idempotency_key="k"))).id == "b"


async def test_dead_jobs_are_listed(queue):
    """Those whose attempts were used up by crashes or lost leases; not those that failed by their own fault."""
    await queue.settle(await running(queue), JobState.FAILED, error="bad data")
    await queue.submit(a_job("dead", max_attempts=1))
    job = await queue.release(await claimed(queue), reason="crashed", counts=True)
    assert (job.state, job.dead) == (JobState.FAILED, True)
    assert await queue.find(dead=True) == [job] == await queue.find(state=JobState.FAILED, dead=True)
    assert await queue.find(state=JobState.QUEUED, dead=True) == []
    assert len(await queue.find(state=JobState.FAILED)) == 2


async def test_dead_job_is_replaced_once(queue):
    """The old job stays as it ended; a new one takes its place on the list of what is to be done."""
    await queue.submit(a_job("old", max_attempts=1))
    await queue.release(await claimed(queue), reason="crashed", counts=True)
    new = await queue.requeue("old", a_job("new", requeued_from="old"))
    assert (new.id, new.state, new.requeued_from) == ("new", JobState.QUEUED, "old")
    assert (await queue.requeue("old", a_job("newer", requeued_from="old"))).id == "new"
    old = await queue.get("old")
    assert (old.state, old.dead, old.requeued_as) == (JobState.FAILED, False, "new")
    assert await queue.find(dead=True) == []
    assert states(await history(queue, "old"))[-1] == "failed"
    assert (await claimed(queue)).job.id == "new"
    assert await queue.claim("w", ["default"], wait_s=0) is None


async def test_only_failed_jobs_are_replaced(queue):
    """Nothing else is queued again, nor what does not exist."""
    await queue.submit(a_job())
    with pytest.raises(Conflict, match="queued"):
        await queue.requeue("job", a_job("new"))
    with pytest.raises(NotFound):
        await queue.requeue("nobody", a_job("new"))
    await queue.cancel("job")
    with pytest.raises(Conflict, match="cancelled"):
        await queue.requeue("job", a_job("new"))
