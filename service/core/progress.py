"""How a job is getting on: its series of loss and metrics, and waiting for what comes next, for clients that poll."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from service.core.errors import Overloaded
from service.core.ports import Clock, JobQueue
from service.core.types import Job, JobEvent, JobState

MAX_WAITING = 256
"""Requests that may wait at the same time in one process; more get 429."""
MAX_WAIT_S = 60.0
MAX_POINTS = 10_000
"""Points of a series that a request may ask for."""

MEASURES = frozenset(
    {
        "step",
        "steps",
        "epoch",
        "epochs",
        "epoch_completed",
        "samples_per_s",
        "eta_s",
        "device_memory_bytes",
        "device_memory_peak_bytes",
    }
)
"""What a progress event tells besides loss and metrics."""

_PAGE = 1000
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """Loss and metrics at a step, by name; at the end of an epoch those of its validation too."""

    step: int
    epoch: int | None
    epoch_completed: bool
    time: float
    values: Mapping[str, float]


def series_of(events: Iterable[JobEvent]) -> list[Point]:
    """The points of progress events in the order of their steps.

    Of steps that were made again, from a checkpoint after a crash, the last report counts.
    """
    points: list[Point] = []
    for event in events:
        step = event.data.get("step") if event.kind == "progress" else None
        if not isinstance(step, int):
            continue
        while points and points[-1].step >= step:
            points.pop()
        data = event.data
        numbers = {
            name: float(value)
            for name, value in data.items()
            if name not in MEASURES and isinstance(value, int | float) and not isinstance(value, bool)
        }
        points.append(Point(step, data.get("epoch"), bool(data.get("epoch_completed")), event.time, numbers))
    return points


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (2 or more) of the points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


class JobProgress:
    """What clients ask who do not follow a stream; REST calls nothing else for it."""

    def __init__(self, queue: JobQueue, clock: Clock, *, max_waiting: int = MAX_WAITING) -> None:
        self._queue = queue
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting = 0

    async def series(self, job_id: str) -> list[Point]:
        """Every point that its events still tell; raises `NotFound`."""
        return series_of([event async for event in self._history(job_id)])

    async def changed(self, job: Job, stopping: asyncio.Event, *, known: JobState | None, wait_s: float) -> Job:
        """The job as soon as its state is not `known` (by default that of `job`), or after `wait_s` as it is then.

        A final state is not waited for. Raises `NotFound` when it is forgotten meanwhile, `Overloaded`.
        """
        known = job.state if known is None else known

        async def look() -> bool:
            nonlocal job
            job = await self._queue.get(job.id)
            return job.state is not known or job.state.final

        if job.state is known and not job.state.final:
            await self._wait(look, stopping, wait_s)
        return job

    async def events(self, job: Job, stopping: asyncio.Event, *, after: str, wait_s: float) -> list[JobEvent]:
        """The events behind an id, at most 1000; where there is none as soon as one comes, or none after `wait_s`.

        Does not wait after the end of the job. Raises `InvalidRequest`, `NotFound`, `Overloaded`.
        """
        found = await self._queue.replay(job.id, after=after, limit=_PAGE)

        async def look() -> bool:
            nonlocal found
            state = (await self._queue.get(job.id)).state
            found = await self._queue.replay(job.id, after=after, limit=_PAGE)
            return bool(found) or state.final

        if not found and not job.state.final:
            await self._wait(look, stopping, wait_s)
        return found

    async def _history(self, job_id: str) -> AsyncIterator[JobEvent]:
        after = "0"
        while page := await self._queue.replay(job_id, after=after, limit=_PAGE):
            for event in page:
                yield event
            if len(page) < _PAGE:
                return
            after = page[-1].id

    async def _wait(self, look: Callable[[], Awaitable[bool]], stopping: asyncio.Event, wait_s: float) -> None:
        """Call `look` after growing pauses until it is true, `wait_s` are over, or `stopping` is set."""
        with self._place():
            end = self._clock.monotonic() + wait_s
            pause_s = _FIRST_PAUSE_S
            while (left_s := end - self._clock.monotonic()) > 0 and not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), min(pause_s, left_s))
                if await look():
                    return
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"waiting: expected at most {self._max_waiting} requests at a time that wait, got more")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
