"""The job queue in Redis 7 (or Valkey): streams with a consumer group per tag, a hash and an event stream per job.

Keys (`{axon}` keeps them in one slot of a cluster):

    {axon}:queue:<tag>:<priority>  stream of unfinished jobs, gone when empty; an entry stays pending while its job runs
    {axon}:delayed:<tag>           sorted set of jobs that wait after a failure, by the time when they are due
    {axon}:turns                   hash: whose turn it is of the priorities, by the tags of those who claim
    {axon}:job:<id>                hash: the job; expires `keep_s` after its end
    {axon}:events:<id>             stream: state, progress, log lines, checkpoints; capped, expires with the job
                                   (a sweep's jobs are <id>.0, <id>.1, ...: they expire with the sweep)
    {axon}:jobs                    sorted set of all jobs by creation; {axon}:jobs:<state> the same by state
    {axon}:ended                   sorted set: when each finished job may be forgotten in the sets above
    {axon}:jobs:dead               sorted set of failed jobs whose attempts were used up, by creation
    {axon}:key:<sha256>            hash: which job and request an idempotency key stands for; expires
    {axon}:worker:<id>             a worker's last heartbeat; expires
    {axon}:workers                 sorted set of workers by the end of their heartbeat

Every change is one Lua script under `lua/`, so it happens whole or not at all. Calls may be repeated by the client
after a lost connection: submit, start and settle recognise their own repetition, an event may appear twice.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import FullJitterBackoff
from redis.exceptions import ResponseError

from service.adapters.redis_values import (
    Place,
    Taken,
    cut,
    dumps,
    event_of,
    fields_of,
    job_of,
    no_job,
    place_of,
    translated,
    worker_of,
)
from service.core.errors import Conflict, NotFound, TooLarge
from service.core.idempotency import fingerprint, scope
from service.core.limits import MAX_EVENT_BYTES
from service.core.names import check_event_id
from service.core.ports import Clock
from service.core.sweeps import child_id, parent_of
from service.core.types import CLAIM_ORDER, Job, JobCounts, JobEvent, JobState, Json, Lease, Priority, WorkerInfo

PREFIX: Final = "{axon}"
_SCRIPTS: Final = (
    "submit",
    "start",
    "renew",
    "append",
    "checkpoint",
    "reserve",
    "settle",
    "release",
    "cancel",
    "promote",
    "forget",
)
_ALONE: Final = ("take", "beat")
_MAX_BLOCK_S = 5.0  # below the socket's time limit, so that a quiet stream does not look like a dead server
_LOOK_S = 1.0  # between two looks for lost leases: what a dead worker's job waits besides the lease itself
_SOCKET_TIMEOUT_S = 10.0
_PAGE = 200
_GROUP: Final = "workers"  # as in common.lua
_LEVELS: Final = tuple(Priority)
_TURNS: Final = tuple(_LEVELS.index(level) + 1 for level in CLAIM_ORDER)


def _count(reply: Any) -> int:
    """A number, or that of the pending entries of a stream; a stream that is not there has none."""
    if isinstance(reply, ResponseError) and str(reply).startswith("NOGROUP"):
        return 0
    if isinstance(reply, Exception):
        raise reply
    return int(reply["pending"] if isinstance(reply, dict) else reply)


def connect(url: str, *, retries: int = 5) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://` that repeats calls lost with their connection.

    Five repetitions bridge about two seconds, a restart of the server. Before the n-th there is a pause drawn evenly
    from 0 to min(1.5, 0.1 * 2^n) seconds ("full jitter"), so that not all clients come back at once.
    """
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=3.0,
        health_check_interval=30,
        retry=Retry(FullJitterBackoff(cap=1.5, base=0.1), retries),
    )


