"""The kill matrix: SIGKILL exactly at every point of a job's life, of its trainer, its supervisor or both.

By itself one cell; with `FAULTS=short` every point and victim, with `FAULTS=whole` also while the queue's server or
the API is killed and started again at that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.jobs import MOVES
from service.core.types import Job, JobState
from tests.faults.processes import alive, trainer_of, worker
from tests.faults.references import parameters, train_undisturbed
from tests.service.waiting import wait_until
from tests.service.worker.workshop import Workshop, a_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

LEASE_S = 3.0
SPEC = {"epochs": 3, "batch_size": 4, "checkpoint_every_steps": 16, "metrics": []}
HITS = {"training": 40, "checkpoint_written": 2, "checkpoint_stored": 2}
VICTIMS = {
    "claimed": ("supervisor",),  # there is no trainer yet
    "importing": ("trainer", "supervisor", "both"),
    "compiling": ("trainer", "supervisor", "both"),
    "training": ("trainer", "supervisor", "both"),
    "checkpoint_written": ("trainer", "supervisor", "both"),
    "checkpoint_stored": ("trainer", "supervisor", "both"),
    "publishing": ("supervisor",),  # there is no trainer any more
    "published": ("supervisor",),
}
BESIDES = ("nothing", "redis", "api")
CELLS = [(point, victim, beside) for point, victims in VICTIMS.items() for victim in victims for beside in BESIDES]
SHORT = [cell for cell in CELLS if cell[2] == "nothing"] + [
    ("training", "both", "redis"),
    ("checkpoint_stored", "supervisor", "redis"),
    ("published", "supervisor", "redis"),
    ("publishing", "supervisor", "api"),
]
ONE = [("training", "both", "nothing")]
CHOSEN = {"whole": CELLS, "short": SHORT}.get(os.environ.get("FAULTS", ""), ONE)


@dataclass
class Scene:
    """One data folder and one queue for all cells; every cell has its own job, model and workers."""

    root: Path
    server: EmbeddedRedis
    queue: RedisJobQueue
    workshop: Workshop
    expected: dict[str, np.ndarray]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """The parameters of an undisturbed run are found once."""
    root = tmp_path_factory.mktemp("matrix")
    server = EmbeddedRedis(root / "queue")
    await server.start()
    queue = RedisJobQueue(connect(server.url, retries=20), SystemClock(), lease_s=LEASE_S)
    workshop = Workshop.open(root, lease_s=LEASE_S, queue=queue)
    dataset = workshop.datasets.get("ds")
    bundle = await asyncio.to_thread(train_undisturbed, dataset, root / "reference", SPEC)
    yield Scene(root, server, queue, workshop, parameters(bundle))
    await queue.close()
    await server.stop()
    workshop.close()


@contextlib.asynccontextmanager
async def api(scene: Scene, wanted: bool) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """`axon serve`, when it is wanted; the list holds the process of now."""
    running: list[asyncio.subprocess.Process] = []
    if wanted:
        running.append(await start_api(scene))
    try:
        yield running
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def start_api(scene: Scene) -> asyncio.subprocess.Process:
    """Returns when it answers."""
    ready = scene.root / "api.json"
    ready.unlink(missing_ok=True)
    command = (sys.executable, "-P", "-m", "service", "serve", "--http-port", "0", "--grpc-port", "0", "--quiet")
    environment = os.environ | {"AXON_REDIS_URL": scene.server.url, "AXON_JOB_LEASE_S": str(LEASE_S)}
    more = ("--data-dir", str(scene.root), "--ready-file", str(ready))
    process = await asyncio.create_subprocess_exec(*command, *more, env=environment)
    await wait_until(ready.exists)
    return process


@pytest.mark.parametrize("cell", CHOSEN, ids="-".join)
async def test_killed_job_loses_nothing(scene: Scene, cell: tuple[str, str, str]) -> None:
    """It succeeds once, as one version, with the undisturbed parameters; its states and events are in order."""
    point, victim, beside = cell
    name, flag = "-".join(cell), scene.root / f"{'-'.join(cell)}.flag"
    fault = {"AXON_FAULT_POINT": point, "AXON_FAULT_VICTIM": victim, "AXON_FAULT_FLAG": str(flag)}
    fault["AXON_FAULT_HIT"] = str(HITS.get(point, 1))
    async with api(scene, beside == "api") as running:
        await scene.queue.submit(a_job(name, model=name, tag=name, on_success={"alias": "prod"}, **SPEC))
        async with worker(scene.root, scene.server.url, f"{name}-1", lease_s=LEASE_S, TAG=name, **fault) as first:
            pids = [first.pid, await wait_until(lambda: trainer_of(first.pid))] if point != "claimed" else [first.pid]
            await wait_until(flag.exists)
            if beside == "redis":
                restarts = scene.server.restarts
                os.kill(scene.server.pid, signal.SIGKILL)
                await wait_until(lambda: scene.server.restarts > restarts)
            if beside == "api":
                running[0].kill()
                await running[0].wait()
                running.append(await start_api(scene))
            if victim == "trainer":
                await scene.workshop.history(name)
            else:
                await wait_until(lambda: not any(map(alive, pids)))
                async with worker(scene.root, scene.server.url, f"{name}-2", lease_s=LEASE_S, TAG=name):
                    await scene.workshop.history(name)
        if beside == "api":
            port = json.loads((scene.root / "api.json").read_text())["http_port"]
            async with httpx.AsyncClient() as client:
                told = (await client.get(f"http://127.0.0.1:{port}/v1/jobs/{name}")).json()
            assert told["state"] == "succeeded", told["error"]
    await check(scene, await scene.queue.get(name))


async def check(scene: Scene, job: Job) -> None:
    """What holds whatever was killed."""
    events = await scene.workshop.history(job.id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, None), events
    assert job.attempt == 2
    (version,) = scene.workshop.store.versions(job.id)
    assert job.result is not None
    assert (job.result["model"], job.result["version"]) == (job.id, version.version)
    assert scene.workshop.store.state(job.id).aliases == {"prod": version.version}
    states = [JobState(event.data["state"]) for event in events if event.kind == "state"]
    assert states[0] is JobState.QUEUED
    assert all(new in MOVES[old] for old, new in itertools.pairwise(states)), states
    assert [state for state in states if state.final] == [JobState.SUCCEEDED] == states[-1:]
    ids = [tuple(map(int, event.id.split("-"))) for event in events]
    assert ids == sorted(set(ids))
    found = parameters(version.path)
    assert found.keys() == scene.expected.keys()
    for path, value in scene.expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert job.id not in scene.workshop.checkpoints.jobs()
    left = await scene.queue._redis.keys(f"{{axon}}:queue:{job.tag}:*")
    assert left == []
