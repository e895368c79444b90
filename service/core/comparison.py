"""Jobs side by side: in which fields of their specs they differ, and how each has done."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from service.core.errors import InvalidRequest, shown
from service.core.experiment_spec import Watched, mode_of
from service.core.job_spec import public
from service.core.ports import Clock, JobQueue
from service.core.progress import Point, series_of
from service.core.spec_reader import is_number
from service.core.sweeps import watched_of
from service.core.types import Job, JobEvent, JobState, Json

MAX_COMPARED: Final = 64
"""Jobs that a client may name; a sweep may have more."""
_KEPT: Final = 1024
_PAGE: Final = 1000
_NOT_COMPARED: Final = frozenset({"sweep", "webhook", "on_success", "ttl_s", "owner"})
_MAX_SHOWN: Final = 200
_ABSENT: Final[Any] = object()


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of a metric at the end of an epoch."""

    value: float
    epoch: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come: its last reported values, and the best ones over its epochs."""

    after: str = "0"
    epoch: int | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)

    def joined(self, events: Sequence[JobEvent], modes: Mapping[str, str]) -> Progress:
        """With the events that have come since; `modes` are of metrics whose names do not tell which is better."""
        if not events:
            return self
        points = series_of(events)
        best = dict(self.best)
        for point in (point for point in points if point.epoch_completed):
            _improve(best, point, modes)
        last = {**self.last, **{name: value for point in points for name, value in point.values.items()}}
        epoch = points[-1].epoch if points else self.epoch
        return Progress(events[-1].id, epoch, last, best)


@dataclass(frozen=True, slots=True)
class Row:
    """One of the jobs compared: the fields in which it differs, its metrics at the end (or now), its best ones.

    `seconds` is how long its attempts have run; of one that runs, how long ago it was first started.
    """

    job: Job
    spec: Mapping[str, Json]
    metrics: Mapping[str, float]
    best: Mapping[str, Best]
    epoch: int | None
    seconds: float | None

    @property
    def version(self) -> int | None:
        """What it has published."""
        return (self.job.result or {}).get("version")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order asked for, the paths of `fields` that differ, and the best job by the metric watched."""

    fields: tuple[str, ...]
    rows: tuple[Row, ...]
    watched: Watched | None
    best: str | None


class JobComparison:
    """Compares jobs; what it has read of their events it reads only once."""

    def __init__(self, queue: JobQueue, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], Progress] = OrderedDict()

    async def compare(
        self,
        ids: Sequence[str] = (),
        *,
        parent: Job | None = None,
        metric: str | None = None,
        mode: str | None = None,
    ) -> Comparison:
        """Compare the jobs named, or those of a sweep, by its metric unless another is given.

        Without any, the best is told by `validation_loss`, or `loss` where not all jobs have that. Raises
        `InvalidRequest`, `NotFound`.
        """
        jobs = await self._jobs(ids, parent)
        watched = _watched(parent, metric, mode)
        modes = {} if watched is None else {watched.metric: watched.mode}
        progress = [await self._progress(job, modes) for job in jobs]
        different = await asyncio.to_thread(differences, [public(job.spec) for job in jobs])
        rows = tuple(self._row(*each) for each in zip(jobs, different, progress, strict=True))
        watched = watched or _common(rows)
        return Comparison(tuple(different[0]), rows, watched, _best(rows, watched))

    async def _jobs(self, ids: Sequence[str], parent: Job | None) -> list[Job]:
        if (parent is None) == (not ids):
            raise InvalidRequest("compare: expected either ids or a parent")
        if parent is not None:
            if not (children := await self._queue.children(parent.id)):
                raise InvalidRequest(f"parent: expected the id of a sweep, got that of job {parent.id}")
            return children
        if len(ids) > MAX_COMPARED or len(set(ids)) < len(ids):
            raise InvalidRequest(f"ids: expected 1 to {MAX_COMPARED} different ones, got {shown(list(ids))}")
        return list(await asyncio.gather(*map(self._queue.get, ids)))

    async def _progress(self, job: Job, modes: Mapping[str, str]) -> Progress:
        key = (job.id, str(sorted(modes.items())))
        found = self._seen.pop(key, Progress())
        page = await self._queue.replay(job.id, after=found.after, limit=_PAGE)
        while page:
            found = found.joined(page, modes)
            page = await self._queue.replay(job.id, after=found.after, limit=_PAGE) if len(page) == _PAGE else []
        self._seen[key] = found
        if len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        return found

    def _row(self, job: Job, spec: Mapping[str, Json], progress: Progress) -> Row:
        metrics = dict(progress.last)
        if job.result is not None:
            metrics = {name: value for name, value in job.result.get("metrics", {}).items() if is_number(value)}
        seconds = job.ran_s if job.state.final or job.started_at is None else self._clock.time() - job.started_at
        return Row(
            job,
            spec,
            metrics,
            progress.best,
            progress.epoch,
            None if job.started_at is None else round(max(seconds, 0.0), 3),
        )


