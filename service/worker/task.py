"""What one attempt at a job has to do, and what it takes from the stores: the same on every host of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from service.core.ports import CheckpointStore, DatasetStore, ModelStore
from service.core.types import Json, Lease
from service.worker.protocol import TrainerJob
from service.worker.starting import find_start


class Stores(Protocol):
    """Where a job's parts lie."""

    @property
    def store(self) -> ModelStore:
        """Models."""

    @property
    def datasets(self) -> DatasetStore:
        """Data sets."""

    @property
    def checkpoints(self) -> CheckpointStore:
        """Checkpoints."""


@dataclass(frozen=True, slots=True)
class Task:
    """An attempt at a job: its request, and the pointer to the checkpoint to go on from, None at the beginning."""

    job: str
    attempt: int
    spec: Mapping[str, Json]
    checkpoint: Mapping[str, Json] | None
    worker: str
    started_at: float | None

    @classmethod
    def of(cls, lease: Lease) -> Self:
        """That of a lease."""
        job = lease.job
        return cls(job.id, lease.attempt, job.spec, job.checkpoint, lease.worker, job.started_at)

    def to_json(self) -> dict[str, Json]:
        """For another host; its constructor takes it back."""
        return asdict(self)


async def trainer_job(stores: Stores, task: Task, folder: Path) -> TrainerJob:
    """What a trainer needs, which works in `folder`, an absolute path.

    Raises `NotFound` for what has been deleted since the job was submitted, `OSError` when a store fails, `NotReady`
    when it is away.
    """
    spec = task.spec
    dataset = await asyncio.to_thread(stores.datasets.get, str(spec["dataset"]))
    found: dict[str, Any] = {}
    if (chosen := spec.get("validation_dataset")) is not None:
        validation = await asyncio.to_thread(stores.datasets.get, str(chosen))
        columns = await asyncio.to_thread(stores.datasets.columns, validation)
        found = {"validation": str(columns.absolute()), "validation_sha256": validation.sha256}
    checkpoint = None
    if task.checkpoint is not None:
        checkpoint = str((await asyncio.to_thread(stores.checkpoints.get, task.checkpoint)).absolute())
    start = await asyncio.to_thread(find_start, stores.store, stores.checkpoints, spec, resumes=checkpoint is not None)
    return TrainerJob(
        job=task.job,
        attempt=task.attempt,
        spec=spec,
        dataset=str((await asyncio.to_thread(stores.datasets.columns, dataset)).absolute()),
        dataset_sha256=dataset.sha256,
        checkpoint=checkpoint,
        work=str(folder),
        worker=task.worker,
        started_at=task.started_at,
        start_bundle=start.bundle,
        start_checkpoint=start.checkpoint,
        labels=next((column.labels for column in dataset.columns if column.name == spec["target"]), ()),
        **found,
    )
