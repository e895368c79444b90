"""The job queue's own speed: submissions, and empty jobs claimed and settled, next to RQ on the same server.

Everything runs in turns in one process against one embedded server with an append-only file. Ours: `JobQueue.submit`,
and a real `Supervisor` whose trainers are stubs in this process, so that claim, lease, fences, events and settling are
measured and no process is started; once without and once with a version published in the store. RQ (`pip install rq`):
`Queue.enqueue`, its `SimpleWorker` (in this process) and its `Worker` (a fork per job), with the job's result kept.

    python benchmarks/jobs.py [--jobs 300] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report  # noqa: E402
from service.adapters.clock import SystemClock  # noqa: E402
from service.adapters.embedded_redis import EmbeddedRedis  # noqa: E402
from service.adapters.file_checkpoints import FileCheckpointStore  # noqa: E402
from service.adapters.file_store import FileDatasetStore, FileModelStore  # noqa: E402
from service.adapters.redis_jobs import RedisJobQueue, connect  # noqa: E402
from service.core.job_spec import parse_spec  # noqa: E402
from service.core.types import Column, Dataset, Job, JobState, Json  # noqa: E402
from service.worker import attempt  # noqa: E402
from service.worker.protocol import TrainerJob  # noqa: E402
from service.worker.supervisor import Supervisor  # noqa: E402

TAG = "bench"
SPEC = {
    "model": "empty",
    "graph": {"format": "axon.graph"},
    "dataset": "ds",
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": "sgd",
    "epochs": 1,
    "batch_size": 1,
    "tag": TAG,
}
_POLL_S = 0.01
Side = Callable[[int], Awaitable[float]]


class StubTrainer:
    """Stands where the trainer's process does: it has finished as soon as it is started."""

    tail = ""
    publishes = True

    def __init__(self, job: TrainerJob) -> None:
        self._job = job

    @classmethod
    async def spawn(cls, job: TrainerJob, *args: Any, **options: Any) -> StubTrainer:
        """Starts nothing."""
        return cls(job)

    async def messages(self) -> AsyncIterator[Mapping[str, Json]]:
        """A finished bundle, or the word that there is none."""
        if not self.publishes:
            yield {"type": "failed", "error": "an empty job"}
            return
        path = Path(self._job.work) / "bundle.axon"
        path.write_bytes(b"empty")
        lineage = {"job": self._job.job, "metrics": {}, "attempts": self._job.attempt}
        yield {"type": "finished", "bundle": str(path), "manifest": {"lineage": lineage}}

    async def wait(self) -> int:
        """It has ended well."""
        return 0

    async def close(self) -> None:
        """Nothing is left."""


