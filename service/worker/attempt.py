"""One attempt at one job: the lease is kept, the trainer watched, its end turned into the job's next state."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from service.core.errors import Conflict, InvalidRequest, NotFound, NotReady, ServiceError, StaleLease
from service.core.ports import CheckpointStore, Clock, DatasetStore, JobQueue, ModelStore
from service.core.retry import AWAY, DEFAULT_BACKOFF, Backoff
from service.core.types import Job, JobState, Json, Lease
from service.worker.child import TRAINER, Child, ended_by
from service.worker.crew import Crew, Members
from service.worker.faults import fault_point
from service.worker.protocol import TrainerJob
from service.worker.publish import promote, publish, published
from service.worker.sweep import choose, discard
from service.worker.task import Task, trainer_job

T = TypeVar("T")

_log = logging.getLogger(__name__)

MAX_RENEW_EVERY_S = 2.0
"""Renewal also brings the news of a cancellation, so it is not rarer than this."""
_MAX_WAITING_EVENTS = 1000
_FLUSH_S = 5.0
_MAX_TAIL = 4000
_CANCEL_AGAIN_S = 0.5
_BLAME_S = 1.0
_SAID_AFTER = 3


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every attempt of a supervisor uses.

    `backoff` is between a job's crashes; `keep_s` how long the checkpoints stay of a job that failed or was cancelled,
    unless its own `ttl_s` is less. `crew` has the other hosts, where the trainers of a job run on several.
    """

    queue: JobQueue
    store: ModelStore
    datasets: DatasetStore
    checkpoints: CheckpointStore
    clock: Clock
    lease_s: float
    grace_s: float = 10.0
    command: tuple[str, ...] = TRAINER
    backoff: Backoff = DEFAULT_BACKOFF
    keep_s: float = 7 * 86_400.0
    crew: Crew | None = None

    def clear(self, job: Job) -> None:
        """Do away with the checkpoints of a job that has ended: at once if it succeeded, else after its time. Blocking.

        Until then other jobs may start from them.
        """
        if job.state is JobState.SUCCEEDED:
            self.checkpoints.delete(job.id)
            return
        kept_s = self.keep_s if job.ttl_s is None else min(job.ttl_s, self.keep_s)
        ended_at = self.clock.time() if job.finished_at is None else job.finished_at
        self.checkpoints.expire(job.id, ended_at + kept_s)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended: Redis's client loses a cancellation that comes while it connects."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


class Stop(enum.StrEnum):
    """Why a trainer was stopped from outside."""

    CANCELLED = "cancelled"
    SHUTDOWN = "the worker shuts down"
    TIME = "the time limit is over"
    LOST = "the lease was lost"


