"""What every `JobQueue` keeps, run on the memory queue (with a held clock) and on a real Valkey: who owns a job."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.core.errors import Conflict, NotFound, Overloaded, StaleLease
from service.core.types import JobState
from tests.service.adapters.job_queues import LEASE_S, RENEWED_LEASES, a_job, claimed, history, running, states
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_submitted_job_reads_back(queue):
    """A job is stored as given, queued, without an attempt."""
    job = a_job(spec={"model": "m", "x": [1, 2.5, None, "ü"]})
    assert await queue.submit(job) == job
    assert await queue.get("job") == job


async def test_unknown_job_is_not_found(queue):
    """Reading, cancelling and following what is not there says so."""
    with pytest.raises(NotFound, match="nobody"):
        await queue.get("nobody")
    with pytest.raises(NotFound):
        await queue.cancel("nobody")
    with pytest.raises(NotFound):
        await history(queue, "nobody")


async def test_known_id_conflicts(queue):
    """An id is given once."""
    await queue.submit(a_job())
    with pytest.raises(Conflict, match="job"):
        await queue.submit(a_job())


async def test_full_queue_is_overloaded(harness):
    """Unfinished jobs are bounded per tag; ended ones make room."""
    queue = harness.with_options(max_jobs=2)
    await queue.submit(a_job("a"))
    await queue.submit(a_job("b"))
    with pytest.raises(Overloaded, match="2"):
        await queue.submit(a_job("c"))
    with pytest.raises(NotFound):
        await queue.get("c")
    await queue.submit(a_job("d", tag="gpu"))
    await queue.cancel("a")
    await queue.submit(a_job("c"))


async def test_claim_starts_an_attempt_in_order(queue):
    """First come, first served; the claim counts the attempt and draws a 128-bit token."""
    for name in ("a", "b"):
        await queue.submit(a_job(name))
    first, second = await claimed(queue), await claimed(queue, "w2")
    assert (first.job.id, second.job.id) == ("a", "b")
    assert (first.attempt, first.job.state, first.worker) == (1, JobState.RUNNING, "w1")
    assert len(bytes.fromhex(first.token)) == 16
    assert first.token != second.token
    stored = await queue.get("b")
    assert (stored.state, stored.attempt, stored.worker) == (JobState.RUNNING, 1, "w2")
    assert stored.started_at is not None
    assert await queue.claim("w3", ["default"], wait_s=0) is None


async def test_claim_looks_only_at_its_tags(queue):
    """A worker gets only jobs with one of its tags."""
    await queue.submit(a_job("a", tag="gpu"))
    assert await queue.claim("w", ["default", "cpu"], wait_s=0) is None
    lease = await queue.claim("w", ["default", "gpu"], wait_s=0)
    assert lease is not None
    assert lease.job.id == "a"


async def test_waiting_claim_gets_a_job_submitted_later(queue):
    """A claim that waits is woken by a submission, on any of its tags."""
    for tag in ("default", "gpu"):
        waiting = asyncio.create_task(queue.claim("w", ["default", "gpu"], wait_s=60))
        await asyncio.sleep(0)
        await queue.submit(a_job(f"job-{tag}", tag=tag))
        async with asyncio.timeout(WAIT_S):
            lease = await waiting
        assert lease is not None
        assert lease.job.id == f"job-{tag}"


async def test_abandoned_wait_takes_nothing(queue):
    """A claim given up while it waits leaves the next job to others."""
    waiting = asyncio.create_task(queue.claim("w1", ["default"], wait_s=60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await queue.submit(a_job())
    assert (await claimed(queue, "w2")).attempt == 1


async def test_one_job_goes_to_one_of_many_workers(queue):
    """Workers that race for jobs each get different ones."""
    for number in range(5):
        await queue.submit(a_job(f"j{number}"))
    leases = await asyncio.gather(*(queue.claim(f"w{n}", ["default"], wait_s=0) for n in range(8)))
    assert sorted(lease.job.id for lease in leases if lease is not None) == [f"j{number}" for number in range(5)]


async def test_success_ends_the_job(queue):
    """Result and time are stored, the events end with the final state, nobody can claim it again."""
    lease = await running(queue)
    result = {"model": "m", "version": 4, "metrics": {"loss": 0.125}}
    job = await queue.settle(lease, JobState.SUCCEEDED, result=result)
    assert (job.state, job.result, job.error) == (JobState.SUCCEEDED, result, None)
    assert job.finished_at is not None
    assert await queue.get("job") == job
    events = await history(queue)
    assert states(events) == ["queued", "running", "succeeded"]
    assert events[-1].data["result"] == result
    assert await queue.claim("w2", ["default"], wait_s=0) is None


async def test_failure_keeps_its_reason(queue):
    """The error is in the job and in its last event, whatever characters it has."""
    lease = await running(queue)
    error = 'loss is not finite: "nan" at step 7 \\ ü\n/'
    job = await queue.settle(lease, JobState.FAILED, error=error)
    assert (job.state, job.error, job.result) == (JobState.FAILED, error, None)
    assert (await history(queue))[-1].data == {"state": "failed", "error": error}


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
async def test_settling_needs_a_final_state(queue, state):
    """A job cannot be settled as running."""
    lease = await running(queue)
    with pytest.raises(Conflict):
        await queue.settle(lease, state)


async def test_settling_twice_returns_what_was_settled(queue):
    """A repetition by the same worker changes nothing, whatever it says."""
    lease = await running(queue)
    job = await queue.settle(lease, JobState.SUCCEEDED, result={"version": 1})
    assert await queue.settle(lease, JobState.SUCCEEDED, result={"version": 1}) == job
    assert await queue.settle(lease, JobState.FAILED, error="late") == job
    assert states(await history(queue)) == ["queued", "running", "succeeded"]


WRITES = {
    "renew": lambda queue, lease: queue.renew(lease),
    "append": lambda queue, lease: queue.append(lease, "progress", {"step": 1}),
    "commit_checkpoint": lambda queue, lease: queue.commit_checkpoint(lease, {"step": 1}),
    "reserve": lambda queue, lease: queue.reserve(lease, "m", 9),
    "settle": lambda queue, lease: queue.settle(lease, JobState.SUCCEEDED, result={"version": 9}),
    "release": lambda queue, lease: queue.release(lease, reason="stale"),
}


@pytest.mark.parametrize("write", WRITES)
async def test_write_after_lease_loss_is_refused(harness, write):
    """Once another worker has the job, no write of the first one changes anything."""
    queue = harness.queue
    old = await running(queue)
    await harness.lapse(old)
    new = await claimed(queue, "w2")
    before = await queue.get("job")
    with pytest.raises(StaleLease, match="attempt 1"):
        await WRITES[write](queue, old)
    assert await queue.get("job") == before
    await queue.settle(new, JobState.SUCCEEDED, result={"version": 1})
    assert [event.kind for event in await history(queue)] == ["state"] * 5


@pytest.mark.parametrize("write", WRITES)
async def test_write_with_a_forged_token_is_refused(queue, write):
    """The right attempt with a wrong token is as stale as a wrong attempt."""
    lease = await running(queue)
    for forged in (replace(lease, token="0" * 32), replace(lease, attempt=2)):
        with pytest.raises(StaleLease):
            await WRITES[write](queue, forged)
    assert (await queue.renew(lease)).attempt == 1


@pytest.mark.parametrize("write", WRITES)
async def test_write_after_the_end_is_refused(queue, write):
    """A final state never changes; only settling may be repeated, by its own worker."""
    lease = await running(queue)
    job = await queue.settle(lease, JobState.FAILED, error="bad data")
    with pytest.raises(StaleLease):
        await WRITES[write](queue, replace(lease, token="0" * 32))
    assert await queue.get("job") == job


async def test_lost_lease_is_recovered(harness):
    """After the lease has run out another worker gets the job as a new attempt, with its checkpoint."""
    queue = harness.queue
    old = await running(queue)
    await queue.commit_checkpoint(old, {"path": "job/1/7", "step": 7})
    assert await queue.claim("w2", ["default"], wait_s=0) is None
    await harness.lapse(old)
    new = await claimed(queue, "w2")
    assert (new.job.id, new.attempt, new.job.worker) == ("job", 2, "w2")
    assert new.token != old.token
    assert new.job.checkpoint == {"path": "job/1/7", "step": 7}
    await queue.settle(new, JobState.SUCCEEDED)
    assert states(await history(queue)) == ["queued", "running", "queued", "running", "succeeded"]


async def test_waiting_claim_recovers_a_lost_lease(harness):
    """A worker that waits finds a lease that runs out meanwhile, without any submission."""
    if harness.clock is not None:
        pytest.skip("a held clock does not run while a claim waits")
    await running(harness.queue)
    async with asyncio.timeout(WAIT_S):
        lease = await harness.queue.claim("w2", ["default"], wait_s=60)
    assert lease is not None
    assert lease.attempt == 2


async def test_renewal_keeps_the_lease(harness):
    """A job renewed in time stays with its worker for longer than one lease."""
    queue = harness.queue
    lease = await running(queue)
    if harness.clock is not None:
        for _ in range(2 * RENEWED_LEASES):
            harness.clock.advance(LEASE_S / 2)
            assert (await queue.renew(lease)).attempt == 1
            assert await queue.claim("w2", ["default"], wait_s=0) is None
        return
    taking = asyncio.create_task(queue.claim("w2", ["default"], wait_s=RENEWED_LEASES * LEASE_S))
    while not taking.done():
        assert (await queue.renew(lease)).attempt == 1
        await asyncio.wait([taking], timeout=LEASE_S / 10)
    assert taking.result() is None


async def test_late_renewal_of_an_untaken_lease_holds(harness):
    """A lease that has run out but was taken by nobody is still its worker's."""
    lease = await running(harness.queue)
    await harness.lapse(lease)
    assert (await harness.queue.renew(lease)).attempt == 1
    assert await harness.queue.claim("w2", ["default"], wait_s=0) is None


