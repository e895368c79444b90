"""The job queues under test, and short ways to bring a job into a state."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Any

from service.adapters.clock import SystemClock
from service.adapters.memory_jobs import MemoryJobQueue
from service.adapters.redis_jobs import RedisJobQueue
from service.core.ports import JobQueue
from service.core.types import Job, JobEvent, JobState, Lease
from tests.service.waiting import WAIT_S, FakeClock, wait_until

LEASE_S = 0.6
RENEWED_LEASES = 3
DOCUMENTED_KEYS = re.compile(
    r"queue:[^:]+:(high|normal|low)|delayed:[^:]+|turns|job:[^:]+|events:[^:]+|jobs(:(queued|running|succeeded|failed|cancelled|dead))?|key:[0-9a-f]{64}|ended|webhooks(:sent)?|worker:[^:]+|workers"
)


@dataclass
class Harness:
    """A fresh queue; `others` makes further ones on the same server, with other limits."""

    kind: str
    queue: Any
    clock: FakeClock | None = None
    options: dict[str, Any] = field(default_factory=dict)
    client: Any = None
    prefix: str = ""

    async def lapse(self, lease: Lease, seconds: float = LEASE_S) -> None:
        """Wait until an unrenewed lease has run out."""
        if self.clock is not None:
            self.clock.advance(seconds + 0.001)
            return
        queue_key = f"{self.prefix}:queue:{lease.job.tag}:{lease.job.priority}"
        job_key = f"{self.prefix}:job:{lease.job.id}"

        async def run_out() -> bool:
            now = await self.client.time()
            until = await self.client.hget(job_key, "lease_until")
            idle = await self.client.xpending_range(queue_key, "workers", "-", "+", 10, idle=int(LEASE_S * 1000))
            return now[0] * 1000 + now[1] // 1000 > int(until) and len(idle) > 0

        await wait_until(run_out)

    def with_options(self, **options: Any) -> Any:
        """A new queue on the same server."""
        if self.kind == "memory":
            return MemoryJobQueue(self.clock or FakeClock(), **({"lease_s": LEASE_S} | options))
        options = {"prefix": self.prefix, "lease_s": LEASE_S} | options
        return RedisJobQueue(self.client, SystemClock(), **options)


def a_job(name: str = "job", **changes: Any) -> Job:
    """A queued job with two attempts."""
    job = Job(name, {"model": "m", "epochs": 3}, JobState.QUEUED, "default", 0, 2, 1_700_000_000.25)
    return replace(job, **changes)


async def claimed(queue: JobQueue, worker: str = "w1", tag: str = "default") -> Lease:
    """A lease on the job that must be there."""
    lease = await queue.claim(worker, [tag], wait_s=0)
    assert lease is not None
    return lease


async def running(queue: JobQueue, **changes: Any) -> Lease:
    """A job in its first attempt."""
    await queue.submit(a_job(**changes))
    return await claimed(queue, tag=changes.get("tag", "default"))


async def history(queue: JobQueue, job_id: str = "job", after: str = "0") -> list[JobEvent]:
    """All events of a finished job."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in queue.events(job_id, after=after)]


def states(events: list[JobEvent]) -> list[str]:
    """The states told, in order."""
    return [event.data["state"] for event in events if event.kind == "state"]