class Attempt:
    """Runs one lease to its end, the trainer with `environment` beside our own.

    `device` is what the trainer computes on, once it has said so.
    """

    def __init__(
        self, place: Workplace, lease: Lease, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._place = place
        self._lease = lease
        self._job = lease.job
        self._folder = folder
        self._environment = environment or {}
        self._child: Child | None = None
        self._stopped: Stop | None = None
        self._lost = asyncio.Event()
        self._events: asyncio.Queue[tuple[str, Mapping[str, Json]]] = asyncio.Queue(_MAX_WAITING_EVENTS)
        self._finished: Mapping[str, Json] | None = None
        self._failed: str | None = None
        self._commits: list[asyncio.Task[None]] = []
        self._committing = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self._members: Members | None = None
        self.device = ""

    @property
    def job_id(self) -> str:
        """Whose attempt it is."""
        return self._job.id

    async def run(self, stop: asyncio.Event) -> None:
        """Work until the job has ended, is given back, or is another worker's; `stop` asks to give it back."""
        tasks = [
            asyncio.create_task(self._keep_lease()),
            asyncio.create_task(self._heed(stop)),
            asyncio.create_task(self._watch_time()),
            asyncio.create_task(self._send_events()),
        ]
        try:
            await self._work()
        except StaleLease:
            _log.warning("job %s: attempt %d lost its lease, nothing is changed", self._job.id, self._lease.attempt)
        finally:
            if self._child is not None:
                await self._child.close()
            if self._members is not None:  # also where no trainer could be started
                await self._members.close()
            await asyncio.gather(*map(end, tasks))
            others = [*self._commits] if self._ending is None else [*self._commits, self._ending]
            await asyncio.gather(*others, return_exceptions=True)

    async def _work(self) -> None:
        try:
            result = await (self._choose() if self._job.children else self._version())
            if result is not None:
                queue, store, lease, done = self._place.queue, self._place.store, self._lease, result
                told = await self._insist(lambda: promote(queue, store, lease, done))
                fault_point("published")
                if self._job.children:
                    await self._insist(lambda: discard(queue, store, lease, done))
                await self._settle(JobState.SUCCEEDED, result=told)
        except (StaleLease, NotReady):
            raise
        except ServiceError as error:  # the data set, the model or its number is gone: trying again is useless
            await self._settle(JobState.FAILED, error=str(error))
        except OSError as error:
            await self._release(f"the store failed: {error}", counts=True)

    async def _version(self) -> Mapping[str, Json] | None:
        """The result of a job whose version is published, by an earlier attempt or by this one."""
        result = await self._insist(lambda: asyncio.to_thread(published, self._place.store, self._job))
        return await self._conclude(await self._train()) if result is None else result

    async def _choose(self) -> Mapping[str, Json] | None:
        """The result of a sweep whose jobs have all ended."""
        chosen = await self._unless_cancelled(lambda: choose(self._place.queue, self._lease))
        fault_point("publishing")
        return chosen

    async def _train(self) -> int:
        """Run the trainer to its end; returns its exit status."""
        prepared = await self._unless_stopped(self._prepared)
        if prepared is None:
            return 0
        task, job = prepared
        limit_s = self._job.spec.get("time_limit_s")
        if limit_s is not None and self._job.ran_s >= limit_s:
            self._stop(Stop.TIME)
        if self._to_be_stopped():
            return 0
        if self._place.crew is not None:
            self._members = await self._place.crew.muster(task)
            job = self._members.first(job)
        self._child = await Child.spawn(
            job, self._place.clock, command=self._place.command, environment=self._environment
        )
        if self._to_be_stopped():  # meanwhile
            self._ending = asyncio.create_task(self._end_child(self._child))
        async with self._watching_members(self._child):
            async for message in self._child.messages():
                self._receive(self._child, message)
            code = await self._child.wait()
        await asyncio.gather(*self._commits)
        return code

    async def _prepared(self) -> tuple[Task, TrainerJob]:
        """What is to be done; a checkpoint that is gone means the beginning, which gives the same parameters, later."""
        hosts, here = int(self._job.spec.get("hosts", 1)), 1 if self._place.crew is None else self._place.crew.hosts
        if hosts != here:
            raise InvalidRequest(f"job {self._job.id}: expected a worker of {hosts} hosts, got one of {here}")
        task = Task.of(self._lease)
        if task.checkpoint is not None:
            try:
                await asyncio.to_thread(self._place.checkpoints.get, task.checkpoint)
            except NotFound as error:
                self._tell("log", {"line": f"{error}; starting from the beginning"})
                task = replace(task, checkpoint=None)
        return task, await trainer_job(self._place, task, self._folder)

    @contextlib.asynccontextmanager
    async def _watching_members(self, child: Child) -> AsyncIterator[None]:
        """End the trainer when another host's does not go on, and stop it when another host is to stop."""
        members = self._members
        if members is None:
            yield
            return

        async def watch() -> None:
            await members.failed(partial(self._stop, Stop.SHUTDOWN))
            child.kill()

        watching = asyncio.create_task(watch())
        try:
            yield
            if self._finished is None and self._failed is None and not self._to_be_stopped():
                await asyncio.wait([watching], timeout=_BLAME_S)  # they say why, when this one ended because of them
        finally:
            await end(watching)
            await members.close()

    def _to_be_stopped(self) -> bool:
        return self._stopped is not None

    def _receive(self, child: Child, message: Mapping[str, Json]) -> None:
        match message:
            case {"type": "progress", "data": data}:
                self._tell("progress", data)
            case {"type": "log", "line": line}:
                self._tell("log", {"line": line})
            case {"type": "checkpoint", "step": step, "path": path}:
                self._commits.append(asyncio.create_task(self._commit(child, step, Path(path))))
            case {"type": "finished"}:
                self._finished = message
            case {"type": "failed", "error": error}:
                self._failed = error
            case {"type": "started", "device": device}:
                self.device = device

    async def _commit(self, child: Child, step: int, path: Path) -> None:
        """Make a local checkpoint the job's: moved to the store, pointed at, older ones removed. One after another."""
        place = self._place
        async with self._committing:
            if self._stopped is Stop.LOST:
                return
            try:
                pointer = await asyncio.to_thread(place.checkpoints.put, self._job.id, self._lease.attempt, step, path)
                fault_point("checkpoint_stored")
                await self._insist(lambda: place.queue.commit_checkpoint(self._lease, pointer))
                await asyncio.to_thread(place.checkpoints.delete_older, self._job.id, pointer)
            except StaleLease:
                self._lose()
            except (OSError, NotReady) as error:  # a full disk, a store that is away: tried again when the next is due
                self._tell("log", {"line": f"the checkpoint of step {step} could not be stored: {error}"})
            await child.acknowledge(step)

    async def _conclude(self, code: int) -> Mapping[str, Json] | None:
        """Turn the trainer's end into the job's next state; returns the result of a job that has succeeded."""
        if self._stopped is Stop.LOST:
            raise StaleLease(f"job {self._job.id}: {Stop.LOST}")
        if self._finished is not None:
            return await self._publish(self._finished)
        if self._failed is not None:
            await self._settle(JobState.FAILED, error=self._failed)
        elif self._stopped is Stop.CANCELLED:
            await self._settle(JobState.CANCELLED)
        elif self._stopped is Stop.TIME:
            await self._settle(JobState.FAILED, error=f"the time limit of {self._job.spec['time_limit_s']:g} s is over")
        elif self._stopped is Stop.SHUTDOWN:
            await self._release(str(Stop.SHUTDOWN), counts=False)
        else:
            await self._release(self._crash(code), counts=True)
        return None

    def _crash(self, code: int) -> str:
        crash = ended_by(code, "" if self._child is None else self._child.tail[-_MAX_TAIL:])
        others = "" if self._members is None else self._members.failure
        return f"{others}; the first host: {crash}" if others else crash

    async def _publish(self, finished: Mapping[str, Json]) -> Mapping[str, Json] | None:
        place, bundle, manifest = self._place, Path(finished["bundle"]), finished["manifest"]
        job = await self._insist(lambda: place.queue.renew(self._lease))
        if job.cancel_requested:
            await self._settle(JobState.CANCELLED)
            return None
        return await self._unless_cancelled(
            lambda: publish(place.queue, place.store, self._lease, job, bundle, manifest)
        )

    async def _unless_cancelled(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """What `call` gives; None where it conflicts with a cancellation, as which the job is then settled."""
        try:
            return await self._insist(call)
        except Conflict:
            job = await self._insist(lambda: self._place.queue.renew(self._lease))
            if not job.cancel_requested:
                raise
            await self._settle(JobState.CANCELLED)
            return None

    async def _settle(
        self, state: JobState, *, result: Mapping[str, Json] | None = None, error: str | None = None
    ) -> None:
        await self._flush()
        job = await self._insist(lambda: self._place.queue.settle(self._lease, state, result=result, error=error))
        await asyncio.to_thread(self._place.clear, job)

    async def _release(self, reason: str, *, counts: bool) -> None:
        await self._flush()
        queue, failures = self._place.queue, self._job.attempt - self._job.released
        delay_s = self._place.backoff.delay_s(failures) if counts else 0.0
        try:
            job = await self._insist(lambda: queue.release(self._lease, reason=reason, counts=counts, delay_s=delay_s))
        except StaleLease:  # also the answer to a repetition, when the first answer was lost
            return
        if job.state.final:
            await asyncio.to_thread(self._place.clear, job)

    async def _keep_lease(self) -> None:
        """Renew until the end. While the server is away the trainer goes on, until somebody else could have the job."""
        clock, lease_s = self._place.clock, self._place.lease_s
        holds_until, failures = clock.monotonic() + lease_s, 0
        while True:
            asked_at = clock.monotonic()
            try:
                async with asyncio.timeout(max(holds_until - asked_at, 0.01)):
                    self._notice(await self._place.queue.renew(self._lease))
                holds_until, failures = asked_at + lease_s, 0
                await asyncio.sleep(min(lease_s / 3, MAX_RENEW_EVERY_S))
            except StaleLease:
                self._lose()
                return
            except (NotReady, TimeoutError):
                if clock.monotonic() >= holds_until:
                    self._lose()
                    return
                failures += 1
                await asyncio.sleep(min(AWAY.delay_s(failures), lease_s / 10))
            except Exception:
                _log.exception("job %s: attempt %d cannot renew its lease", self._job.id, self._lease.attempt)
                self._lose()
                return

    def _notice(self, job: Job) -> None:
        if job.cancel_requested:
            self._stop(Stop.CANCELLED)

    async def _heed(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop(Stop.SHUTDOWN)

    async def _watch_time(self) -> None:
        """Stop the trainer when all attempts together have run for as long as the job may."""
        limit_s = self._job.spec.get("time_limit_s")
        if limit_s is not None:
            await asyncio.sleep(limit_s - self._job.ran_s)
            self._stop(Stop.TIME)

    def _stop(self, why: Stop) -> None:
        """Have the trainer stop, gently first; a cancellation outweighs a shutdown."""
        if self._stopped in (why, Stop.LOST):
            return
        self._stopped = why
        if self._child is not None and self._ending is None:
            self._ending = asyncio.create_task(self._end_child(self._child))

    async def _end_child(self, child: Child) -> None:
        child.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._place.grace_s):
                await child.wait()
        child.kill()

    def _lose(self) -> None:
        """Somebody else may have the job: the trainer dies at once, and nothing is written any more."""
        self._stopped = Stop.LOST
        self._lost.set()
        if self._child is not None:
            self._child.kill()

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call while the server is away, as long as the lease may be ours."""
        failures = 0
        while True:
            if self._lost.is_set():
                raise StaleLease(f"job {self._job.id}: {Stop.LOST}")
            try:
                return await call()
            except NotReady as error:
                failures += 1
                if failures == _SAID_AFTER:
                    _log.warning("job %s: attempt %d waits: %s", self._job.id, self._lease.attempt, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AWAY.delay_s(failures)):
                        await self._lost.wait()

    async def _unless_stopped(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat a call while a store is away; None once the job is to be stopped."""
        failures = 0
        while not self._to_be_stopped():
            try:
                return await call()
            except NotReady as error:
                failures += 1
                if failures == _SAID_AFTER:  # it may last, such as credentials that are wrong
                    self._tell("log", {"line": f"the job waits: {error}"})
                await asyncio.sleep(AWAY.delay_s(failures))
        return None

    def _tell(self, kind: str, data: Mapping[str, Json]) -> None:
        """Queue an event for the job; the oldest is dropped when too many wait for a server that is away."""
        if self._events.full():
            self._events.get_nowait()
            self._events.task_done()
        self._events.put_nowait((kind, data))

    async def _send_events(self) -> None:
        while True:
            kind, data = await self._events.get()
            try:
                await self._insist(partial(self._place.queue.append, self._lease, kind, data))
            except StaleLease:
                self._lose()
            except Exception:
                _log.exception("job %s: an event is lost", self._job.id)
            finally:
                self._events.task_done()

    async def _flush(self) -> None:
        """Let the events get into the stream before the final state ends it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._events.join()