async def test_attempts_used_up_by_lost_leases_fail_the_job(harness):
    """The job fails with the reason at the claim that would exceed `max_attempts`."""
    queue = harness.queue
    await queue.submit(a_job(max_attempts=2))
    for attempt in (1, 2):
        lease = await claimed(queue)
        assert lease.attempt == attempt
        await harness.lapse(lease)
    assert await queue.claim("w3", ["default"], wait_s=0) is None
    job = await queue.get("job")
    assert job.state is JobState.FAILED
    assert job.error == "the lease of attempt 2 was lost; no attempt of 2 is left"
    assert states(await history(queue))[-1] == "failed"


async def test_crash_counts_and_release_does_not(queue):
    """Released attempts are free, counted ones use `max_attempts` up; attempt numbers are never given twice."""
    await queue.submit(a_job(max_attempts=2))
    for attempt in (1, 2, 3):
        lease = await claimed(queue)
        assert lease.attempt == attempt
        job = await queue.release(lease, reason="the worker shuts down")
        assert (job.state, job.released, job.worker) == (JobState.QUEUED, attempt, None)
    assert (await queue.release(await claimed(queue), reason="crashed", counts=True)).state is JobState.QUEUED
    job = await queue.release(await claimed(queue), reason="killed by signal 9", counts=True)
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "killed by signal 9", 5)
    assert await queue.claim("w", ["default"], wait_s=0) is None


