"""What every `JobQueue` keeps of sweeps: a parent that waits for its children, and lives and dies with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.core.errors import Conflict, NotFound, Overloaded
from service.core.sweeps import child_id
from service.core.types import Job, JobState, Lease, Priority
from tests.service.adapters.job_queues import a_job, claimed, history, states
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


def a_sweep(count: int = 3, name: str = "sweep", **changes: Any) -> tuple[Job, list[Job]]:
    """A parent and its children."""
    parent = a_job(name, children=count, priority=Priority.HIGH, **changes)
    names = [child_id(name, number) for number in range(count)]
    changes.pop("idempotency_key", None)
    return parent, [a_job(each, parent=name, spec={"model": "m", "rate": each}, **changes) for each in names]


async def end_children(queue: Any, count: int, state: JobState = JobState.SUCCEEDED) -> list[Lease]:
    """Claim and settle the next jobs."""
    leases = []
    for number in range(count):
        leases.append(await claimed(queue))
        result = {"version": number + 1} if state is JobState.SUCCEEDED else None
        await queue.settle(leases[-1], state, result=result, error=None if result else "diverged")
    return leases


async def test_sweep_is_stored_whole(queue):
    """Parent and children read back as given; all are queued, and the children are claimed in their order."""
    parent, children = a_sweep()
    assert await queue.submit(parent, children) == parent
    assert await queue.get("sweep") == parent
    assert await queue.children("sweep") == children
    assert await queue.children("sweep.1") == []
    assert len(await queue.find(state=JobState.QUEUED)) == 4
    assert [(await claimed(queue)).job.id for _ in range(3)] == ["sweep.0", "sweep.1", "sweep.2"]
    with pytest.raises(NotFound):
        await queue.children("nobody")


async def test_parent_is_claimable_behind_its_last_child(queue):
    """Not before; then at once, by a worker that waits as well, before jobs that are less urgent."""
    await queue.submit(*a_sweep())
    await queue.submit(a_job("other"))
    leases = await end_children(queue, 2)
    last = await claimed(queue)
    assert (await claimed(queue)).job.id == "other"
    assert await queue.claim("w", ["default"], wait_s=0) is None
    waiting = asyncio.create_task(queue.claim("w2", ["default"], wait_s=60))
    await asyncio.sleep(0)
    await queue.settle(last, JobState.FAILED, error="diverged")
    async with asyncio.timeout(WAIT_S):
        lease = await waiting
    assert lease is not None
    assert (lease.job.id, lease.attempt, lease.job.children) == ("sweep", 1, 3)
    await queue.settle(lease, JobState.SUCCEEDED, result={"version": 2})
    events = await history(queue, "sweep")
    assert states(events) == ["queued", "queued", "running", "succeeded"]
    told = [event.data for event in events if event.kind == "child"]
    assert told == [
        {"child": leases[0].job.id, "state": "succeeded", "result": {"version": 1}},
        {"child": leases[1].job.id, "state": "succeeded", "result": {"version": 2}},
        {"child": last.job.id, "state": "failed", "error": "diverged"},
    ]


async def test_repeated_end_of_a_child_counts_once(queue):
    """Settling twice does not make the parent claimable early."""
    await queue.submit(*a_sweep(2))
    lease = await claimed(queue)
    for _ in range(3):
        await queue.settle(lease, JobState.SUCCEEDED, result={})
    assert (await claimed(queue)).job.id == "sweep.1"
    assert await queue.claim("w", ["default"], wait_s=0) is None


async def test_children_that_end_in_other_ways_count_too(harness):
    """Cancelled while queued, given back with no attempt left, lost with no attempt left."""
    queue = harness.queue
    await queue.submit(*a_sweep(3, max_attempts=1))
    await queue.cancel("sweep.1")
    first, third = await claimed(queue), await claimed(queue)
    await queue.release(first, reason="crashed", counts=True)
    await harness.lapse(third)
    lease = await claimed(queue)
    while lease.job.id != "sweep":  # the lost one is failed by the claim that finds it
        lease = await claimed(queue)
    assert [child.state for child in await queue.children("sweep")] == ["failed", "cancelled", "failed"]
    assert [child.dead for child in await queue.children("sweep")] == [True, False, True]


async def test_retried_child_holds_the_parent(harness):
    """A lost lease is no end."""
    queue = harness.queue
    await queue.submit(*a_sweep(1))
    lease = await claimed(queue)
    await harness.lapse(lease)
    again = await claimed(queue)
    assert (again.job.id, again.attempt) == ("sweep.0", 2)
    assert await queue.claim("w", ["default"], wait_s=0) is None
    await queue.settle(again, JobState.SUCCEEDED)
    assert (await claimed(queue)).job.id == "sweep"


async def test_lost_parent_is_recovered(harness):
    """The parent is a job like any other once it runs: attempts, lease, reservation, the end when none is left."""
    queue = harness.queue
    await queue.submit(*a_sweep(1))
    await end_children(queue, 1)
    lease = await claimed(queue)
    assert await queue.reserve(lease, "m", 1) == ("m", 1)
    await harness.lapse(lease)
    again = await claimed(queue)
    assert (again.job.id, again.attempt, again.job.reserved) == ("sweep", 2, ("m", 1))
    await harness.lapse(again)
    assert await queue.claim("w", ["default"], wait_s=0) is None
    job = await queue.get("sweep")
    assert (job.state, job.dead) == (JobState.FAILED, True)


async def test_cancelled_sweep_cancels_its_queued_children(queue):
    """With nothing running it ends at once, with all that had not ended."""
    await queue.submit(*a_sweep())
    await end_children(queue, 1)
    assert (await queue.cancel("sweep")).state is JobState.CANCELLED
    assert [child.state for child in await queue.children("sweep")] == ["succeeded", "cancelled", "cancelled"]
    assert await queue.claim("w", ["default"], wait_s=0) is None
    events = await history(queue, "sweep")
    assert states(events)[-1] == "cancelled"
    assert sum(event.kind == "child" for event in events) == 3
    with pytest.raises(Conflict, match="final"):
        await queue.cancel("sweep")


async def test_cancelled_sweep_ends_behind_its_running_children(queue):
    """Running children are asked to stop, one that publishes may; then nobody gets the parent."""
    await queue.submit(*a_sweep())
    running, publishing = await claimed(queue), await claimed(queue)
    await queue.reserve(publishing, "m", 1)
    job = await queue.cancel("sweep")
    assert (job.state, job.cancel_requested) == (JobState.QUEUED, True)
    assert (await queue.cancel("sweep")).cancel_requested
    assert (await queue.renew(running)).cancel_requested
    assert not (await queue.renew(publishing)).cancel_requested
    await queue.settle(running, JobState.CANCELLED)
    await queue.settle(publishing, JobState.SUCCEEDED, result={"version": 1})
    assert await queue.claim("w", ["default"], wait_s=0) is None
    assert (await queue.get("sweep")).state is JobState.CANCELLED
    assert [child.state for child in await queue.children("sweep")] == ["cancelled", "succeeded", "cancelled"]


async def test_cancelled_child_is_only_taken_out(queue):
    """The others go on."""
    await queue.submit(*a_sweep())
    await queue.cancel("sweep.1")
    leases = await end_children(queue, 2)
    assert [lease.job.id for lease in leases] == ["sweep.0", "sweep.2"]
    assert (await claimed(queue)).job.id == "sweep"


async def test_idempotency_key_leads_to_the_sweep(queue):
    """A repetition adds no children."""
    parent, children = a_sweep(idempotency_key="k")
    await queue.submit(parent, children)
    again, others = a_sweep(name="again", idempotency_key="k")
    assert (await queue.submit(again, others)).id == "sweep"
    assert len(await queue.find()) == 4


async def test_failed_sweep_is_requeued_as_a_whole(queue):
    """Once, with new children."""
    await queue.submit(*a_sweep(2))
    await end_children(queue, 3, JobState.FAILED)
    assert (await queue.requeue("sweep", *a_sweep(2, "new"))).id == "new"
    assert (await queue.requeue("sweep", *a_sweep(2, "newer"))).id == "new"
    assert [child.id for child in await queue.children("new")] == ["new.0", "new.1"]
    assert (await queue.get("sweep")).requeued_as == "new"


async def test_sweep_counts_against_the_bounds(harness):
    """Per tag by the children, which are queued; of all tags with the parent; all or nothing is stored."""
    queue = harness.with_options(max_jobs=3, max_unfinished=7)
    with pytest.raises(Overloaded, match=r"at most 3.*4 beside 0"):
        await queue.submit(*a_sweep(4))
    assert await queue.find() == []
    await queue.submit(*a_sweep(3))
    with pytest.raises(Overloaded, match=r"at most 3.*1 beside 3"):
        await queue.submit(a_job())
    await queue.submit(*a_sweep(2, "other", tag="gpu"))
    with pytest.raises(Overloaded, match="all tags"):
        await queue.submit(a_job(tag="third"))


async def test_ended_children_count_until_their_sweep_has_ended(harness):
    """They cannot be forgotten, so they must not be without bound."""
    queue = harness.with_options(max_unfinished=4, max_kept=1)
    await queue.submit(*a_sweep(3))
    await end_children(queue, 2)
    with pytest.raises(Overloaded, match="1 beside 4"):
        await queue.submit(a_job())
    assert len(await queue.children("sweep")) == 3


async def test_children_live_as_long_as_their_sweep(harness):
    """Ended children outlive their time while the sweep is unfinished, and go with it."""
    queue = harness.with_options(keep_s=0.15)
    await queue.submit(*a_sweep(2))
    await end_children(queue, 1)
    if harness.clock is not None:
        harness.clock.advance(1.0)
    else:
        for key in ("job:sweep.0", "events:sweep.0"):
            assert await harness.client.pttl(f"{harness.prefix}:{key}") == -1
    assert (await queue.get("sweep.0")).state is JobState.SUCCEEDED
    await end_children(queue, 2)
    if harness.clock is not None:
        harness.clock.advance(0.16)
    else:
        spans = [await harness.client.pttl(f"{harness.prefix}:job:{name}") for name in ("sweep", "sweep.0", "sweep.1")]
        assert all(0 < span <= 150 for span in spans)
        async with asyncio.timeout(WAIT_S):
            while await harness.client.exists(f"{harness.prefix}:job:sweep"):
                await asyncio.sleep(0.01)
        await queue.submit(a_job("next"))
    for name in ("sweep", "sweep.0", "sweep.1"):
        with pytest.raises(NotFound):
            await queue.get(name)
    assert [job.id for job in await queue.find()] == ([] if harness.clock is not None else ["next"])


async def test_too_many_ended_jobs_forget_a_sweep_as_a_whole(harness):
    """Neither a child without its sweep nor a sweep without its children is left."""
    queue = harness.with_options(max_kept=3)
    await queue.submit(*a_sweep(2))
    await end_children(queue, 3)
    assert len(await queue.find()) == 3
    await queue.submit(a_job("z-next", created_at=1_800_000_000.0))
    await queue.settle(await claimed(queue), JobState.SUCCEEDED)
    await queue.submit(a_job("last", created_at=1_800_000_001.0))
    assert [job.id for job in await queue.find()] == ["last", "z-next"]
    with pytest.raises(NotFound):
        await history(queue, "sweep.1")
