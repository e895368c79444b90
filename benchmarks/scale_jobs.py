"""A day of a training fleet, event by event, on the real queue: arrivals, claims, leases, crashes, lost machines.

What is real: `MemoryJobQueue`, which passes the same contract suite as the one in Redis, with a clock that jumps from
event to event; order and turns of priorities, leases and their recovery, attempts, delays, sweeps. What is played: how
long jobs run, and when machines die. A worker does here what `service.worker` does, at the same intervals.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import Conflict, StaleLease
from service.core.retry import Backoff
from service.core.sweeps import child_id
from service.core.types import Job, JobState, Lease, Priority
from service.worker.attempt import MAX_RENEW_EVERY_S

DAY_S = 86_400.0
LEASE_S = 15.0
CHECKPOINT_S = 10.0
START_S = 15.0
"""Of a trainer: Python, JAX, compiling."""
LOOK_S = 0.5
"""Mean time until somebody who waits looks for lost leases, once a second."""


class VirtualClock:
    """Time that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@dataclass(frozen=True)
class Kind:
    """Jobs of one tag: their share of all, and the median and spread (sigma of the logarithm) of their seconds."""

    tag: str
    share: float
    median_s: float
    sigma: float


@dataclass(frozen=True)
class Plan:
    """A fleet and what it is asked for."""

    jobs: int = 10_000
    kinds: tuple[Kind, ...] = (
        Kind("cpu", 0.56, 120.0, 1.0),
        Kind("gpu", 0.42, 180.0, 1.0),
        Kind("gpu@2", 0.02, 900.0, 0.7),
    )
    pools: tuple[tuple[int, tuple[str, ...], int], ...] = (
        (20, ("cpu",), 1),
        (18, ("gpu",), 1),
        (4, ("gpu", "cpu"), 1),
        (4, ("gpu@2",), 2),
    )
    """(workers, tags, machines of each)"""
    sweeps: int = 20
    children: int = 64
    heap_at_s: float = 10 * 3600.0
    heap: int = 800
    """One owner's jobs with the tag gpu, submitted at once."""
    heap_priority: Priority = Priority.NORMAL
    crash_every_s: float = 36_000.0
    hopeless: float = 0.005
    machine_lost_every_s: float = 5 * DAY_S
    machine_back_s: float = 600.0
    cancelled: float = 0.01


@dataclass
class Worker:
    """A worker; `run` counts its attempts, so that what was planned for an earlier one is left alone."""

    name: str
    tags: tuple[str, ...]
    machines: int
    lease: Lease | None = None
    began_at: float = 0.0
    run: int = 0
    lost: bool = False


