"""A sweep's request, turned into the job that stands for it and the jobs that it tries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from service.core.errors import InvalidRequest, TooLarge
from service.core.job_spec import JobSpec
from service.core.sweep_spec import Sweep, alone, children_of, each_checked, read_sweep
from service.core.sweeps import child_id
from service.core.types import Job, Json, Priority

MAX_SPECS: Final = 8
"""All jobs of a sweep together may have specs as large as so many single ones."""


@dataclass(frozen=True, slots=True)
class Submitting:
    """What is done with the spec of any job.

    `resolve` finds what its names mean now and `check`, which blocks, what is wrong with it: both raise
    `InvalidRequest`. `queued` makes the new job with an idempotency key, and tells the bytes of its spec; it raises
    `TooLarge`.
    """

    resolve: Callable[[JobSpec], Awaitable[JobSpec]]
    check: Callable[[JobSpec], None]
    queued: Callable[[JobSpec, str], tuple[Job, int]]


def is_sweep(spec: Json) -> bool:
    """Whether a request asks for a sweep."""
    return isinstance(spec, dict) and spec.get("sweep") is not None


def asked_again(spec: Mapping[str, Json]) -> dict[str, Json]:
    """The request of a sweep that was queued."""
    start = spec.get("start")
    return {**spec, "start": start.get("asked", start) if isinstance(start, dict) else start}


async def sweep_of(spec: Mapping[str, Json], key: str, how: Submitting, *, max_spec_bytes: int) -> list[Job]:
    """The sweep's own job and those that it tries, all checked; raises `InvalidRequest`, `TooLarge`.

    Its own spec has the values of the first of them beside `sweep`. Its last step is short, so it goes before others.
    """
    base = {name: value for name, value in spec.items() if name != "sweep"}
    sweep, specs = await asyncio.to_thread(_specs, base, spec["sweep"], max_spec_bytes)
    specs = await _resolved(specs, how.resolve)
    await asyncio.to_thread(each_checked, specs, how.check)
    return await asyncio.to_thread(_jobs, sweep, specs, key, how, max_spec_bytes)


def _specs(base: Mapping[str, Json], asked: Json, max_spec_bytes: int) -> tuple[Sweep, list[JobSpec]]:
    sweep = read_sweep(asked)
    settings = sweep.settings()
    try:
        size = len(json.dumps(base))
    except RecursionError:
        raise InvalidRequest("job spec: expected JSON of less depth, got more levels than can be written") from None
    if size * len(settings) > MAX_SPECS * max_spec_bytes:  # before so many are read and checked
        expected = f"specs of at most {MAX_SPECS * max_spec_bytes} bytes together"
        raise TooLarge(f"sweep: expected {expected}, got {len(settings)} of {size}")
    return children_of(base, sweep, settings)


async def _resolved(specs: Sequence[JobSpec], resolve: Callable[[JobSpec], Awaitable[JobSpec]]) -> list[JobSpec]:
    outcomes = await asyncio.gather(*map(resolve, specs), return_exceptions=True)

    def result(outcome: JobSpec | BaseException) -> JobSpec:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return each_checked(outcomes, result)


def _jobs(sweep: Sweep, specs: Sequence[JobSpec], key: str, how: Submitting, max_spec_bytes: int) -> list[Job]:
    parent, total = how.queued(specs[0], key)
    parent = replace(
        parent, spec={**parent.spec, "sweep": sweep.to_json()}, priority=Priority.HIGH, children=len(specs)
    )
    jobs = [parent]
    for number, spec in enumerate(specs):
        job, size = how.queued(alone(spec), "")
        total += size
        if total > MAX_SPECS * max_spec_bytes:
            expected = f"specs of at most {MAX_SPECS * max_spec_bytes} bytes together"
            raise TooLarge(f"sweep: expected {expected}, got more by its job {number}")
        jobs.append(replace(job, id=child_id(parent.id, number), parent=parent.id, created_at=parent.created_at))
    return jobs
