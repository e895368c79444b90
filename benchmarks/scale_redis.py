"""What the calls of a day cost the queue's server: the real scripts on a real server, with as many jobs in it.

CPU seconds of all the server's threads, from /proc, so that other work on the machine matters little. It need not wait
for the disk here (`appendfsync no`), which costs time and next to no CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.types import Job, JobState, Lease, Priority, WorkerInfo

PROGRESS = {
    "step": 12_345,
    "steps": 100_000,
    "epoch": 3,
    "epochs": 20,
    "loss": 0.123456789,
    "accuracy": 0.987654321,
    "samples_per_s": 12345.6,
    "eta_s": 123.4,
}
SPEC = {"graph": {"nodes": [{"name": f"layer_{i}", "op": "dense", "options": {"units": 128}} for i in range(40)]}}
ROUNDS = 300


def job(name: str, tag: str = "gpu") -> Job:
    """A queued job with a graph of 40 layers."""
    return Job(name, SPEC, JobState.QUEUED, tag, 0, 3, 1.0, priority=Priority.NORMAL)


class Server:
    """A queue of its own, and its server's CPU time."""

    def __init__(self, queue: RedisJobQueue, server: EmbeddedRedis) -> None:
        self.queue = queue
        self._server = server

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        threads = Path(f"/proc/{self._server.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    async def cost_us(self, call: Callable[[int], Awaitable[object]], rounds: int = ROUNDS) -> float:
        """Microseconds of the server per call."""
        before = self.cpu_s()
        for number in range(rounds):
            await call(number)
        return (self.cpu_s() - before) / rounds * 1e6

    async def memory_bytes(self) -> int:
        """What it holds."""
        return int((await self.queue._redis.info("memory"))["used_memory"])


async def measure(depth: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of the server per call with `depth` jobs waiting; bytes per job and per event of one that trains."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis(Path(folder))
        await server.start()
        queue = RedisJobQueue(connect(server.url), SystemClock(), max_jobs=10**6, max_unfinished=10**6)
        try:
            return await _measure(Server(queue, server), depth)
        finally:
            await queue.close()
            await server.stop()


async def _measure(server: Server, depth: int) -> tuple[dict[str, float], dict[str, float]]:
    queue, leases = server.queue, list[Lease]()
    await queue._redis.config_set("appendfsync", "no")
    empty = await server.memory_bytes()
    for number in range(depth):
        await queue.submit(job(f"deep{number}"))
    sizes = {"job": (await server.memory_bytes() - empty) / depth}

    async def claim(_: int) -> None:
        lease = await queue.claim("w", ["gpu"], wait_s=0.0)
        assert lease is not None
        leases.append(lease)

    costs = {
        "submit": await server.cost_us(lambda number: queue.submit(job(f"more{number}"))),
        "take": await server.cost_us(lambda number: queue.claim("w", ["idle"], wait_s=0.0)),
        "claim": await server.cost_us(claim),
        "renew": await server.cost_us(lambda number: queue.renew(leases[number])),
    }
    before = await server.memory_bytes()
    costs["append"] = await server.cost_us(lambda number: queue.append(leases[0], "progress", PROGRESS), 2000)
    sizes["event"] = (await server.memory_bytes() - before) / 2000
    costs["beat"] = await server.cost_us(lambda number: queue.beat(_info(number % 50), ttl_s=15.0))
    costs["settle"] = await server.cost_us(lambda number: queue.settle(leases[number], JobState.SUCCEEDED, result={}))
    return costs, sizes


def _info(number: int) -> WorkerInfo:
    return WorkerInfo(f"w{number}", ("gpu",), "cuda", "training", "job", "0.1.0", 0.0)