@dataclass
class Outcome:
    """What the day showed; times in seconds."""

    waits_s: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    behind_heap_s: list[float] = field(default_factory=list)
    busy_s: dict[str, list[float]] = field(default_factory=dict)
    slots: Counter[str] = field(default_factory=Counter)
    depth: list[int] = field(default_factory=lambda: [0] * 96)
    ends: Counter[str] = field(default_factory=Counter)
    recovered_s: list[float] = field(default_factory=list)
    run_s: float = 0.0
    done_again_s: float = 0.0
    woken: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    calls_of_minute: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def called(self, what: str, now: float, count: int = 1) -> None:
        """Count calls of the queue."""
        self.calls[what] += count
        self.calls_of_minute[int(now // 60)][what] += count


class Fleet:
    """Plays the day."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan = plan
        self._chance = random.Random(seed)
        self._clock = VirtualClock()
        backoff_chance = random.Random(seed + 1)
        self._backoff = Backoff(chance=backoff_chance.random)
        self.queue = MemoryJobQueue(self._clock, lease_s=LEASE_S, max_events=20, max_kept=10**6)
        self._events: list[tuple[float, int, Callable[..., Awaitable[None]], tuple[Any, ...]]] = []
        self._count = 0
        self._needs_s: dict[str, float] = {}
        self._done_s: dict[str, float] = defaultdict(float)
        self._hopeless: set[str] = set()
        self._asked_at: dict[str, float] = {}
        self._heap: set[str] = set()
        self.outcome = Outcome()
        self._workers = self._hire()
        self._idle = {worker.name: worker for worker in self._workers}

    def _hire(self) -> list[Worker]:
        workers = []
        for count, tags, machines in self._plan.pools:
            for _ in range(count):
                workers.append(Worker(f"w{len(workers)}", tags, machines))
                self.outcome.slots[tags[0]] += 1
        self.outcome.busy_s = {tag: [0.0] * 96 for tag in self.outcome.slots}
        return workers

    async def play(self) -> Outcome:
        """The day, and then until everything has ended."""
        self._plan_day()
        while self._events:
            self._clock.now, _, act, arguments = heapq.heappop(self._events)
            await act(*arguments)
        self.outcome.calls["jobs"] = len(self._needs_s)
        return self.outcome

    def _at(self, when: float, act: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act, arguments))

    # What comes

    def _plan_day(self) -> None:
        plan, chance = self._plan, self._chance
        left = plan.jobs - plan.heap - plan.sweeps * plan.children
        for number in range(left):
            kind = chance.choices(plan.kinds, [each.share for each in plan.kinds])[0]
            level = chance.choices([Priority.HIGH, Priority.NORMAL, Priority.LOW], [0.1, 0.7, 0.2])[0]
            self._at(diurnal(chance), self._submit, self._job(f"j{number}", kind, level), ())
        for number in range(plan.sweeps):
            parent = self._job(f"s{number}", plan.kinds[0], Priority.HIGH)
            children = [self._job(child_id(parent.id, i), plan.kinds[0], Priority.NORMAL) for i in range(plan.children)]
            parent = replace(parent, children=len(children))
            self._needs_s[parent.id] = 1.0
            self._at(diurnal(chance), self._submit, parent, tuple(replace(c, parent=parent.id) for c in children))
        for number in range(plan.heap):
            job = self._job(f"h{number}", plan.kinds[1], plan.heap_priority)
            self._heap.add(job.id)
            self._at(plan.heap_at_s, self._submit, job, ())
        for worker in self._workers:
            for _ in range(worker.machines):
                self._at(chance.expovariate(1 / plan.machine_lost_every_s), self._lose, worker)
        for quarter in range(96):
            self._at(quarter * 900.0 + 450.0, self._look, quarter)

    async def _look(self, quarter: int) -> None:
        """How many wait now."""
        self.outcome.depth[quarter] = len(await self.queue.find(state=JobState.QUEUED, limit=10**6))

    def _job(self, name: str, kind: Kind, level: Priority) -> Job:
        self._needs_s[name] = kind.median_s * math.exp(self._chance.gauss(0.0, kind.sigma))
        if self._chance.random() < self._plan.hopeless:
            self._hopeless.add(name)
        return Job(name, {}, JobState.QUEUED, kind.tag, 0, 3, 0.0, priority=level)

    async def _submit(self, job: Job, children: tuple[Job, ...]) -> None:
        now = self._clock.now
        jobs = [replace(each, created_at=now) for each in (job, *children)]
        await self.queue.submit(jobs[0], jobs[1:])
        self.outcome.called("submit", now)
        for each in jobs[1:] or jobs:
            self._asked_at[each.id] = now
            if self._chance.random() < self._plan.cancelled:
                self._at(now + self._chance.expovariate(1 / 300.0), self._cancel, each.id)
        for _ in range(len(children) or 1):
            await self._wake(job.tag)

    async def _cancel(self, job_id: str) -> None:
        try:
            await self.queue.cancel(job_id)
        except Conflict:  # it has ended
            return
        self.outcome.called("cancel", self._clock.now)

    async def _lose(self, worker: Worker) -> None:
        """A machine dies with all that runs on it, and comes back later."""
        if self._clock.now > DAY_S:
            return
        worker.lost = True
        worker.run += 1
        self._idle.pop(worker.name, None)
        if worker.lease is not None:
            self._stop(worker)
            self._at(self._clock.now + LEASE_S + LOOK_S, self._wake, worker.lease.job.tag)
            worker.lease = None
        self._at(self._clock.now + self._plan.machine_back_s, self._return, worker)

    async def _return(self, worker: Worker) -> None:
        worker.lost = False
        self._at(self._clock.now + self._chance.expovariate(1 / self._plan.machine_lost_every_s), self._lose, worker)
        await self._claim(worker)

    # What workers do

    async def _wake(self, tag: str) -> None:
        """Everybody who waits for the tag looks; the first takes what is there."""
        watching = [worker for worker in self._idle.values() if tag in worker.tags]
        self.outcome.woken += len(watching)
        self.outcome.called("take", self._clock.now, len(watching))
        if watching:
            await self._claim(self._chance.choice(watching))

    async def _claim(self, worker: Worker) -> None:
        if worker.lost:
            return
        lease = await self.queue.claim(worker.name, worker.tags, wait_s=0.0)
        self.outcome.called("take", self._clock.now)
        if lease is None:
            self._idle[worker.name] = worker
            return
        self._idle.pop(worker.name, None)
        self.outcome.called("start", self._clock.now)
        self._note_wait(lease)
        worker.lease, worker.began_at = lease, self._clock.now
        worker.run += 1
        left_s = max(self._needs_s[lease.job.id] - self._done_s[lease.job.id], 0.0)
        ends_s = left_s if lease.job.children else START_S + left_s
        crash_s = 20.0 if lease.job.id in self._hopeless else self._chance.expovariate(1 / self._plan.crash_every_s)
        self._at(self._clock.now + min(ends_s, crash_s), self._end, worker, worker.run, crash_s < ends_s)
        self._at(self._clock.now + MAX_RENEW_EVERY_S, self._renew, worker, worker.run)

    def _note_wait(self, lease: Lease) -> None:
        job = lease.job
        if job.attempt > 1 or job.children:
            return
        wait_s = self._clock.now - self._asked_at[job.id]
        level = "sweep" if job.parent else str(job.priority)
        self.outcome.waits_s[job.tag, level].append(wait_s)
        after_s = self._asked_at[job.id] - self._plan.heap_at_s
        if job.id not in self._heap and 0 < after_s < 3600 and job.tag == "gpu" and job.priority is Priority.NORMAL:
            self.outcome.behind_heap_s.append(wait_s)

    async def _renew(self, worker: Worker, run: int) -> None:
        if worker.run != run or worker.lease is None:
            return
        job = await self.queue.renew(worker.lease)
        self.outcome.called("renew", self._clock.now)
        if job.cancel_requested:
            await self._settle(worker, JobState.CANCELLED)
            return
        self._at(self._clock.now + MAX_RENEW_EVERY_S, self._renew, worker, run)

    async def _end(self, worker: Worker, run: int, crashed: bool) -> None:
        lease = worker.lease
        if worker.run != run or lease is None:
            return
        if not crashed:
            await self._settle(worker, JobState.SUCCEEDED)
            return
        self._stop(worker)
        failures = lease.job.attempt - lease.job.released
        delay_s = self._backoff.delay_s(failures)
        job = await self.queue.release(lease, reason="crashed", counts=True, delay_s=delay_s)
        self.outcome.called("release", self._clock.now)
        if job.state.final:
            self.outcome.ends["dead"] += 1
        else:
            self._at(self._clock.now + delay_s + 0.001, self._wake, job.tag)
        await self._next(worker)

    async def _settle(self, worker: Worker, state: JobState) -> None:
        assert worker.lease is not None
        lease, now = worker.lease, self._clock.now
        self._stop(worker)
        try:
            job = await self.queue.settle(lease, state, result={})
        except StaleLease:
            self.outcome.ends["stale"] += 1
        else:
            self.outcome.called("settle", now)
            self.outcome.ends[str(job.state)] += 1
        await self._next(worker)

    async def _next(self, worker: Worker) -> None:
        worker.lease = None
        worker.run += 1
        await self._claim(worker)

    def _stop(self, worker: Worker) -> None:
        """Count what an attempt did: what is behind its last checkpoint is lost where it has not ended."""
        assert worker.lease is not None
        job, now = worker.lease.job, self._clock.now
        trained_s = max(now - worker.began_at - START_S, 0.0)
        kept_s = trained_s // CHECKPOINT_S * CHECKPOINT_S
        ended = self._done_s[job.id] + trained_s >= self._needs_s[job.id] - 1e-6
        self.outcome.run_s += now - worker.began_at
        if not ended:
            self.outcome.done_again_s += now - worker.began_at - kept_s
            self._done_s[job.id] += kept_s
        at = worker.began_at
        while at < min(now, DAY_S):
            edge = min((at // 900 + 1) * 900, now, DAY_S)
            self.outcome.busy_s[worker.tags[0]][int(at // 900)] += edge - at
            at = edge


def diurnal(chance: random.Random) -> float:
    """A moment of the day; at 14:00 nine times as many come as at 2:00."""
    while True:
        at = chance.uniform(0.0, DAY_S)
        if chance.random() < (1 - 0.8 * math.cos(2 * math.pi * (at / 3600 - 2) / 24)) / 1.8:
            return at
