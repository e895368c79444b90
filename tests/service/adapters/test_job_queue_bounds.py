"""What every `JobQueue` keeps of its bounds, in memory and on a real Valkey; and what the server's memory is."""

from __future__ import annotations

import json

import pytest

from service.core.errors import NotFound, Overloaded, TooLarge
from service.core.limits import MAX_EVENT_BYTES, MAX_REASON_CHARS
from service.core.types import JobState
from tests.service.adapters.job_queues import DOCUMENTED_KEYS, LEASE_S, a_job, claimed, history, running
from tests.service.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_running_time_is_counted_over_attempts(harness):
    """Each attempt counts from its claim to its end, a lost one to the end of its lease; waiting does not count."""
    queue = harness.queue
    lease = await running(queue, max_attempts=9)
    assert lease.job.ran_s == 0
    await harness.lapse(lease)
    if harness.clock is not None:
        harness.clock.advance(100.0)
    second = await claimed(queue)
    assert second.job.ran_s == pytest.approx(LEASE_S, abs=0.002)
    job = await queue.release(second, reason="crashed", counts=True)
    assert LEASE_S - 0.002 <= job.ran_s < LEASE_S + 5


async def test_job_says_how_long_it_is_kept(harness):
    """`ttl_s` counts from the job's end, and is at most what the server allows."""
    queue = harness.with_options(keep_s=60.0)
    await queue.submit(a_job("short", ttl_s=0.1))
    await queue.submit(a_job("long", ttl_s=1e9))
    for _ in range(2):
        await queue.settle(await claimed(queue), JobState.SUCCEEDED)
    if harness.clock is not None:
        harness.clock.advance(0.2)

    async def gone() -> bool:
        return [job.id for job in await queue.find()] == ["long"]

    await wait_until(gone)
    with pytest.raises(NotFound):
        await queue.get("short")
    if harness.kind == "redis":
        for kind in ("job", "events"):
            assert 0 < await harness.client.pttl(f"{harness.prefix}:{kind}:long") <= 60_000


async def test_ended_jobs_are_bounded_in_number(harness):
    """Beyond the bound the oldest ones are forgotten, unfinished ones never."""
    queue = harness.with_options(max_kept=3)
    await queue.submit(a_job("waits", tag="other"))
    for number in range(6):
        await queue.submit(a_job(f"j{number}", created_at=1_700_000_001.0 + number))
        await queue.settle(await claimed(queue), JobState.SUCCEEDED)
    await queue.submit(a_job("last", created_at=1_800_000_000.0))
    assert [job.id for job in await queue.find()] == ["last", "j5", "j4", "j3", "waits"]
    with pytest.raises(NotFound):
        await history(queue, "j2")


async def test_unfinished_jobs_of_all_tags_are_bounded(harness):
    """Tags are names that clients choose: there may be any number of them, but not of jobs."""
    queue = harness.with_options(max_unfinished=3)
    for number in range(3):
        await queue.submit(a_job(f"j{number}", tag=f"tag-{number}"))
    await claimed(queue, tag="tag-0")
    with pytest.raises(Overloaded, match="all tags"):
        await queue.submit(a_job("more", tag="tag-more"))
    await queue.cancel("j1")
    await queue.submit(a_job("more", tag="tag-more"))


async def test_events_are_bounded_in_size(queue):
    """One event does not hold a book."""
    lease = await running(queue)
    await queue.append(lease, "log", {"line": "x" * (MAX_EVENT_BYTES - 100)})
    with pytest.raises(TooLarge, match=str(MAX_EVENT_BYTES)):
        await queue.append(lease, "log", {"line": "x" * MAX_EVENT_BYTES})


async def test_reasons_are_cut(queue):
    """Neither does the reason of a failure."""
    lease = await running(queue)
    job = await queue.settle(lease, JobState.FAILED, error="x" * 10 * MAX_REASON_CHARS)
    assert job.error == "x" * MAX_REASON_CHARS
    assert (await history(queue))[-1].data["error"] == job.error


# docs/jobs.md, "Memory of the queue's server".
FIXED_BYTES, JOB_BYTES, EVENT_BYTES, MORE_EVENTS = 16_384, 2_048, 96, 100


async def test_memory_is_what_the_documentation_says(redis_harness):
    """After many jobs there are only documented keys, as many as the formula has, and no more memory than it allows."""
    kept, unfinished, events = 60, 20, 100
    queue = redis_harness.with_options(max_kept=kept, max_events=events)
    spec = {"model": "m", "graph": {"nodes": ["x" * 100 for _ in range(20)]}}
    data = {"step": 1234567, "loss": 0.123456789, "accuracy": 0.98765, "samples_per_s": 12345.6, "eta_s": 1.5}
    for number in range(kept + 100):
        lease = await running(queue, name=f"j{number:031}", spec=spec, created_at=1_700_000_000.5 + number)
        for _ in range(150 if number % 10 == 0 else 15):
            await queue.append(lease, "progress", data)
        await queue.commit_checkpoint(lease, {"attempt": 1, "step": 5, "path": "x" * 60})
        await queue.settle(lease, JobState.SUCCEEDED, result={"model": "m", "version": 1, "metrics": data})
    for number in range(unfinished):
        await queue.submit(a_job(f"u{number:031}", spec=spec, tag=f"tag{number % 4}", created_at=1_800_000_000.5))
    keys = [key async for key in redis_harness.client.scan_iter(match=redis_harness.prefix + ":*", count=1000)]
    names = [key.removeprefix(redis_harness.prefix + ":") for key in keys]
    assert all(DOCUMENTED_KEYS.fullmatch(name) for name in names)
    of_jobs = [name for name in names if name.partition(":")[0] in ("job", "events")]
    assert len(of_jobs) == 2 * (kept + unfinished)
    assert len(names) - len(of_jobs) <= 4 + 8
    used = sum([await redis_harness.client.memory_usage(key, samples=0) for key in keys])
    spec_bytes, data_bytes = len(json.dumps(spec)), len(json.dumps(data))
    held = [min(155, events + MORE_EVENTS) if number % 10 == 0 else 20 for number in range(100, 100 + kept)]
    allowed = FIXED_BYTES + (kept + unfinished) * (JOB_BYTES + 1.25 * spec_bytes)
    allowed += (sum(held) + unfinished) * (EVENT_BYTES + data_bytes)
    assert used <= allowed <= 3 * used, (used, allowed)
