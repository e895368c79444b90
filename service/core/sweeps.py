"""Sweeps: one job over many, which differ in a few fields of their spec, of which it keeps the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from service.core.experiment_spec import Watched
from service.core.types import Job, JobState, Json

_MAX_REASONS: Final = 5


def child_id(parent: str, number: int) -> str:
    """The id of a sweep's job with this number, from 0."""
    return f"{parent}.{number}"


def parent_of(job_id: str) -> str:
    """The id of the sweep that a child's id is made of."""
    return job_id.rpartition(".")[0]


def watched_of(sweep: Job) -> Watched:
    """What decides in a sweep that was queued."""
    asked = sweep.spec["sweep"]
    return Watched(asked["metric"], asked["mode"])


def value_of(job: Job, metric: str) -> float | None:
    """The metric of a job's published version; None where there is none, or it is not finite."""
    value = (job.result or {}).get("metrics", {}).get(metric)
    succeeded = job.state is JobState.SUCCEEDED
    return float(value) if succeeded and isinstance(value, int | float) and not isinstance(value, bool) else None


def best_of(children: Sequence[Job], watched: Watched) -> Job | None:
    """The succeeded job with the best value, of equal ones the first; None where none has a value."""
    best: tuple[Job, float] | None = None
    for job in children:
        value = value_of(job, watched.metric)
        if value is not None and (best is None or watched.is_better(value, best[1])):
            best = (job, value)
    return None if best is None else best[0]


def result_of(children: Sequence[Job], best: Job, watched: Watched) -> dict[str, Json]:
    """A sweep's result: that of its best job, its id, and the values of all."""
    values = [{"id": job.id, "state": str(job.state), "value": value_of(job, watched.metric)} for job in children]
    return {**(best.result or {}), "best": best.id, "children": values}


def why_none(children: Sequence[Job], watched: Watched) -> str:
    """Why a sweep has no best job."""
    counts = _counted(children)
    reasons = [f"{job.id}: {job.error}" for job in children if job.error]
    if any(job.state is JobState.SUCCEEDED for job in children):
        return f"no job of the sweep has a finite {watched.metric}; {counts}"
    more = f"; and {len(reasons) - _MAX_REASONS} more" if len(reasons) > _MAX_REASONS else ""
    return "; ".join([f"no job of the sweep has succeeded: {counts}", *reasons[:_MAX_REASONS]]) + more


def summary(sweep: Job, children: Sequence[Job]) -> dict[str, Json]:
    """How a sweep is getting on: its jobs by state, and the best so far."""
    watched = watched_of(sweep)
    best = best_of(children, watched)
    counts: Mapping[str, int] = Counter(str(job.state) for job in children)
    return {
        "metric": watched.metric,
        "mode": watched.mode,
        "children": {state.value: counts.get(state, 0) for state in JobState},
        "best": None
        if best is None
        else {
            "id": best.id,
            "value": value_of(best, watched.metric),
            "version": (best.result or {}).get("version"),
        },
    }


def _counted(children: Sequence[Job]) -> str:
    counts = Counter(str(job.state) for job in children)
    return ", ".join(f"{count} {state}" for state, count in counts.items())