def differences(specs: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Of each spec the fields in which not all are equal, by dotted path; null where a field is not there.

    Nodes of graphs are told apart by their names.
    """
    found: list[dict[str, Json]] = [{} for _ in specs]
    kept = [{name: value for name, value in spec.items() if name not in _NOT_COMPARED} for spec in specs]
    _differ("", kept, found)
    return found


def _differ(path: str, values: Sequence[Json], found: Sequence[dict[str, Json]]) -> None:
    if all(value == values[0] for value in values):
        return
    named = [_named(value) for value in values]
    if any(each is None for each in named) or not path.count(".") < 24:
        for one, value in zip(found, values, strict=True):
            one[path] = _short(value)
        return
    for key in dict.fromkeys(key for each in named if each is not None for key in each):
        inner = f"{path}.{key}" if path else key
        _differ(inner, [each.get(key, _ABSENT) for each in named if each is not None], found)


def _named(value: Json) -> Mapping[str, Json] | None:
    """What has parts: an object, or a list of named objects; None for all else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        parts = {str(item["name"]): item for item in value}
        return parts if len(parts) == len(value) else None
    return None


def _short(value: Json) -> Json:
    """A field's value, or a text where it is long: graphs may differ as a whole."""
    if value is _ABSENT:
        return None
    text = str(value)
    return value if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"


def _improve(best: dict[str, Best], point: Point, modes: Mapping[str, str]) -> None:
    for name, value in point.values.items():
        mode = modes.get(name) or mode_of(name)
        known = best.get(name)
        if mode is not None and (known is None or Watched(name, mode).is_better(value, known.value)):
            best[name] = Best(value, point.epoch)


def _watched(parent: Job | None, metric: str | None, mode: str | None) -> Watched | None:
    if mode not in (None, "min", "max"):
        raise InvalidRequest(f"mode: expected min or max, got {shown(mode)}")
    if metric is None:
        found = None if parent is None else watched_of(parent)
        return found if mode is None or found is None else replace(found, mode=mode)
    if (found_mode := mode or mode_of(metric)) is None:
        raise InvalidRequest(f"mode: expected min or max, as the name {shown(metric)} does not tell, got nothing")
    return Watched(metric, found_mode)


def _common(rows: Iterable[Row]) -> Watched | None:
    """The first of the usual metrics that all jobs which tell any have."""
    told = [row.metrics for row in rows if row.metrics]
    names = ("validation_loss", "loss")
    return next((Watched(name, "min") for name in names if told and all(name in each for each in told)), None)


def _best(rows: Iterable[Row], watched: Watched | None) -> str | None:
    """The succeeded job with the best metric at its end, of equal ones the first."""
    best: Row | None = None
    for row in rows:
        if watched is None or row.job.state is not JobState.SUCCEEDED or watched.metric not in row.metrics:
            continue
        if best is None or watched.is_better(row.metrics[watched.metric], best.metrics[watched.metric]):
            best = row
    return None if best is None else best.job.id
