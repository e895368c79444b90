"""What every `JobQueue` shows, on the memory queue and on a real Valkey: events, lists, workers, and forgetting."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.core.errors import InvalidRequest, NotFound
from service.core.types import JobEvent, JobState, WorkerInfo
from tests.service.adapters.job_queues import a_job, claimed, history, running, states
from tests.service.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_events_replay_after_any_id(queue):
    """Following after an id gives exactly what came later, in order."""
    lease = await running(queue)
    ids = [await queue.append(lease, "progress", {"step": step, "loss": 0.5**step}) for step in range(5)]
    await queue.settle(lease, JobState.SUCCEEDED)
    everything = await history(queue)
    assert [event.id for event in everything[2:7]] == ids
    assert everything[3].data == {"step": 1, "loss": 0.5}
    assert all(abs(event.time - everything[0].time) < 60 for event in everything)
    for place, event in enumerate(everything):
        assert await history(queue, after=event.id) == everything[place + 1 :]


async def test_replay_gives_what_is_there(queue):
    """Page by page the same events as following them, without waiting for more; also before the end."""
    lease = await running(queue)
    for step in range(5):
        await queue.append(lease, "progress", {"step": step})
    some = await queue.replay("job", limit=4)
    rest = await queue.replay("job", after=some[-1].id)
    assert [event.data.get("step") for event in (*some, *rest)] == [None, None, 0, 1, 2, 3, 4]
    assert await queue.replay("job", after=rest[-1].id) == []
    await queue.settle(lease, JobState.SUCCEEDED)
    assert some + rest + await queue.replay("job", after=rest[-1].id) == await history(queue)
    with pytest.raises(NotFound):
        await queue.replay("none")
    for after in ("", "x", "-1", "$", "(1"):
        with pytest.raises(InvalidRequest, match="event id"):
            await queue.replay("job", after=after)


async def test_events_follow_until_the_end(queue):
    """A follower sees what comes and stops by itself after the final state."""
    await queue.submit(a_job())
    seen: list[JobEvent] = []

    async def follow() -> None:
        async for event in queue.events("job"):
            seen.append(event)

    following = asyncio.create_task(follow())
    await wait_until(lambda: len(seen) == 1)
    lease = await claimed(queue)
    await queue.append(lease, "log", {"line": "hello"})
    await wait_until(lambda: len(seen) == 3)
    await queue.settle(lease, JobState.SUCCEEDED)
    async with asyncio.timeout(WAIT_S):
        await following
    assert [event.kind for event in seen] == ["state", "state", "log", "state"]


async def test_events_after_the_last_id_of_a_finished_job_end_at_once(queue):
    """There is nothing to wait for."""
    lease = await running(queue)
    await queue.settle(lease, JobState.SUCCEEDED)
    assert await history(queue, after="99999999999999-0") == []


@pytest.mark.parametrize("after", ["", "x", "-1", "1-", "1-2-3", "$", "+", "9" * 40])
async def test_events_after_nonsense_are_refused(queue, after):
    """An id comes from a client: it is checked."""
    await queue.submit(a_job())
    with pytest.raises(InvalidRequest, match="event id"):
        await anext(queue.events("job", after=after))


async def test_events_are_capped(harness):
    """A talkative job keeps its latest events only; the end is always among them."""
    queue = harness.with_options(max_events=100)
    lease = await running(queue)
    for step in range(400):
        await queue.append(lease, "progress", {"step": step})
    await queue.settle(lease, JobState.SUCCEEDED)
    events = await history(queue)
    assert len(events) < 320
    assert [event.data.get("step") for event in events[-3:-1]] == [398, 399]
    assert states(events[-1:]) == ["succeeded"]


async def test_listing_is_newest_first_and_by_state(queue):
    """Jobs are found by creation time, all or those of one state."""
    for number in range(4):
        await queue.submit(a_job(f"j{number}", created_at=1000.5 + number))
    await queue.cancel("j2")
    await claimed(queue)
    assert [job.id for job in await queue.find()] == ["j3", "j2", "j1", "j0"]
    assert [job.id for job in await queue.find(limit=2)] == ["j3", "j2"]
    assert [job.id for job in await queue.find(state=JobState.QUEUED)] == ["j3", "j1"]
    assert [job.id for job in await queue.find(state=JobState.RUNNING)] == ["j0"]
    assert [job.id for job in await queue.find(state=JobState.CANCELLED)] == ["j2"]
    assert await queue.find(state=JobState.FAILED) == []


async def test_finished_jobs_are_forgotten(harness):
    """`keep_s` after its end a job, its events and its place in the lists are gone."""
    queue = harness.with_options(keep_s=0.05)
    lease = await running(queue)
    await queue.settle(lease, JobState.SUCCEEDED)
    if harness.clock is not None:
        harness.clock.advance(0.06)

    async def gone() -> bool:
        try:
            await queue.get("job")
        except NotFound:
            return True
        return False

    await wait_until(gone)
    assert await queue.find() == []
    await queue.submit(a_job("next"))
    assert [job.id for job in await queue.find()] == ["next"]
    if harness.kind == "redis":
        assert await harness.client.zrange(f"{harness.prefix}:jobs", 0, -1) == ["next"]
        assert await harness.client.exists(f"{harness.prefix}:ended", f"{harness.prefix}:events:job") == 0


async def test_workers_are_seen_while_their_heart_beats(harness):
    """A heartbeat shows a worker until its time is over."""
    queue = harness.queue
    info = WorkerInfo("w1", ("default", "gpu"), "cpu", "idle", None, "0.1.0", 1_700_000_000.5)
    other = replace(info, id="w0", state="training", job="job")
    await queue.beat(info, ttl_s=60)
    await queue.beat(other, ttl_s=0.05)
    if harness.clock is not None:
        assert await queue.workers() == [other, info]
        harness.clock.advance(0.06)

    async def alone() -> bool:
        return await queue.workers() == [info]

    await wait_until(alone)


async def test_jobs_are_counted_by_state_and_by_who_waits(queue):
    """By state, dead ones too; those wait that nobody has taken, also after a failure."""
    for number, tag in enumerate(("default", "default", "gpu", "other")):
        await queue.submit(a_job(f"job-{number}", tag=tag))
    lease = await claimed(queue)
    counts = await queue.counts(["default", "gpu", "nobody"])
    assert {state: count for state, count in counts.states.items() if count} == {
        JobState.QUEUED: 3,
        JobState.RUNNING: 1,
    }
    assert counts.waiting == {"default": 1, "gpu": 1, "nobody": 0}
    await queue.release(lease, reason="crashed", counts=True, delay_s=60)
    await queue.settle(await claimed(queue), JobState.SUCCEEDED)
    counts = await queue.counts(["default"])
    assert counts.waiting == {"default": 1}
    assert (counts.states[JobState.SUCCEEDED], counts.dead) == (1, 0)
    dying = await running(queue, name="dying", tag="last", max_attempts=1)
    await queue.release(dying, reason="crashed", counts=True)
    counts = await queue.counts(["last"])
    assert (counts.states[JobState.FAILED], counts.dead, counts.waiting) == (1, 1, {"last": 0})


async def test_a_job_keeps_the_trace_of_its_request(queue):
    """Whoever claims it can go on with the same trace."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert (await running(queue, trace=trace)).job.trace == trace
    await queue.submit(a_job("untraced"))
    assert (await queue.get("untraced")).trace == ""


async def test_ping_answers(queue):
    """A queue that is there says nothing."""
    await queue.ping()
