"""What the loss of a worker costs: seconds until another goes on with its jobs, and the share of work done again.

Real training of an MLP on MNIST through the real processes with the default lease of 15 s and the default checkpoints
(every 10 s): `axon worker --slots 2` is killed by SIGKILL with all its trainers, at a random moment after its jobs'
first checkpoints; a second worker stands by. Without `../shared/data/mnist.npz` random images of that size do.

    python benchmarks/recovery.py [--rounds 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report  # noqa: E402
from service.adapters.clock import SystemClock  # noqa: E402
from service.adapters.embedded_redis import EmbeddedRedis  # noqa: E402
from service.adapters.file_store import FileDatasetStore  # noqa: E402
from service.adapters.redis_jobs import RedisJobQueue, connect  # noqa: E402
from service.core.job_spec import parse_spec  # noqa: E402
from service.core.types import Column, Dataset, Job, JobEvent, JobState  # noqa: E402

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
ROWS, BATCH, EPOCHS, SLOTS = 60_000, 128, 400, 2
SEED, WITHIN_S = 20261, 120.0
GRAPH = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, 784], "dtype": "f32"}},
        {"name": "hidden", "op": "dense", "inputs": ["x"], "options": {"units": 128}},
        {"name": "act", "op": "relu", "inputs": ["hidden"]},
        {"name": "logits", "op": "dense", "inputs": ["act"], "options": {"units": 10}},
        {"name": "p", "op": "softmax", "inputs": ["logits"]},
    ],
    "outputs": "p",
}


def add_dataset(root: Path) -> None:
    """`ds` with columns `x` FP32 [60000, 784] and `y` INT64 [60000]."""
    if MNIST.exists():
        with np.load(MNIST) as data:
            x, y = data["x_train"].reshape(ROWS, 784) / np.float32(255), data["y_train"].astype(np.int64)
    else:
        generator = np.random.default_rng(SEED)
        x, y = generator.random((ROWS, 784), np.float32), generator.integers(0, 10, ROWS)
    store = FileDatasetStore(root)
    folder = store.scratch()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    columns = (Column("x", "FP32", (784,)), Column("y", "INT64", ()))
    store.add(folder, Dataset("ds", "mnist", ROWS, columns, "0" * 64, x.nbytes, 1.0, folder))
    store.close()


@contextlib.asynccontextmanager
async def worker(root: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`axon worker`, ended with the block unless it was killed."""
    command = (sys.executable, "-P", "-m", "service", "worker", "--data-dir", str(root), "--slots", str(SLOTS))
    environment = os.environ | {"AXON_REDIS_URL": url, "PYTHONPATH": str(ROOT)}
    with (root / "workers.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log, stdout=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def first(queue: RedisJobQueue, job: str, kind: str, attempt: int, after: str = "0") -> JobEvent:
    """The job's first event of a kind in an attempt."""
    running = 0
    async with asyncio.timeout(WITHIN_S):
        async for event in queue.events(job, after=after):
            running = event.data["attempt"] if event.data.get("state") == JobState.RUNNING else running
            if running == attempt and event.kind == kind:
                return event
    raise SystemExit(f"job {job} ended before its {kind}")


async def one_round(root: Path, url: str, queue: RedisJobQueue, number: int, wait_s: float) -> list[tuple[float, ...]]:
    """Per job: seconds to the next attempt's beginning, to its first progress, and the share of work done again."""
    names = [f"job{number}-{slot}" for slot in range(SLOTS)]
    asked = {"model": "m", "graph": GRAPH, "dataset": "ds", "target": "y", "epochs": EPOCHS, "batch_size": BATCH}
    spec = parse_spec({**asked, "loss": "categorical_cross_entropy", "optimizer": "adam"}).to_json()
    for name in names:
        await queue.submit(Job(name, spec, JobState.QUEUED, "default", 0, 3, time.time()))
    async with worker(root, url) as doomed:
        await asyncio.gather(*(first(queue, name, "checkpoint", 1) for name in names))
        async with worker(root, url):
            await asyncio.sleep(wait_s)
            doomed.send_signal(signal.SIGKILL)
            killed = time.time()
            progress = await asyncio.gather(*(first(queue, name, "progress", 2) for name in names))
            found = [await measured(queue, name, killed, event) for name, event in zip(names, progress, strict=True)]
            for name in names:
                await queue.cancel(name)
            for name in names:
                async for _ in queue.events(name):
                    pass
    return found


async def measured(queue: RedisJobQueue, name: str, killed: float, progress: JobEvent) -> tuple[float, ...]:
    """See `one_round`."""
    events = await queue.replay(name, limit=100_000)
    again = next(event for event in events if event.data.get("state") == JobState.RUNNING and event.time > killed)
    before = [event for event in events if event.time <= again.time]
    done = max(event.data["step"] for event in before if event.kind == "progress")
    saved = max(event.data["step"] for event in before if event.kind == "checkpoint")
    return again.time - killed, progress.time - killed, (done - saved) / done


async def run(rounds: int, report: Report) -> None:
    """All rounds; medians and extremes over the jobs."""
    chance, found = random.Random(SEED), list[tuple[float, ...]]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        add_dataset(root)
        server = EmbeddedRedis(root / "queue")
        await server.start()
        queue = RedisJobQueue(connect(server.url), SystemClock())
        for number in range(rounds):
            found += await one_round(root, server.url, queue, number, chance.uniform(0, 10))
            print(f"round {number + 1} of {rounds}: " + ", ".join(f"{begun:.1f} s" for begun, *_ in found[-SLOTS:]))
        await queue.close()
        await server.stop()
    names = ("next_attempt_s", "first_progress_s", "share_of_work_repeated")
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        for what, value in (("median", statistics.median(values)), ("least", min(values)), ("most", max(values))):
            report.add(f"{len(found)} jobs", what, name, value)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    report = Report("Recovery after SIGKILL of a whole worker")
    asyncio.run(run(arguments.rounds, report))
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