class RedisJobQueue:
    """The `JobQueue` port on a Redis server.

    `lease_s`: how long a claim lasts without renewal (the same for all workers of a server); `max_jobs`: unfinished
    jobs per tag, `max_unfinished` of all tags; `keep_s`: how long a finished job and its events can be read, `max_kept`
    how many of them; `max_events`: about how many events are kept per job.
    """

    def __init__(
        self,
        client: Redis,
        clock: Clock,
        *,
        prefix: str = PREFIX,
        lease_s: float = 15.0,
        max_jobs: int = 10_000,
        keep_s: float = 7 * 86_400.0,
        max_events: int = 10_000,
        max_unfinished: int = 50_000,
        max_kept: int = 10_000,
    ) -> None:
        self._redis: Any = client  # its annotations cover every protocol and decoding at once
        self._clock = clock
        self._prefix = prefix
        self._lease_ms = int(lease_s * 1000)
        self._max_jobs = max_jobs
        self._max_unfinished = max_unfinished
        self._max_kept = max_kept
        self._common = (str(int(keep_s * 1000)), str(max_events))
        folder = files("service.adapters") / "lua"
        prelude = (folder / "common.lua").read_text()
        self._scripts = {
            name: client.register_script(prelude + (folder / f"{name}.lua").read_text()) for name in _SCRIPTS
        }
        self._scripts |= {name: client.register_script((folder / f"{name}.lua").read_text()) for name in _ALONE}

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()

    async def submit(self, job: Job, children: Sequence[Job] = ()) -> Job:
        """Store a queued job, or find that of its key; raises `Conflict`, `Overloaded` when its tag has too many."""
        stored_id, known = await self._submit(job, children)
        while known is not None:
            try:
                first = await self.get(stored_id)
            except NotFound:  # forgotten: the key is free again
                stored_id, known = await self._submit(job, children, gone=stored_id)
                continue
            if known != fingerprint(job):
                raise Conflict(f"idempotency key: expected the request of job {stored_id} again, got another one")
            return first
        return job

    async def requeue(self, job_id: str, job: Job, children: Sequence[Job] = ()) -> Job:
        """Submit `job` in the place of a failed one, once."""
        await self.get(job_id)
        stored_id, known = await self._submit(job, children, replaces=job_id)
        return job if known is None else await self.get(stored_id)

    async def _submit(
        self, job: Job, children: Sequence[Job], *, gone: str = "", replaces: str = ""
    ) -> tuple[str, str | None]:
        """The id of the stored job and None, or id and fingerprint of the one that is there already."""
        keyed = fingerprint(job) if job.idempotency_key else ""
        args: list[str | int] = [secrets.token_hex(16), self._max_jobs, repr(job.created_at), keyed, gone, replaces]
        args += [self._max_unfinished, len(children)]
        for one in (job, *children):
            fields = fields_of(one)
            args += [len(fields), *fields]
        own = self._key("job", job.id)
        more_keys = [
            self._key("key", scope(job)) if keyed else own,
            self._key("job", replaces) if replaces else own,
        ]
        found = await self._call("submit", place_of(job), *args, more_keys=more_keys)
        await self._forget_oldest()
        return (found[0], found[1]) if len(found) == 2 else (job.id, None)

    async def _forget_oldest(self) -> None:
        """Remove ended jobs that are too many, those first that would expire first; a sweep's with the sweep."""
        ended = self._key("ended")
        with translated():
            excess = await self._redis.zcount(ended, "-inf", "(+inf") - self._max_kept
            if excess <= 0:
                return
            ids = await self._redis.zrange(ended, 0, min(excess, _PAGE) - 1)
            pipeline = self._redis.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hget(self._key("job", job_id), "children")
            counts = await pipeline.execute()
        for job_id, count in zip(ids, counts, strict=True):
            await self._call("forget", Place(job_id, "", Priority.NORMAL, int(count or 0)))

    async def get(self, job_id: str) -> Job:
        """One job; raises `NotFound`."""
        with translated():
            found = await self._redis.hgetall(self._key("job", job_id))
        if not found:
            raise no_job(job_id)
        return job_of(job_id, found)

    async def find(self, *, state: JobState | None = None, dead: bool = False, limit: int = 100) -> list[Job]:
        """Newest first."""
        index = self._key("jobs") if state is None else self._key("jobs", state)
        index = self._key("jobs", "dead") if dead else index
        jobs: list[Job] = []
        start = 0
        while len(jobs) < limit:
            with translated():
                ids = await self._redis.zrange(index, start, start + _PAGE - 1, desc=True)
                pipeline = self._redis.pipeline(transaction=False)
                for job_id in ids:
                    pipeline.hgetall(self._key("job", job_id))
                found = [job_of(job_id, one) for job_id, one in zip(ids, await pipeline.execute(), strict=True) if one]
            jobs += [job for job in found if state in (None, job.state) and (job.dead or not dead)]
            start += _PAGE
            if len(ids) < _PAGE:
                break
        return jobs[:limit]

    async def children(self, job_id: str) -> list[Job]:
        """A sweep's jobs in their order."""
        count = (await self.get(job_id)).children
        ids = [child_id(job_id, number) for number in range(count)]
        with translated():
            pipeline = self._redis.pipeline(transaction=False)
            for each in ids:
                pipeline.hgetall(self._key("job", each))
            found = await pipeline.execute() if ids else []
        return [job_of(each, one) for each, one in zip(ids, found, strict=True) if one]

    async def cancel(self, job_id: str) -> Job:
        """Queued: becomes cancelled. Running: marks it. Raises `Conflict` when final or publishing."""
        return job_of(job_id, await self._call("cancel", place_of(await self.get(job_id))))

    async def claim(self, worker: str, tags: Sequence[str], *, wait_s: float) -> Lease | None:
        """Take a queued job, or one whose lease has run out; None after `wait_s`.

        Delayed jobs of `tags` that are due get into their queues first. Waiting reads the streams without their group:
        nothing is handed to a call that is given up meanwhile. Those who wait look again every second, and at least
        three times per lease, for leases that have run out.
        """
        deadline = self._clock.monotonic() + wait_s
        while True:
            taken = await self._take(tags)
            if taken.job is not None:
                if (lease := await self._own(taken.job, taken.entry, worker)) is not None:
                    return lease
                continue
            if taken.due:
                for place in taken.due:
                    await self._call("promote", place)
                continue
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return None
            waits_ms = [left * 1000, self._lease_ms / 3, _LOOK_S * 1000]
            if taken.next_due_ms is not None:
                waits_ms.append(taken.next_due_ms)
            with translated():
                await self._redis.xread(taken.ends, count=1, block=max(1, int(min(waits_ms))))

    async def renew(self, lease: Lease) -> Job:
        """Extend the lease; returns the job as stored."""
        return job_of(lease.job.id, await self._fenced("renew", lease, self._lease_ms))

    async def append(self, lease: Lease, kind: str, data: Mapping[str, Json]) -> str:
        """Append to the job's events; returns the event's id."""
        text = dumps(data)
        if len(text) > MAX_EVENT_BYTES:
            raise TooLarge(f"event {kind}: expected at most {MAX_EVENT_BYTES} bytes, got {len(text)}")
        return str(await self._fenced("append", lease, kind, text))

    async def commit_checkpoint(self, lease: Lease, pointer: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """Make `pointer` the job's checkpoint; returns the one before."""
        before = await self._fenced("checkpoint", lease, dumps(pointer))
        return None if before is None else json.loads(before)

    async def reserve(self, lease: Lease, model: str, version: int) -> tuple[str, int]:
        """Tie the job to a version number, once; raises `Conflict` when it is to be cancelled."""
        name, number = await self._fenced("reserve", lease, model, version)
        return name, int(number)

    async def settle(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: Mapping[str, Json] | None = None,
        error: str | None = None,
    ) -> Job:
        """End the job and acknowledge it in one step; repeating it with the same lease returns the job as it ended."""
        if not state.final:
            raise Conflict(f"job {lease.job.id}: expected a final state to settle it, got {state}")
        encoded = "" if result is None else dumps(result)
        return job_of(lease.job.id, await self._fenced("settle", lease, state, encoded, cut(error or "")))

    async def release(self, lease: Lease, *, reason: str, counts: bool = False, delay_s: float = 0.0) -> Job:
        """Give a running job back to the queue, without counting against its attempts unless `counts`."""
        args = (int(counts), cut(reason), int(delay_s * 1000))
        return job_of(lease.job.id, await self._fenced("release", lease, *args))

    async def events(self, job_id: str, *, after: str = "0") -> AsyncIterator[JobEvent]:
        """Replay after an id, then follow; ends after a final state's event."""
        after = check_event_id(after)
        key = self._key("events", job_id)
        state = (await self.get(job_id)).state
        while True:
            block = None if state.final else int(_MAX_BLOCK_S * 1000)
            with translated():
                found = await self._redis.xread({key: after}, count=_PAGE, block=block)
            for event in (event_of(*entry) for entry in (found[0][1] if found else ())):
                yield event
                after = event.id
                if event.kind == "state" and JobState(event.data["state"]).final:
                    return
            if not found and state.final:
                return
            if not found:
                try:
                    state = (await self.get(job_id)).state
                except NotFound:  # forgotten meanwhile
                    return

    async def replay(self, job_id: str, *, after: str = "0", limit: int = 1000) -> list[JobEvent]:
        """Up to `limit` events behind an id that are there now."""
        start = f"({check_event_id(after)}"
        await self.get(job_id)
        with translated():
            found = await self._redis.xrange(self._key("events", job_id), min=start, count=limit)
        return [event_of(*entry) for entry in found]

    async def beat(self, worker: WorkerInfo, *, ttl_s: float) -> None:
        """Show a worker as alive for `ttl_s`."""
        keys = [self._key("workers"), self._key("worker", worker.id)]
        with translated():
            await self._scripts["beat"](keys=keys, args=[worker.id, dumps(asdict(worker)), int(ttl_s * 1000)])

    async def workers(self) -> list[WorkerInfo]:
        """Workers whose heartbeat is fresh, by name."""
        with translated():
            ids = sorted(await self._redis.zrange(self._key("workers"), 0, -1))
            found = await self._redis.mget([self._key("worker", worker) for worker in ids]) if ids else []
        infos = [json.loads(text) for text in found if text is not None]
        return [worker_of(info) for info in infos]

    async def counts(self, tags: Sequence[str]) -> JobCounts:
        """How many jobs there are, and how many wait: in the streams those that nobody has taken."""
        pipeline = self._redis.pipeline(transaction=False)
        for name in (*JobState, "dead"):
            pipeline.zcard(self._key("jobs", name))
        for tag in tags:
            pipeline.zcard(self._key("delayed", tag))
            for level in _LEVELS:
                pipeline.xlen(self._key("queue", tag, level))
                pipeline.xpending(self._key("queue", tag, level), _GROUP)
        with translated():
            found = iter(await pipeline.execute(raise_on_error=False))
            known = [_count(next(found)) for _ in (*JobState, "dead")]
            waiting = {}
            for tag in tags:
                waiting[tag] = _count(next(found))
                for _ in _LEVELS:
                    waiting[tag] += _count(next(found)) - _count(next(found))
        return JobCounts(dict(zip(JobState, known, strict=False)), known[-1], waiting)

    async def ping(self) -> None:
        """Raise `NotReady` when the server is away."""
        with translated():
            await self._redis.ping()

    async def _take(self, tags: Sequence[str]) -> Taken:
        """The next entry for a worker with `tags`, which is not its own yet."""
        queues = [(tag, level) for tag in tags for level in _LEVELS]
        keys = [self._key("queue", *queue) for queue in queues]
        others = [*(self._key("delayed", tag) for tag in tags), self._key("turns")]
        args: list[str | int] = [self._lease_ms, len(tags), ",".join(sorted(tags)), len(_LEVELS), *_TURNS]
        with translated():
            queue, entry, job_id, lasts, due, next_ms, count = await self._scripts["take"](
                keys=keys + others, args=args
            )
        due_places = []
        for number, name in zip(due[::2], due[1::2], strict=True):
            priority, _, due_id = name.partition(":")
            due_places.append(Place(due_id, tags[number - 1], Priority(priority)))
        taken = None if queue == 0 else Place(job_id, *queues[queue - 1])._replace(children=count)
        ends = dict(zip(keys, lasts, strict=True))
        return Taken(taken, entry or "", ends, due_places, None if next_ms < 0 else next_ms)

    async def _own(self, place: Place, entry: str, worker: str) -> Lease | None:
        """The lease on an entry's job, unless there is nothing to own; one that nobody waits for goes back."""
        starting = asyncio.ensure_future(self._start(place, entry, worker))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if (lease := await starting) is not None:
                await self.release(lease, reason="the worker went away")
            raise

    async def _start(self, place: Place, entry: str, worker: str) -> Lease | None:
        token = secrets.token_hex(16)
        found = await self._call("start", place, entry, token, worker, self._lease_ms)
        if not found:
            return None
        job = job_of(place.id, found)
        return Lease(job, job.attempt, token, worker)

    async def _fenced(self, script: str, lease: Lease, *args: Any) -> Any:
        return await self._call(script, place_of(lease.job), lease.attempt, lease.token, *args)

    async def _call(self, script: str, place: Place, *args: Any, more_keys: Sequence[str] = ()) -> Any:
        sweep = parent_of(place.id) or place.id
        keys = [
            self._key("job", place.id),
            self._key("events", place.id),
            self._key("queue", place.tag, place.priority),
            self._key("jobs"),
            *(self._key("jobs", state) for state in JobState),
            self._key("ended"),
            self._key("jobs", "dead"),
            self._key("delayed", place.tag),
            self._key("job", sweep),
            self._key("events", sweep),
            *(self._key("queue", place.tag, level) for level in _LEVELS),
            *more_keys,
        ]
        for number in range(place.children):
            child = child_id(place.id, number)
            keys += [self._key("job", child), self._key("events", child)]
        with translated():
            return await self._scripts[script](keys=keys, args=[place.id, *self._common, *args])

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))
