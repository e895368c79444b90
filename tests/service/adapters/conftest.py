"""Queues for the contract suite: one in memory, one on a real server in keys of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.memory_jobs import MemoryJobQueue
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.ports import JobQueue
from tests.service.adapters.job_queues import DOCUMENTED_KEYS, LEASE_S, Harness
from tests.service.waiting import FakeClock


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """`REDIS_URL`, or a server of our own."""
    if (given := os.environ.get("REDIS_URL")) is not None:
        yield given
        return
    server = EmbeddedRedis(tmp_path_factory.mktemp("valkey"))
    await server.start()
    yield server.url
    await server.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def redis_harness(redis_url: str) -> AsyncIterator[Harness]:
    """The queue on the server, in keys of its own, which must all be documented ones."""
    client = connect(redis_url)
    prefix = f"{{axon-test-{secrets.token_hex(6)}}}"
    queue = RedisJobQueue(client, SystemClock(), prefix=prefix, lease_s=LEASE_S)
    yield Harness("redis", queue, client=client, prefix=prefix)
    keys = [key async for key in client.scan_iter(match=prefix + ":*", count=1000)]
    if keys:
        await client.delete(*keys)
    await client.aclose()
    leaked = [key for key in keys if not DOCUMENTED_KEYS.fullmatch(key.removeprefix(prefix + ":"))]
    assert leaked == []


@pytest_asyncio.fixture(loop_scope="module", params=["memory", "redis"])
async def harness(request: pytest.FixtureRequest, redis_harness: Harness) -> Harness:
    """Both queues in turn."""
    if request.param == "redis":
        return redis_harness
    clock = FakeClock()
    return Harness("memory", MemoryJobQueue(clock, lease_s=LEASE_S), clock)


@pytest.fixture
def queue(harness: Harness) -> JobQueue:
    """Each queue in turn."""
    return harness.queue
