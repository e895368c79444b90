"""What every `JobQueue` keeps about who comes when, on the memory queue and on a real Valkey: priorities and delays."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from service.core.errors import Overloaded
from service.core.types import CLAIM_ORDER, JobState, Priority
from tests.service.adapters.job_queues import a_job, claimed, history, running
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_S = 3600.0


async def order(queue, count, tags=("default",)):
    """The next jobs in the order in which they are claimed."""
    leases = [await queue.claim(f"w{number}", list(tags), wait_s=0) for number in range(count)]
    return [None if lease is None else lease.job.id for lease in leases]


async def test_priority_and_owner_read_back(queue):
    """They are stored with the job."""
    job = a_job(priority=Priority.HIGH, owner="Zoë")
    assert await queue.submit(job) == job
    assert await queue.get("job") == job


async def test_urgent_jobs_come_first(queue):
    """A job of a higher level overtakes those that wait on a lower one."""
    for name, level in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", "high")):
        await queue.submit(a_job(name, priority=Priority(level)))
    assert await order(queue, 5) == ["c", "d", "b", "a", None]


async def test_no_level_starves_another(queue):
    """While every level waits, eight claims in turn are shared out as documented, one of them to the lowest."""
    for number in range(12):
        for level in Priority:
            await queue.submit(a_job(f"{level}-{number}", priority=level))
    assert Counter(CLAIM_ORDER) == {Priority.HIGH: 5, Priority.NORMAL: 2, Priority.LOW: 1}
    got = [name.partition("-")[0] for name in await order(queue, 16)]
    assert got == [str(level) for level in CLAIM_ORDER] * 2


async def test_oldest_job_of_all_tags_comes_first(queue):
    """Within a level the order of a worker's tags does not matter."""
    for number, tag in enumerate(("b", "a", "b", "c", "a")):
        await queue.submit(a_job(f"j{number}", tag=tag))
    assert await order(queue, 5, ("a", "b")) == ["j0", "j1", "j2", "j4", None]


async def test_lost_lease_goes_before_urgent_jobs(harness):
    """What was begun is finished first."""
    queue = harness.queue
    lease = await running(queue, priority=Priority.LOW)
    await queue.submit(a_job("urgent", priority=Priority.HIGH))
    await harness.lapse(lease)
    assert await order(queue, 2) == ["job", "urgent"]


async def test_limit_counts_all_levels_and_delays(harness):
    """The bound of a tag holds for its three streams and the delayed jobs together."""
    queue = harness.with_options(max_jobs=4)
    for level in Priority:
        await queue.submit(a_job(str(level), priority=level))
    await queue.release(await claimed(queue), reason="crashed", counts=True, delay_s=LONG_S)
    await queue.submit(a_job("d"))
    with pytest.raises(Overloaded) as caught:
        await queue.submit(a_job("e"))
    assert caught.value.retry_after_s == 1.0
    await queue.cancel("high")
    await queue.submit(a_job("e"))


async def test_delayed_job_waits(queue):
    """Nobody gets a job before its delay is over; it is queued, and says when it may be tried again."""
    lease = await running(queue)
    job = await queue.release(lease, reason="crashed", counts=True, delay_s=LONG_S)
    assert (job.state, job.worker) == (JobState.QUEUED, None)
    assert job.not_before is not None
    assert await queue.get("job") == job
    assert [found.id for found in await queue.find(state=JobState.QUEUED)] == ["job"]
    assert await order(queue, 1) == [None]


async def test_delayed_job_comes_back(harness):
    """When its time has come a waiting worker gets it, as the next attempt."""
    queue = harness.queue
    lease = await running(queue)
    await queue.release(lease, reason="crashed", counts=True, delay_s=0.2)
    assert await order(queue, 1) == [None]
    if harness.clock is not None:
        harness.clock.advance(0.25)
    async with asyncio.timeout(WAIT_S):
        again = await queue.claim("w2", ["default"], wait_s=60)
    assert again is not None
    assert (again.job.id, again.attempt, again.job.not_before) == ("job", 2, None)
    await queue.settle(again, JobState.SUCCEEDED)
    told = [event.data for event in await history(queue) if event.data.get("state") == "queued"]
    assert told[1] == {"state": "queued", "reason": "crashed", "retry_in_s": 0.2}


async def test_due_job_is_given_once(harness):
    """Workers that race for a job that is due get it once."""
    queue = harness.queue
    await queue.release(await running(queue), reason="crashed", counts=True, delay_s=0.05)
    if harness.clock is not None:
        harness.clock.advance(0.1)
    leases = await asyncio.gather(*(queue.claim(f"w{n}", ["default"], wait_s=0.25 * (n == 0)) for n in range(6)))
    assert len([lease for lease in leases if lease is not None]) == 1
    assert await order(queue, 1) == [None]


async def test_cancelled_delayed_job_never_starts(harness):
    """A delayed job is cancelled at once, and its time does not bring it back."""
    queue = harness.queue
    await queue.release(await running(queue), reason="crashed", counts=True, delay_s=0.05)
    job = await queue.cancel("job")
    assert (job.state, job.not_before) == (JobState.CANCELLED, None)
    if harness.clock is not None:
        harness.clock.advance(1.0)
    assert await queue.claim("w", ["default"], wait_s=0 if harness.clock is not None else 0.3) is None
    assert [e.data["state"] for e in await history(queue)] == ["queued", "running", "queued", "cancelled"]
