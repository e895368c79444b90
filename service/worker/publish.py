"""A finished job's version: exactly one, however often the finish is repeated.

A number is allocated, reserved for the job (fenced, once), published in the store (once per number); then follow alias
and loading, and the job is settled. A repetition finds the reservation, then its own version. A crash between the first
two steps loses a number, nothing else: numbers need not be without gaps, only grow and never be given twice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from service.core.desired import heaviest, pointed, wanted
from service.core.errors import NotFound
from service.core.experiment_spec import Watched
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


async def promote(queue: JobQueue, store: ModelStore, lease: Lease, result: Mapping[str, Json]) -> Mapping[str, Json]:
    """Load the new version and move its alias, as the job's `on_success` says; returns the result with what was done.

    Where an alias was asked for, the result says in `promoted` whether it was moved, and in `reason` why. The lease is
    proved after the model's state was read and the versions were compared, and the state is changed only if it still is
    that one: who lost the job meanwhile cannot undo what was changed since. Raises `StaleLease`.
    """
    asked = OnSuccess.from_json(lease.job.spec.get("on_success", {}))
    if asked.alias is None and not asked.load:
        return result
    name, version = str(result["model"]), int(result["version"])
    while True:
        state = await asyncio.to_thread(store.state, name)
        promoted, reason = await asyncio.to_thread(_decide, store, state, asked, result)
        await queue.renew(lease)
        try:
            await asyncio.to_thread(store.change, name, _change(state, asked, version, moves=promoted))
        except _ChangedMeanwhile:
            continue
        return dict(result) if asked.alias is None else {**result, "promoted": promoted, "reason": reason}


class _ChangedMeanwhile(Exception):
    """The model's state is not the one that was read."""


def _change(seen: ModelState, asked: OnSuccess, version: int, *, moves: bool) -> Callable[[ModelState], ModelState]:
    """The change of a model's state, of none but the one that was seen."""

    def change(state: ModelState) -> ModelState:
        if state.generation != seen.generation:
            raise _ChangedMeanwhile
        if moves and asked.alias is not None:
            return pointed(state, asked.alias, version)
        return wanted(state, version) if asked.load or moves else state

    return change


def _decide(store: ModelStore, state: ModelState, asked: OnSuccess, result: Mapping[str, Json]) -> tuple[bool, str]:
    """Whether the alias is to be moved, and why."""
    if asked.alias is None:
        return False, ""
    target, better = state.aliases.get(asked.alias), asked.if_better
    if better is None:
        return True, "without a condition"
    if target is None:
        return True, f"no version was {asked.alias}"
    current = heaviest(target)
    if current == result["version"]:
        return True, f"version {current} is {asked.alias} already"
    try:
        lineage = store.version(state.name, current).manifest.get("lineage") or {}
    except NotFound:
        return True, f"version {current}, which was {asked.alias}, is gone"
    ours, theirs = (_number(metrics, better) for metrics in (result["metrics"], lineage.get("metrics")))
    compared = f"{better.metric} {_shown(ours)}, that of version {current} {_shown(theirs)}"
    if ours is None:
        return False, compared
    return theirs is None or better.is_better(ours, theirs), compared


def _number(metrics: Json, watched: Watched) -> float | None:
    """A version's metric; None where it is not known, or not finite."""
    value = metrics.get(watched.metric) if isinstance(metrics, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.6g}"


def _result(name: str, version: int, manifest: Mapping[str, Json]) -> dict[str, Json]:
    return {"model": name, "version": version, "metrics": manifest["lineage"]["metrics"]}
