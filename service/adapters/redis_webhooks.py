"""Which jobs have webhooks to be sent, and how far each has come, on the queue's server.

A job is taken by raising the time when it is due by a lease: of any number of processes one sends, and when that dies
another goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.adapters.redis_jobs import PREFIX
from service.core.errors import NotReady
from service.core.webhook_delivery import Due


class RedisWebhookStore:
    """The `WebhookStore` port on a Redis server."""

    def __init__(self, client: Redis, *, prefix: str = PREFIX) -> None:
        """`client` decodes replies; `prefix` as that of the queue."""
        self._redis: Any = client
        self._keys = [f"{prefix}:webhooks", f"{prefix}:webhooks:sent"]
        self._claim = client.register_script((files("service.adapters") / "lua" / "webhook_claim.lua").read_text())

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()

    async def add(self, job_id: str) -> None:
        """Have a job's webhooks sent from now on."""
        with _translated():
            await self._redis.zadd(self._keys[0], {job_id: 0}, nx=True)

    async def claim(self, *, lease_s: float, limit: int) -> list[Due]:
        """Take jobs that are due; nobody else gets them for `lease_s`."""
        with _translated():
            found = await self._claim(keys=self._keys, args=[int(lease_s * 1000), limit])
        return [_due(job_id, state) for job_id, state in zip(found[::2], found[1::2], strict=True)]

    async def put(self, due: Due, *, delay_s: float) -> None:
        """Store how far a job has come; it is due again after `delay_s`."""
        with _translated():
            seconds, microseconds = await self._redis.time()
            at = seconds * 1000 + microseconds // 1000 + int(delay_s * 1000)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._keys[1], due.job_id, f"{due.after} {due.failures}")
                pipe.zadd(self._keys[0], {due.job_id: at})
                await pipe.execute()

    async def remove(self, job_id: str) -> None:
        """Forget a job: everything was sent."""
        with _translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(self._keys[1], job_id)
                pipe.zrem(self._keys[0], job_id)
                await pipe.execute()


def _due(job_id: str, state: str) -> Due:
    after, _, failures = state.partition(" ")
    return Due(job_id, after or "0", int(failures or 0))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise NotReady(f"the job queue's server is away: {error}", retry_after_s=1.0) from error
