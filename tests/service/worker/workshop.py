"""A data folder with a small data set, a job for it, and a supervisor with everything it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.adapters.clock import SystemClock
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.jobs import parse_spec
from service.core.retry import Backoff
from service.core.types import Column, Dataset, Job, JobEvent, JobState
from service.worker.child import TRAINER
from service.worker.supervisor import Supervisor
from tests.service.waiting import WAIT_S

ROWS, WIDTH, CLASSES = 96, 4, 3


def add_dataset(store: FileDatasetStore, dataset_id: str = "ds") -> Dataset:
    """`x` FP32 [96, 4] and `y` INT64 [96]: the class is the place of the largest of the first three."""
    generator = np.random.default_rng(7)
    x = generator.normal(size=(ROWS, WIDTH)).astype(np.float32)
    y = x[:, :CLASSES].argmax(axis=1).astype(np.int64)
    folder = store.scratch()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.save(folder / "wrong.npy", y + 5)
    columns = (Column("x", "FP32", (WIDTH,)), Column("y", "INT64", ()), Column("wrong", "INT64", ()))
    return store.add(folder, Dataset(dataset_id, "toy", ROWS, columns, "0" * 64, x.nbytes, 1.0, folder))


def graph() -> dict[str, Any]:
    """A little classifier, x [None, 4] -> [None, 3]."""
    return {
        "format": "axon.graph",
        "version": 1,
        "nodes": [
            {"name": "x", "op": "input", "options": {"shape": [None, WIDTH], "dtype": "f32"}},
            {"name": "hidden", "op": "dense", "inputs": ["x"], "options": {"units": 8}},
            {"name": "act", "op": "relu", "inputs": ["hidden"]},
            {"name": "drop", "op": "dropout", "inputs": ["act"], "options": {"rate": 0.1}},
            {"name": "logits", "op": "dense", "inputs": ["drop"], "options": {"units": CLASSES}},
            {"name": "p", "op": "softmax", "inputs": ["logits"]},
        ],
        "outputs": "p",
    }


def spec_json(**changes: Any) -> dict[str, Any]:
    """A valid job."""
    return {
        "model": "toy",
        "graph": graph(),
        "dataset": "ds",
        "target": "y",
        "loss": "categorical_cross_entropy",
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "metrics": ["accuracy"],
        "epochs": 3,
        "batch_size": 16,
        "seed": 5,
        **changes,
    }


def a_job(name: str = "job", **changes: Any) -> Job:
    """A queued job of a valid spec."""
    spec = parse_spec(spec_json(**changes))
    return Job(name, spec.to_json(), JobState.QUEUED, spec.tag, 0, spec.max_attempts, 1_700_000_000.0)


@dataclass
class Workshop:
    """A supervisor's surroundings in `root`."""

    root: Path
    queue: Any
    store: FileModelStore
    datasets: FileDatasetStore
    checkpoints: FileCheckpointStore
    lease_s: float

    @classmethod
    def open(cls, root: Path, *, lease_s: float = 5.0, queue: Any = None) -> Workshop:
        """A fresh data folder with the toy data set, by default with a queue in memory."""
        clock = SystemClock()
        datasets = FileDatasetStore(root)
        if not (root / "datasets" / "ds").exists():
            add_dataset(datasets)
        queue = MemoryJobQueue(clock, lease_s=lease_s) if queue is None else queue
        return cls(root, queue, FileModelStore(root, clock), datasets, FileCheckpointStore(root), lease_s)

    def supervisor(self, worker_id: str = "w1", command: Sequence[str] = TRAINER, **options: Any) -> Supervisor:
        """A supervisor of this workshop."""
        return Supervisor(
            queue=self.queue,
            store=self.store,
            datasets=self.datasets,
            checkpoints=self.checkpoints,
            worker_id=worker_id,
            tags=["default"],
            work_dir=self.root / "work",
            lease_s=self.lease_s,
            clock=SystemClock(),
            command=command,
            **{"backoff": Backoff(0.02), **options},
        )

    @contextlib.asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[asyncio.Event]:
        """A supervisor at work; stopped at the end."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.supervisor(**options).run(stop))
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(WAIT_S):
                await task

    async def history(self, job_id: str = "job", within_s: float = WAIT_S) -> list[JobEvent]:
        """All events up to the job's end."""
        async with asyncio.timeout(within_s):
            return [event async for event in self.queue.events(job_id)]

    def close(self) -> None:
        """Give the scratch folders back."""
        self.store.close()
        self.datasets.close()
