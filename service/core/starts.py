"""Where a job starts from, when it is submitted: names become the version or the checkpoint that they mean then."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from service.core.desired import heaviest
from service.core.errors import InvalidRequest, NotFound, Problem, shown
from service.core.experiment_spec import Start
from service.core.job_spec import stored_spec
from service.core.ports import CheckpointStore, JobQueue, ModelStore
from service.core.routing import DEFAULT_ALIAS
from service.core.types import BundleReport, Job, JobState, Json, StoredVersion, Target, TensorSpec


class Starts:
    """Finds what a `start` names, in the stores and among the jobs."""

    def __init__(self, models: ModelStore, checkpoints: CheckpointStore, queue: JobQueue) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._queue = queue

    async def resolve(self, start: Start) -> Start:
        """The version's number, or the ended job's version or checkpoint; raises `InvalidRequest`."""
        asked = start.to_json()
        if start.job is None:
            number = await asyncio.to_thread(self._number, str(start.model), start.version)
            return Start(start.model, number, asked=asked)
        try:
            job = await self._queue.get(start.job)
        except NotFound:
            _refuse("start.job", "the id of a job", shown(start.job))
        if not job.state.final:
            _refuse("start.job", "a job that has ended", f"one that is {job.state}")
        if job.state is JobState.SUCCEEDED and job.result is not None:
            number = await asyncio.to_thread(self._number, str(job.result["model"]), int(job.result["version"]))
            return Start(str(job.result["model"]), number, job.id, asked=asked)
        return replace(await asyncio.to_thread(self._checkpoint, job), asked=asked)

    def version(self, start: Start) -> StoredVersion | None:
        """The version whose model a resolved start trains; None where it is a graph's. Blocking.

        Raises `InvalidRequest` when it was deleted meanwhile.
        """
        if start.graph is not None:
            return None
        try:
            return self._models.version(str(start.model), int(str(start.version)))
        except NotFound as error:
            _refuse("start", "a version that is stored", str(error))

    def bundle(self, stored: StoredVersion) -> Path:
        """A version's bundle on this machine. Blocking; raises `NotFound`."""
        return self._models.bundle(stored)

    def _number(self, model: str, version: int | str | None) -> int:
        try:
            state = self._models.state(model)
            numbers = [stored.version for stored in self._models.versions(model)]
        except NotFound:
            _refuse("start.model", "the name of a model that is stored", shown(model))
        known = [*map(str, numbers), *sorted(state.aliases)]
        target: Target
        if version is None:
            target = state.aliases.get(DEFAULT_ALIAS, max(numbers, default=0))
        else:
            target = state.aliases.get(version, 0) if isinstance(version, str) else version
        number = heaviest(target)
        if number not in numbers:
            got = "none" if version is None else shown(version)
            _refuse("start.version", f"a version or alias of {model}: {', '.join(known) or 'there are none'}", got)
        return number

    def _checkpoint(self, job: Job) -> Start:
        if job.checkpoint is None:
            _refuse("start.job", "a job that succeeded or has a checkpoint", f"one that {job.state} without")
        if not self._checkpoints.exists(job.checkpoint):
            _refuse("start.job", "a job whose checkpoint is still there", f"one without {job.checkpoint['path']}")
        spec = stored_spec(job.spec)
        before = Start() if spec.start is None else spec.start
        return Start(
            model=before.model,
            version=before.version,
            job=job.id,
            checkpoint=job.checkpoint,
            graph=before.graph if spec.graph is None else spec.graph,
            marks=(*before.marks, (spec.freeze, spec.unfreeze)),
        )


def stored_report(stored: StoredVersion) -> BundleReport:
    """What the engine said of a version when it was stored."""
    manifest = stored.manifest
    return BundleReport(
        inputs=tuple(map(_tensor, manifest["inputs"])),
        outputs=tuple(map(_tensor, manifest["outputs"])),
        parameters=manifest["parameters"],
        parameter_bytes=manifest["parameter_bytes"],
        summary="",
        serving=manifest.get("serving") or {},
        own_inputs=tuple(map(_tensor, manifest.get("own_inputs", ()))),
        own_outputs=tuple(map(_tensor, manifest.get("own_outputs", ()))),
    )


def _tensor(value: Mapping[str, Json]) -> TensorSpec:
    return TensorSpec(value["name"], value["datatype"], tuple(value["shape"]))


def _refuse(path: str, expected: str, got: str) -> NoReturn:
    raise InvalidRequest.from_problems("job spec", [Problem(path, expected, got)]) from None
