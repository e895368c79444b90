"""What only the queue on a server can show: its keys, entries taken and lost, a server that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.adapters.clock import SystemClock
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.adapters.redis_values import fields_of, place_of
from service.core.errors import NotReady
from service.core.types import JobState
from tests.service.adapters.job_queues import a_job, running
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_finished_jobs_leave_only_expiring_keys(redis_harness):
    """After all jobs have ended the queue's stream is gone and every key of a job expires."""
    queue, client, prefix = redis_harness.queue, redis_harness.client, redis_harness.prefix
    lease = await running(queue)
    await queue.append(lease, "log", {"line": "x"})
    await queue.settle(lease, JobState.SUCCEEDED)
    await queue.submit(a_job("other", tag="gpu"))
    await queue.cancel("other")
    keys = {key.removeprefix(prefix + ":") async for key in client.scan_iter(match=prefix + ":*")}
    of_jobs = {"job:job", "job:other", "events:job", "events:other"}
    assert keys == of_jobs | {"turns", "jobs", "jobs:succeeded", "jobs:cancelled", "ended"}
    week_ms = 7 * 86_400_000
    for key in of_jobs:
        assert 0.99 * week_ms < await client.pttl(f"{prefix}:{key}") <= week_ms


async def test_entry_taken_but_not_started_counts_no_attempt(redis_harness):
    """A worker that dies between taking an entry and starting its job costs the job only time."""
    queue = redis_harness.queue
    await queue.submit(a_job(max_attempts=1))
    stream = f"{redis_harness.prefix}:queue:default:normal"
    assert await redis_harness.client.xreadgroup("workers", "axon", {stream: ">"}, count=1)
    async with asyncio.timeout(WAIT_S):
        lease = await queue.claim("w", ["default"], wait_s=60)
    assert lease is not None
    assert lease.attempt == 1


async def test_repeated_call_of_a_lost_answer_changes_nothing(redis_harness):
    """A client that repeats submit or start after losing the answer gets the same answer, not a second effect."""
    queue = redis_harness.queue
    job = a_job(max_attempts=1)
    place, keys = place_of(job), ["{axon}", "{axon}"]
    args = ("nonce", 10, "1.5", "", "", "", 10, 0, len(fields_of(job)), *fields_of(job))
    first = await queue._call("submit", place, *args, more_keys=keys)
    assert await queue._call("submit", place, *args, more_keys=keys) == first
    (entry,) = await redis_harness.client.xreadgroup(
        "workers", "axon", {f"{redis_harness.prefix}:queue:default:normal": ">"}, count=1
    )
    start = ("start", place, entry[1][0][0], "token", "w", 1000)
    assert await queue._call(*start) == await queue._call(*start)
    assert (await queue.get("job")).attempt == 1


async def test_absent_server_is_not_ready(tmp_path: Path):
    """A lost server is an error that says to come back later."""
    client = connect(f"unix://{tmp_path}/none.sock", retries=1)
    queue = RedisJobQueue(client, SystemClock())
    for call in (queue.ping(), queue.get("x"), queue.submit(a_job()), queue.claim("w", ["default"], wait_s=0)):
        with pytest.raises(NotReady, match="away") as caught:
            await call
        assert caught.value.retry_after_s == 1.0
    await client.aclose()


async def test_pauses_before_repetitions_are_spread_and_bounded(monkeypatch):
    """Clients that lose a server at the same moment come back each at its own: over the whole of a growing range."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("redis.asyncio.retry.sleep", pause)
    for _ in range(200):
        client = connect("unix:///nonexistent/valkey.sock")
        with pytest.raises(RedisConnectionError):
            await client.ping()
        await client.aclose()
    for number, most in enumerate((0.2, 0.4, 0.8, 1.5, 1.5)):
        each = pauses[number::5]
        assert len(each) == 200
        assert max(each) <= most
        quarters = [sum(part * most / 4 <= seconds < (part + 1) * most / 4 for seconds in each) for part in range(4)]
        assert min(quarters) > 20, f"an even spread has about 50 in each quarter, got {quarters}"
