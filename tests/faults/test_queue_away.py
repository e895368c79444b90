"""The queue's server goes away while a job trains and clients predict: submissions wait, nothing else does."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.client import Client
from service.core.types import JobState
from tests.faults.processes import alive, trainer_of, worker
from tests.service import background
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.workshop import Workshop, a_job, spec_json

pytestmark = [
    pytest.mark.faults,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the trainer's process in /proc"),
]

LEASE_S = 20.0


def use(url: str, spec: dict[str, object]) -> tuple[httpx.Response, float]:
    """Submit a job and, meanwhile served as ever, predict; returns the reply and the seconds of the prediction."""
    with Client(url) as client:
        began = time.monotonic()
        outputs = client.infer("doubled", {"x": np.ones((1, 2), np.float32)})
        took_s = time.monotonic() - began
        np.testing.assert_array_equal(outputs["y"], np.full((1, 2), 2, np.float32))
    return httpx.post(f"{url}/v1/jobs", json=spec, timeout=30), took_s


async def test_absent_queue_delays_submissions_only(tmp_path: Path) -> None:
    """Submit answers 503 with Retry-After; serving goes on; the worker trains on, catches up, and ends the attempt."""
    server = EmbeddedRedis(tmp_path / "queue")
    await server.start()

    def make_queue() -> RedisJobQueue:
        return RedisJobQueue(connect(server.url), SystemClock(), lease_s=LEASE_S)

    queue = make_queue()
    workshop = Workshop.open(tmp_path, lease_s=LEASE_S, queue=queue)
    try:
        with background.server(tmp_path, make_queue) as api:
            spec = await asyncio.to_thread(_prepare, api.url)
            await queue.submit(a_job())
            async with worker(tmp_path, server.url, "w1", lease_s=LEASE_S, behaviour="until_told") as process:
                trainer = await wait_until(lambda: trainer_of(process.pid))
                before = [e async for e in _until_progress(queue)][-1].data["step"]
                await server.stop()
                refused, took_s = await asyncio.to_thread(use, api.url, spec)
                assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True), refused.text
                assert took_s < 10.0  # it does not wait for the queue
                assert alive(trainer)
                await server.start()
                (tmp_path / "go").touch()
                events = await workshop.history()
            job = await queue.get("job")
            assert (job.state, job.attempt, job.error) == (JobState.SUCCEEDED, 1, None)
            assert [e.data["state"] for e in events if e.kind == "state"] == ["queued", "running", "succeeded"]
            steps = [e.data["step"] for e in events if e.kind == "progress"]
            assert steps[-1] > before
            assert len(workshop.store.versions("toy")) == 1
            accepted, _ = await asyncio.to_thread(use, api.url, spec)
            assert accepted.status_code == 201, accepted.text
            await api_closed(api)
    finally:
        await queue.close()
        await server.stop()
        workshop.close()


async def api_closed(api: background.Background) -> None:
    """Close the API's connections to the queue on its own loop."""
    await asyncio.to_thread(api.call, api.queue.close)


async def _until_progress(queue: RedisJobQueue):
    async with asyncio.timeout(WAIT_S):
        async for event in queue.events("job"):
            if event.kind == "progress":
                yield event
                return


def _prepare(url: str) -> dict[str, object]:
    """A model that is served, and a job that fits a data set."""
    with Client(url) as client:
        version = client.submit("doubled", graph={"scale": 2}, load=True)
        client.wait_served("doubled", version["version"])
        columns = {name: np.zeros((4, 2), np.float32) for name in ("x", "y")}
        dataset = client.add_dataset(columns)["id"]
    return spec_json(graph={"scale": 3}, dataset=dataset, loss="mean_squared_error", metrics=[], tag="nobody")