class Ours:
    """The queue, and a supervisor on a temporary store."""

    def __init__(self, root: Path, url: str) -> None:
        clock = SystemClock()
        self._root = root
        self._clock = clock
        self._redis: Any = connect(url)
        self._queue = RedisJobQueue(self._redis, clock, max_jobs=10**6, max_unfinished=10**6)
        self._store = FileModelStore(root, clock)
        self._datasets = FileDatasetStore(root)
        folder = self._datasets.scratch()
        np.save(folder / "y.npy", np.zeros(1, np.float32))
        column = Column("y", "FP32", ())
        self._datasets.add(folder, Dataset("ds", "empty", 1, (column,), "0" * 64, 4, 1.0, folder))
        self._spec = parse_spec(SPEC).to_json()
        self._made = 0

    async def submit(self, jobs: int) -> float:
        """Jobs per second, one call after another."""
        begin = time.perf_counter()
        for _ in range(jobs):
            await self._queue.submit(self._job())
        return jobs / (time.perf_counter() - begin)

    async def settle_failed(self, jobs: int) -> float:
        """Jobs per second of a supervisor, without a version."""
        return await self._work(jobs, publishes=False)

    async def settle_published(self, jobs: int) -> float:
        """Jobs per second of a supervisor, each with a version in the store."""
        return await self._work(jobs, publishes=True)

    async def close(self) -> None:
        """Give everything back."""
        await self._queue.close()
        self._store.close()
        self._datasets.close()

    def _job(self) -> Job:
        self._made += 1
        return Job(f"j{self._made}", self._spec, JobState.QUEUED, TAG, 0, 3, time.time())

    async def _work(self, jobs: int, *, publishes: bool) -> float:
        """Works off what `submit` has left behind, then exactly `jobs` more."""
        StubTrainer.publishes = publishes
        await self._drain()
        await self.submit(jobs)
        begin = time.perf_counter()
        await self._drain()
        return jobs / (time.perf_counter() - begin)

    async def _unfinished(self) -> int:
        return sum([await self._redis.zcard(f"{{axon}}:jobs:{state}") for state in ("queued", "running")])

    async def _drain(self) -> None:
        stop = asyncio.Event()
        supervisor = Supervisor(
            queue=self._queue,
            store=self._store,
            datasets=self._datasets,
            checkpoints=FileCheckpointStore(self._root),
            worker_id="bench",
            tags=[TAG],
            work_dir=self._root / "work",
            lease_s=15.0,
            clock=self._clock,
        )
        working = asyncio.create_task(supervisor.run(stop))
        while await self._unfinished():  # noqa: ASYNC110, the server tells nobody that it is idle
            await asyncio.sleep(_POLL_S)
        stop.set()
        await working


class Rq:
    """The same with RQ; what its workers print is kept away."""

    def __init__(self, url: str) -> None:
        import rq

        logging.getLogger("rq").setLevel(logging.CRITICAL)
        self._rq: Any = rq
        self._redis = Redis.from_url(url)
        self._queue: Any = rq.Queue(TAG, connection=self._redis)

    async def submit(self, jobs: int) -> float:
        """Jobs per second, one call after another."""
        begin = time.perf_counter()
        for _ in range(jobs):
            self._queue.enqueue(time.time)
        return jobs / (time.perf_counter() - begin)

    async def simple(self, jobs: int) -> float:
        """Jobs per second of a worker without processes."""
        return await self._work(jobs, self._rq.SimpleWorker)

    async def forking(self, jobs: int) -> float:
        """Jobs per second of the usual worker."""
        return await self._work(min(jobs, 50), self._rq.Worker)

    async def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    async def _work(self, jobs: int, kind: Any) -> float:
        self._queue.empty()
        await self.submit(jobs)
        worker = kind([self._queue], connection=self._redis)
        begin = time.perf_counter()
        worker.work(burst=True, logging_level="CRITICAL")
        return jobs / (time.perf_counter() - begin)


async def run(jobs: int, rounds: int, report: Report) -> None:
    """All sides in turns; medians."""
    attempt.Child = StubTrainer  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedRedis(Path(folder) / "queue")
        await server.start()
        ours = Ours(Path(folder), server.url)
        sides: dict[tuple[str, str], Side] = {
            ("submit", "ours"): ours.submit,
            ("claim and settle", "ours, no version"): ours.settle_failed,
            ("claim, publish and settle", "ours, a version each"): ours.settle_published,
        }
        theirs = None
        with contextlib.suppress(ImportError):
            theirs = Rq(server.url)
            sides |= {
                ("submit", "RQ"): theirs.submit,
                ("claim and settle", "RQ SimpleWorker"): theirs.simple,
                ("claim and settle", "RQ Worker (forks)"): theirs.forking,
            }
        rates: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                rates[name].append(await side(jobs))
        for (work, name), found in rates.items():
            report.add(work, name, "jobs_per_s", statistics.median(found))
        await ours.close()
        if theirs is not None:
            await theirs.close()
        await server.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    report = Report("The job queue: jobs per second")
    asyncio.run(run(arguments.jobs, arguments.rounds, report))
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
