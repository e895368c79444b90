"""Metrics of training and of the other processes: what the job queue and the store know, asked when somebody scrapes.

Every replica of the API tells the same, so take the maximum of them. What does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.core.errors import ServiceError
from service.core.ports import JobQueue
from service.core.types import JobCounts, Replica, WorkerInfo

_WITHIN_S = 2.0
_MAX_TAGS = 100

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was there at the last look; None where nobody answered."""

    counts: JobCounts | None = None
    workers: Sequence[WorkerInfo] | None = None
    replicas: int | None = None


@final
class JobCollector(Collector):
    """Jobs by state, those that wait by tag, workers by state, serving processes.

    Tags are those that live workers take, and never more than a hundred: clients may give their jobs any.
    """

    def __init__(self, queue: JobQueue, replicas: Callable[[], Awaitable[Sequence[Replica]]]) -> None:
        self._queue = queue
        self._replicas = replicas
        self._known = _Known()
        self._looking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Look, for two seconds at most; those who come meanwhile wait for the same look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    def collect(self) -> Iterator[Metric]:
        """The families as they stood at the last look."""
        known = self._known
        if known.counts is not None:
            yield from _jobs(known.counts)
        if known.workers is not None:
            states = Counter(worker.state for worker in known.workers)
            workers = GaugeMetricFamily("axon_workers", "Workers whose heart beats, by state", labels=("state",))
            for state in ("idle", "training", "waiting", "broken"):
                workers.add_metric([state], states[state])
            yield workers
            slots = sum(worker.slots for worker in known.workers)
            yield GaugeMetricFamily("axon_worker_slots", "Jobs that all workers can train at a time", value=slots)
        if known.replicas is not None:
            yield GaugeMetricFamily("axon_replicas", "Serving processes that tell of themselves", value=known.replicas)

    async def _look(self) -> None:
        jobs, replicas = await asyncio.gather(_answer(self._jobs()), _answer(self._replicas()))
        counts, workers = jobs or (None, None)
        self._known = _Known(counts, workers, None if replicas is None else len(replicas))

    async def _jobs(self) -> tuple[JobCounts, Sequence[WorkerInfo]]:
        workers = await self._queue.workers()
        tags = sorted({tag for worker in workers for tag in worker.tags})[:_MAX_TAGS]
        return await self._queue.counts(tags), workers


async def _answer(asked: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await asked
    except (ServiceError, OSError, TimeoutError) as error:
        _log.debug("metrics: no answer: %s", error)
        return None


def _jobs(counts: JobCounts) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("axon_jobs", "Training jobs that the queue knows, by state", labels=("state",))
    for state, count in counts.states.items():
        jobs.add_metric([str(state)], count)
    yield jobs
    yield GaugeMetricFamily("axon_dead_jobs", "Failed jobs whose attempts were used up", value=counts.dead)
    waiting = GaugeMetricFamily("axon_waiting_jobs", "Jobs that wait for a worker with their tag", labels=("tag",))
    for tag, count in counts.waiting.items():
        waiting.add_metric([tag], count)
    yield waiting