async def test_released_job_goes_to_the_end(queue):
    """A job given back waits behind those that came before."""
    for name in ("a", "b"):
        await queue.submit(a_job(name))
    await queue.release(await claimed(queue), reason="why not")
    assert [(await claimed(queue)).job.id for _ in range(2)] == ["b", "a"]


async def test_release_makes_the_lease_stale(queue):
    """Who gave a job back no longer writes for it, not even before the next claim."""
    lease = await running(queue)
    await queue.release(lease, reason="done with it")
    with pytest.raises(StaleLease):
        await queue.append(lease, "log", {"line": "?"})


async def test_cancelled_queued_job_is_never_claimed(queue):
    """A queued job is cancelled at once."""
    await queue.submit(a_job())
    job = await queue.cancel("job")
    assert (job.state, job.attempt) == (JobState.CANCELLED, 0)
    assert job.finished_at is not None
    assert await queue.claim("w", ["default"], wait_s=0) is None
    assert states(await history(queue)) == ["queued", "cancelled"]


async def test_cancelled_running_job_is_marked_for_its_worker(queue):
    """The worker learns of it by renewing, and ends the job as cancelled."""
    lease = await running(queue)
    job = await queue.cancel("job")
    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    assert (await queue.cancel("job")).cancel_requested
    assert (await queue.renew(lease)).cancel_requested
    assert (await queue.settle(lease, JobState.CANCELLED)).state is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
async def test_final_job_cannot_be_cancelled(queue, state):
    """A final state never changes."""
    lease = await running(queue)
    await queue.settle(lease, state)
    with pytest.raises(Conflict, match=str(state)):
        await queue.cancel("job")


