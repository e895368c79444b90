"""The last step of a sweep, which needs no trainer: its best job is chosen, what the others published goes.

The choice follows from how the jobs have ended, so a repetition, by whichever worker, chooses the same one. From its
reservation on the sweep can no longer be cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from service.core.errors import Conflict, NotFound
from service.core.ports import JobQueue, ModelStore
from service.core.sweeps import best_of, result_of, watched_of, why_none
from service.core.types import Job, Json, Lease


async def choose(queue: JobQueue, lease: Lease) -> Mapping[str, Json]:
    """The sweep's result: its best job's, whose version is reserved for the sweep as well.

    Raises `NotFound` with the reasons when no job has a version to be chosen, `Conflict` when the sweep is to be
    cancelled, `StaleLease`.
    """
    watched = watched_of(lease.job)
    children = await queue.children(lease.job.id)
    best = best_of(children, watched)
    if best is None:
        raise NotFound(why_none(children, watched))
    result = result_of(children, best, watched)
    await queue.reserve(lease, str(result["model"]), int(result["version"]))
    return result


async def discard(queue: JobQueue, store: ModelStore, lease: Lease, result: Mapping[str, Json]) -> None:
    """Delete the versions of the jobs that were not chosen, if so asked; those that somebody uses stay.

    Raises `StaleLease`.
    """
    if lease.job.spec["sweep"]["keep"] != "best":
        return
    children = await queue.children(lease.job.id)
    await queue.renew(lease)
    await asyncio.to_thread(_delete, store, children, int(result["version"]))


def _delete(store: ModelStore, children: Sequence[Job], chosen: int) -> None:
    for name, version in (job.reserved for job in children if job.reserved is not None):
        if version != chosen:
            with contextlib.suppress(NotFound, Conflict):  # gone already, or loaded, or an alias points at it
                store.delete(name, version)
