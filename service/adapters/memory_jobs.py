"""The job queue in this process's memory: the same rules as in Redis, for tests and for a single process."""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.core.errors import Conflict, NotFound, Overloaded, StaleLease, TooLarge
from service.core.idempotency import fingerprint, scope
from service.core.jobs import check_move
from service.core.limits import MAX_EVENT_BYTES, MAX_REASON_CHARS
from service.core.names import check_event_id
from service.core.ports import Clock
from service.core.sweeps import child_id
from service.core.types import CLAIM_ORDER, Job, JobCounts, JobEvent, JobState, Json, Lease, Priority, WorkerInfo

_MIN_WAIT_S = 0.001


@dataclass(slots=True)
class _Entry:
    """One job with what belongs to it; `order` is its place in the queue, `unfinished` how many of its children are."""

    job: Job
    order: int
    token: str = ""
    ended_by: str = ""
    lease_until: float = 0.0
    attempt_at: float = 0.0
    events: list[JobEvent] = field(default_factory=list)
    dropped: int = 0
    unfinished: int = 0


class MemoryJobQueue:
    """The `JobQueue` port without a server. Not safe across threads.

    `lease_s`: how long a claim lasts without renewal; `max_jobs`: unfinished jobs per tag; `keep_s`: how long a
    finished job can be read; `max_events`: events kept per job.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        lease_s: float = 15.0,
        max_jobs: int = 10_000,
        keep_s: float = 7 * 86_400.0,
        max_events: int = 10_000,
        max_unfinished: int = 50_000,
        max_kept: int = 10_000,
    ) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._max_jobs = max_jobs
        self._keep_s = keep_s
        self._max_events = max_events
        self._max_unfinished = max_unfinished
        self._max_kept = max_kept
        self._entries: dict[str, _Entry] = {}
        self._unfinished: dict[str, dict[str, _Entry]] = {}
        self._ended: list[tuple[float, str]] = []
        self._held_back = 0
        self._workers: dict[str, tuple[WorkerInfo, float]] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._turns: dict[tuple[str, ...], int] = {}
        self._order = 0
        self._last_event = (0, 0)
        self._changed = asyncio.Event()

    async def submit(self, job: Job, children: Sequence[Job] = ()) -> Job:
        """Store a queued job, or find that of its key; raises `Conflict`, `Overloaded` when its tag has too many."""
        self._expire()
        if job.idempotency_key:
            known, request = self._keys.get(scope(job), ("", ""))
            if known in self._entries:
                if request != fingerprint(job):
                    raise Conflict(f"idempotency key: expected the request of job {known} again, got another one")
                return self._entries[known].job
        self._store(job, children)
        if job.idempotency_key:
            self._keys[scope(job)] = (job.id, fingerprint(job))
        return job

    async def requeue(self, job_id: str, job: Job, children: Sequence[Job] = ()) -> Job:
        """Submit `job` in the place of a failed one, once."""
        old = self._entry(job_id)
        if old.job.requeued_as is not None:
            return self._entry(old.job.requeued_as).job
        if old.job.state is not JobState.FAILED:
            raise Conflict(f"job {job_id}: expected a failed one, got {old.job.state}")
        self._store(job, children)
        old.job = replace(old.job, requeued_as=job.id, dead=False)
        return job

    def _store(self, job: Job, children: Sequence[Job]) -> None:
        if job.id in self._entries:
            raise Conflict(f"job {job.id}: it exists already")
        self._check_room(job.tag, len(children))
        for each in (job, *children):
            entry = self._entries[each.id] = _Entry(each, self._next_order(), unfinished=each.children)
            self._unfinished.setdefault(each.tag, {})[each.id] = entry
            self._record(entry, "state", {"state": str(each.state)})

    def _check_room(self, tag: str, children: int) -> None:
        queueing = max(children, 1)
        unfinished = sum(not entry.unfinished for entry in self._unfinished.get(tag, {}).values())
        if unfinished + queueing > self._max_jobs:
            raise Overloaded(
                f"jobs: expected at most {self._max_jobs} unfinished ones with this tag, "
                f"got {queueing} beside {unfinished}"
            )
        unfinished = sum(map(len, self._unfinished.values())) + self._held_back
        if unfinished + 1 + children > self._max_unfinished:
            raise Overloaded(
                f"jobs: expected at most {self._max_unfinished} unfinished ones of all tags, "
                f"got {1 + children} beside {unfinished}"
            )

    async def get(self, job_id: str) -> Job:
        """One job; raises `NotFound`."""
        return self._entry(job_id).job

    async def find(self, *, state: JobState | None = None, dead: bool = False, limit: int = 100) -> list[Job]:
        """Newest first."""
        self._expire()
        everything = [entry.job for entry in self._entries.values()]
        jobs = [job for job in everything if state in (None, job.state) and (job.dead or not dead)]
        return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)[:limit]

    async def children(self, job_id: str) -> list[Job]:
        """A sweep's jobs in their order."""
        return [entry.job for entry in self._children(self._entry(job_id).job)]

    async def cancel(self, job_id: str) -> Job:
        """Queued: becomes cancelled. Running: marks it. Raises `Conflict` when final or publishing."""
        entry = self._entry(job_id)
        job = entry.job
        if entry.unfinished:
            self._cancel_children(entry)
        elif job.state is not JobState.RUNNING:
            check_move(job_id, job.state, JobState.CANCELLED)
            self._end(entry, JobState.CANCELLED)
        elif job.reserved is not None:
            raise Conflict(f"job {job_id}: it publishes version {job.reserved[1]} already and cannot be cancelled")
        else:
            self._mark(entry)
        return entry.job

    def _cancel_children(self, sweep: _Entry) -> None:
        """Each like any other job; the sweep at once where none of them runs any more."""
        self._mark(sweep)
        for entry in self._children(sweep.job):
            if entry.job.state is JobState.QUEUED:
                self._end(entry, JobState.CANCELLED)
            elif entry.job.state is JobState.RUNNING and entry.job.reserved is None:
                self._mark(entry)
        if not sweep.unfinished:
            self._end(sweep, JobState.CANCELLED)

    def _mark(self, entry: _Entry) -> None:
        if not entry.job.cancel_requested:
            entry.job = replace(entry.job, cancel_requested=True)
            self._record(entry, "state", {"state": str(entry.job.state), "cancel_requested": True})

    async def claim(self, worker: str, tags: Sequence[str], *, wait_s: float) -> Lease | None:
        """Take a queued job, or one whose lease has run out; None after `wait_s`."""
        deadline = self._clock.monotonic() + wait_s
        while True:
            changed = self._changed
            if (lease := self._take(worker, tags)) is not None:
                return lease
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return None
            try:
                async with asyncio.timeout(min(left, self._lease_s / 3, self._next_due_s(tags))):
                    await changed.wait()
            except TimeoutError:
                continue

    async def renew(self, lease: Lease) -> Job:
        """Extend the lease; returns the job as stored."""
        entry = self._fenced(lease)
        entry.lease_until = self._clock.monotonic() + self._lease_s
        return entry.job

    async def append(self, lease: Lease, kind: str, data: Mapping[str, Json]) -> str:
        """Append to the job's events; returns the event's id."""
        if (size := len(json.dumps(data))) > MAX_EVENT_BYTES:
            raise TooLarge(f"event {kind}: expected at most {MAX_EVENT_BYTES} bytes, got {size}")
        return self._record(self._fenced(lease), kind, data)

    async def commit_checkpoint(self, lease: Lease, pointer: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """Make `pointer` the job's checkpoint; returns the one before."""
        entry = self._fenced(lease)
        before = entry.job.checkpoint
        entry.job = replace(entry.job, checkpoint=dict(pointer))
        self._record(entry, "checkpoint", pointer)
        return before

    async def reserve(self, lease: Lease, model: str, version: int) -> tuple[str, int]:
        """Tie the job to a version number, once; raises `Conflict` when it is to be cancelled."""
        entry = self._fenced(lease)
        if entry.job.reserved is None:
            if entry.job.cancel_requested:
                raise Conflict(f"job {lease.job.id}: it is to be cancelled")
            entry.job = replace(entry.job, reserved=(model, version))
        return entry.job.reserved or (model, version)

    async def settle(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        error: str | None = None,
    ) -> Job:
        """End the job; repeating it with the same lease returns the job as it ended."""
        if not state.final:
            raise Conflict(f"job {lease.job.id}: expected a final state to settle it, got {state}")
        entry = self._entry(lease.job.id)
        if entry.job.state.final and entry.ended_by == lease.token:
            return entry.job
        entry = self._fenced(lease)
        if entry.job.cancel_requested:
            state, result = JobState.CANCELLED, None
        elif state is JobState.CANCELLED:
            raise Conflict(f"job {lease.job.id}: nobody asked to cancel it")
        check_move(lease.job.id, entry.job.state, state)
        self._end(entry, state, result=result, error=error)
        return entry.job

    async def release(self, lease: Lease, *, reason: str, counts: bool = False, delay_s: float = 0.0) -> Job:
        """Give a running job back to the queue, without counting against its attempts unless `counts`."""
        entry = self._fenced(lease)
        if entry.job.cancel_requested:
            self._end(entry, JobState.CANCELLED)
        elif counts and _used_up(entry.job):
            self._bury(entry, reason)
        else:
            entry.job = replace(entry.job, released=entry.job.released + (not counts))
            self._requeue(entry, reason, delay_s)
            entry.order = self._next_order()
        return entry.job

    async def events(self, job_id: str, *, after: str = "0") -> AsyncIterator[JobEvent]:
        """Replay after an id, then follow; ends after a final state's event."""
        last = _event_key(after)
        entry = self._entry(job_id)
        position = 0
        while True:
            changed = self._changed
            position = max(position, entry.dropped)
            while position - entry.dropped < len(entry.events):
                event = entry.events[position - entry.dropped]
                position += 1
                if _event_key(event.id) > last:
                    yield event
                position = max(position, entry.dropped)
            if entry.job.state.final:
                return
            await changed.wait()

    async def replay(self, job_id: str, *, after: str = "0", limit: int = 1000) -> list[JobEvent]:
        """Up to `limit` events behind an id that are there now."""
        last = _event_key(after)
        return [event for event in self._entry(job_id).events if _event_key(event.id) > last][:limit]

    async def using(self, dataset_id: str) -> list[str]:
        """Ids of the jobs that train on a data set and have not ended."""
        jobs = [entry.job for unfinished in self._unfinished.values() for entry in unfinished.values()]
        names = ("dataset", "validation_dataset")
        return [job.id for job in jobs if dataset_id in [job.spec.get(name) for name in names]]

    async def beat(self, worker: WorkerInfo, *, ttl_s: float) -> None:
        """Show a worker as alive for `ttl_s`."""
        self._workers[worker.id] = (worker, self._clock.monotonic() + ttl_s)

    async def workers(self) -> list[WorkerInfo]:
        """Workers whose heartbeat is fresh."""
        now = self._clock.monotonic()
        self._workers = {key: value for key, value in self._workers.items() if value[1] > now}
        return sorted((info for info, _ in self._workers.values()), key=lambda info: info.id)

    async def counts(self, tags: Sequence[str]) -> JobCounts:
        """How many jobs there are, and how many wait."""
        self._expire()
        jobs = [entry.job for entry in self._entries.values()]
        queued = [job.tag for job in jobs if job.state is JobState.QUEUED and not job.children]
        states = {state: sum(job.state is state for job in jobs) for state in JobState}
        return JobCounts(states, sum(job.dead for job in jobs), {tag: queued.count(tag) for tag in tags})

    async def ping(self) -> None:
        """Memory is always there."""

    def _take(self, worker: str, tags: Sequence[str]) -> Lease | None:
        mine = sorted((e for tag in set(tags) for e in self._unfinished.get(tag, {}).values()), key=lambda e: e.order)
        for entry in mine:
            lost = entry.job.state is JobState.RUNNING and entry.lease_until <= self._clock.monotonic()
            if lost and self._recover(entry):
                return self._start(entry, worker)
        for entry in mine:
            if entry.job.not_before is not None and entry.job.not_before <= self._clock.time():
                entry.job = replace(entry.job, not_before=None)
        for entry in mine:
            if entry.job.children and entry.job.cancel_requested and _claimable(entry):
                self._end(entry, JobState.CANCELLED)
        waiting = [e for e in mine if _claimable(e)]
        if not waiting:
            return None
        who = tuple(sorted(tags))
        turn = self._turns.get(who, 0)
        self._turns[who] = (turn + 1) % len(CLAIM_ORDER)
        levels = [CLAIM_ORDER[turn], *Priority]
        return self._start(min(waiting, key=lambda e: (levels.index(e.job.priority), e.order)), worker)

    def _recover(self, entry: _Entry) -> bool:
        """Treat a lost lease; False when the job has ended by it."""
        job = entry.job
        reason = f"the lease of attempt {job.attempt} was lost"
        if job.cancel_requested:
            self._end(entry, JobState.CANCELLED)
        elif _used_up(job):
            self._bury(entry, f"{reason}; no attempt of {job.max_attempts} is left")
        else:
            self._requeue(entry, reason)
        return not entry.job.state.final

    def _start(self, entry: _Entry, worker: str) -> Lease:
        job = entry.job
        check_move(job.id, job.state, JobState.RUNNING)
        entry.token = secrets.token_hex(16)
        entry.attempt_at = self._clock.monotonic()
        entry.lease_until = entry.attempt_at + self._lease_s
        started_at = job.started_at if job.started_at is not None else self._clock.time()
        entry.job = replace(job, state=JobState.RUNNING, attempt=job.attempt + 1, worker=worker, started_at=started_at)
        self._record(entry, "state", {"state": "running", "attempt": entry.job.attempt, "worker": worker})
        return Lease(entry.job, entry.job.attempt, entry.token, worker)

    def _stop_clock(self, entry: _Entry) -> None:
        """Count how long the attempt has run, when it ends: at most until its lease did."""
        if entry.job.state is JobState.RUNNING:
            ended_at = min(self._clock.monotonic(), entry.lease_until)
            entry.job = replace(entry.job, ran_s=entry.job.ran_s + ended_at - entry.attempt_at)

    def _requeue(self, entry: _Entry, reason: str, delay_s: float = 0.0) -> None:
        check_move(entry.job.id, entry.job.state, JobState.QUEUED)
        self._stop_clock(entry)
        entry.job = replace(entry.job, state=JobState.QUEUED, worker=None)
        entry.token = ""
        told: dict[str, Json] = {"state": "queued", "reason": reason[:MAX_REASON_CHARS]}
        if delay_s > 0:
            entry.job = replace(entry.job, not_before=self._clock.time() + delay_s)
            told["retry_in_s"] = delay_s
        self._record(entry, "state", told)

    def _next_due_s(self, tags: Sequence[str]) -> float:
        """Seconds until the first delayed job, at least a little."""
        mine = (e.job for tag in set(tags) for e in self._unfinished.get(tag, {}).values())
        due = [job.not_before for job in mine if job.not_before is not None]
        return max(min(due, default=math.inf) - self._clock.time(), _MIN_WAIT_S)

    def _bury(self, entry: _Entry, reason: str) -> None:
        """Failed because its attempts are used up."""
        self._end(entry, JobState.FAILED, error=reason)
        entry.job = replace(entry.job, dead=True)

    def _end(
        self,
        entry: _Entry,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        error: str | None = None,
    ) -> None:
        self._stop_clock(entry)
        error = None if error is None else error[:MAX_REASON_CHARS]
        entry.ended_by, entry.token = entry.token, ""
        entry.job = replace(
            entry.job,
            state=state,
            not_before=None,
            finished_at=self._clock.time(),
            result=None if result is None else dict(result),
            error=error,
        )
        data: dict[str, Json] = {"state": str(state)}
        if result is not None:
            data["result"] = dict(result)
        if error is not None:
            data["error"] = error
        self._record(entry, "state", data)
        self._forget_later(entry)
        if (sweep := self._entries.get(entry.job.parent or "")) is not None:
            self._record(sweep, "child", {"child": entry.job.id, **data})
            sweep.unfinished -= 1
            if not sweep.unfinished:
                sweep.order = self._next_order()
                self._record(sweep, "state", {"state": "queued", "reason": "its last child has ended"})

    def _children(self, job: Job) -> list[_Entry]:
        ids = (child_id(job.id, number) for number in range(job.children))
        return [self._entries[each] for each in ids if each in self._entries]

    def _entry(self, job_id: str) -> _Entry:
        self._expire()
        if (entry := self._entries.get(job_id)) is None:
            raise NotFound(f"there is no job {job_id!r}")
        return entry

    def _fenced(self, lease: Lease) -> _Entry:
        entry = self._entry(lease.job.id)
        if (entry.job.state, entry.job.attempt, entry.token) != (JobState.RUNNING, lease.attempt, lease.token):
            raise StaleLease(f"job {lease.job.id}: attempt {lease.attempt} no longer holds the lease")
        return entry

    def _forget_later(self, entry: _Entry) -> None:
        """Note when a job that has ended may be forgotten; a sweep's jobs are held back until the sweep has ended."""
        del self._unfinished[entry.job.tag][entry.job.id]
        if entry.job.parent in self._entries:
            self._held_back += 1
            return
        children = self._children(entry.job)
        self._held_back -= len(children)
        for each in (entry, *children):
            heapq.heappush(self._ended, (self._kept_until(each.job), each.job.id))

    def _expire(self) -> None:
        """Forget those whose time is over, and the oldest ones of too many, a sweep's jobs with the sweep."""
        now, before = self._clock.time(), len(self._entries)
        while self._ended and (self._ended[0][0] <= now or len(self._ended) > self._max_kept):
            entry = self._entries.pop(heapq.heappop(self._ended)[1])
            if children := self._children(entry.job):
                for child in children:
                    del self._entries[child.job.id]
                self._ended = [each for each in self._ended if each[1] in self._entries]
                heapq.heapify(self._ended)
        if len(self._entries) < before:
            self._keys = {key: value for key, value in self._keys.items() if value[0] in self._entries}

    def _kept_until(self, job: Job) -> float:
        """When an ended job may be forgotten: a sweep's jobs with the sweep, so not before it has ended."""
        sweep = self._entries.get(job.parent or "")
        job = job if sweep is None else sweep.job
        if job.finished_at is None:
            return math.inf
        return job.finished_at + (self._keep_s if job.ttl_s is None else min(job.ttl_s, self._keep_s))

    def _record(self, entry: _Entry, kind: str, data: Mapping[str, Json]) -> str:
        now_ms = int(self._clock.time() * 1000)
        last_ms, count = self._last_event
        self._last_event = (now_ms, 0) if now_ms > last_ms else (last_ms, count + 1)
        event_id = "{}-{}".format(*self._last_event)
        entry.events.append(JobEvent(event_id, kind, self._last_event[0] / 1000, dict(data)))
        if len(entry.events) > self._max_events:
            del entry.events[0]
            entry.dropped += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return event_id

    def _next_order(self) -> int:
        self._order += 1
        return self._order


def _claimable(entry: _Entry) -> bool:
    return entry.job.state is JobState.QUEUED and entry.job.not_before is None and not entry.unfinished


def _used_up(job: Job) -> bool:
    return job.attempt - job.released >= job.max_attempts


def _event_key(event_id: str) -> tuple[int, int]:
    """The order of event ids; raises `InvalidRequest` when it is none."""
    check_event_id(event_id)
    milliseconds, _, count = event_id.partition("-")
    return int(milliseconds), int(count or 0)
