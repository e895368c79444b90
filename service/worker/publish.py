"""A finished job's version: exactly one, however often the finish is repeated.

A number is allocated, reserved for the job (fenced, once), published in the store (once per number); then follow alias
and loading, and the job is settled. A repetition finds the reservation, then its own version. A crash between the first
two steps loses a number, nothing else: numbers need not be without gaps, only grow and never be given twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from service.core.errors import NotFound
from service.core.jobs import OnSuccess
from service.core.ports import JobQueue, ModelStore
from service.core.types import Job, Json, Lease, ModelState
from service.worker.faults import fault_point


def published(store: ModelStore, job: Job) -> Mapping[str, Json] | None:
    """The job's result when an earlier attempt has published its version already."""
    if job.reserved is None:
        return None
    name, version = job.reserved
    try:
        manifest = store.version(name, version).manifest
    except NotFound:
        return None
    return _result(name, version, manifest)


async def publish(
    queue: JobQueue, store: ModelStore, lease: Lease, job: Job, bundle: Path, manifest: Mapping[str, Json]
) -> Mapping[str, Json]:
    """Publish `bundle` under the job's number; returns the job's result.

    Raises `Conflict` when the job is to be cancelled or its number was deleted, `StaleLease` when it is another's.
    """
    if job.reserved is None:
        name = str(job.spec["model"])
        number = await asyncio.to_thread(store.allocate, name)
        name, number = await queue.reserve(lease, name, number)
    else:
        name, number = job.reserved
    fault_point("publishing")
    stored = await asyncio.to_thread(lambda: store.publish(name, number, bundle, manifest=manifest))
    return _result(name, number, stored.manifest)


async def promote(queue: JobQueue, store: ModelStore, lease: Lease, result: Mapping[str, Json]) -> None:
    """Load the new version and move its alias, as the job's `on_success` says.

    The lease is proved after the model's state was read, and the state is changed only if it still is that one: who
    lost the job meanwhile cannot undo what was changed since. Raises `StaleLease`.
    """
    job = lease.job
    asked = OnSuccess(**job.spec.get("on_success", {}))
    if asked.alias is None and not asked.load:
        return
    name, version = str(result["model"]), int(result["version"])
    seen = -1

    def change(state: ModelState) -> ModelState:
        if state.generation != seen:
            raise _ChangedMeanwhile
        aliases = dict(state.aliases) if asked.alias is None else {**state.aliases, asked.alias: version}
        return replace(state, loaded=state.loaded | {version}, aliases=aliases)

    while True:
        seen = (await asyncio.to_thread(store.state, name)).generation
        await queue.renew(lease)
        try:
            await asyncio.to_thread(store.change, name, change)
        except _ChangedMeanwhile:
            continue
        return


class _ChangedMeanwhile(Exception):
    """The model's state is not the one that was read."""


def _result(name: str, version: int, manifest: Mapping[str, Json]) -> dict[str, Json]:
    return {"model": name, "version": version, "metrics": manifest["lineage"]["metrics"]}