async def test_cancelled_job_cannot_be_cancelled_again(queue):
    """Cancelled is final, too."""
    await queue.submit(a_job())
    await queue.cancel("job")
    with pytest.raises(Conflict, match="final"):
        await queue.cancel("job")


async def test_cancellation_wins_over_a_later_success(queue):
    """After an accepted cancellation there is no version to reserve, and no success to settle."""
    lease = await running(queue)
    await queue.cancel("job")
    with pytest.raises(Conflict, match="cancelled"):
        await queue.reserve(lease, "m", 1)
    job = await queue.settle(lease, JobState.SUCCEEDED, result={"version": 1})
    assert (job.state, job.result, job.reserved) == (JobState.CANCELLED, None, None)


async def test_success_wins_over_a_later_cancellation(queue):
    """A job that publishes its version already cannot be cancelled any more."""
    lease = await running(queue)
    await queue.reserve(lease, "m", 7)
    with pytest.raises(Conflict, match="version 7"):
        await queue.cancel("job")
    job = await queue.settle(lease, JobState.SUCCEEDED, result={"version": 7})
    assert (job.state, job.cancel_requested) == (JobState.SUCCEEDED, False)


async def test_cancel_and_success_race_has_one_winner(queue):
    """However the two meet: either cancelled without a version, or succeeded with one."""
    for number in range(20):
        name = f"job-{number}"
        await queue.submit(a_job(name))
        lease = await claimed(queue)
        outcomes = await asyncio.gather(queue.cancel(name), queue.reserve(lease, "m", 1), return_exceptions=True)
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
        job = await queue.settle(lease, JobState.SUCCEEDED, result={})
        reserved = not isinstance(outcomes[1], Conflict)
        assert job.state is (JobState.SUCCEEDED if reserved else JobState.CANCELLED)


async def test_nobody_may_settle_a_cancellation_that_was_not_asked_for(queue):
    """A worker does not cancel on its own."""
    lease = await running(queue)
    with pytest.raises(Conflict, match="nobody"):
        await queue.settle(lease, JobState.CANCELLED)
    assert (await queue.get("job")).state is JobState.RUNNING


async def test_cancelled_job_ends_when_it_is_released(queue):
    """Giving a job back that is to be cancelled cancels it."""
    lease = await running(queue)
    await queue.cancel("job")
    assert (await queue.release(lease, reason="shut down")).state is JobState.CANCELLED
    assert await queue.claim("w", ["default"], wait_s=0) is None


async def test_cancelled_job_ends_when_its_lease_is_lost(harness):
    """A job whose worker died after the cancellation is not tried again."""
    queue = harness.queue
    lease = await running(queue)
    await queue.cancel("job")
    await harness.lapse(lease)
    assert await queue.claim("w2", ["default"], wait_s=0) is None
    assert (await queue.get("job")).state is JobState.CANCELLED


async def test_reservation_happens_once(harness):
    """The first number stays the job's, for its worker's repetitions and for later attempts."""
    queue = harness.queue
    lease = await running(queue)
    assert await queue.reserve(lease, "m", 3) == ("m", 3)
    assert await queue.reserve(lease, "m", 4) == ("m", 3)
    await harness.lapse(lease)
    again = await claimed(queue, "w2")
    assert again.job.reserved == ("m", 3)
    assert await queue.reserve(again, "m", 5) == ("m", 3)


async def test_racing_reservations_agree(queue):
    """Concurrent calls all return the one number that won."""
    lease = await running(queue)
    numbers = await asyncio.gather(*(queue.reserve(lease, "m", number) for number in range(1, 9)))
    assert len(set(numbers)) == 1


async def test_checkpoint_pointer_moves_and_returns_the_one_before(queue):
    """The caller learns what it may delete."""
    lease = await running(queue)
    assert await queue.commit_checkpoint(lease, {"path": "a", "step": 1}) is None
    assert await queue.commit_checkpoint(lease, {"path": "b", "step": 2}) == {"path": "a", "step": 1}
    assert (await queue.get("job")).checkpoint == {"path": "b", "step": 2}
    await queue.settle(lease, JobState.SUCCEEDED)
    assert [e.data["step"] for e in await history(queue) if e.kind == "checkpoint"] == [1, 2]
