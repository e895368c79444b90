"""The worker: claims jobs, runs each in a trainer process of its own, one per slot, and shows that it is alive.

It never imports JAX: its memory stays small, and the accelerator's is free whenever no trainer runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.core.errors import NotFound, NotReady
from service.core.job_spec import tag_of
from service.core.ports import CheckpointStore, Clock, DatasetStore, JobQueue, ModelStore
from service.core.retry import AWAY, DEFAULT_BACKOFF, Backoff
from service.core.tracing import Tracer
from service.core.types import Lease, WorkerInfo
from service.worker.attempt import Attempt, Workplace, end
from service.worker.attempt_span import traced
from service.worker.child import TRAINER
from service.worker.crew import Crew
from service.worker.devices import Devices, Slot
from service.worker.faults import fault_point
from service.worker.folders import private_folder, remove_abandoned

_log = logging.getLogger(__name__)

_CLAIM_S = 30.0
_BROKE_S = 1.0
_HEARTBEAT_TTL_S = 15.0
_TIDY_EVERY_S = 600.0
_ROOM_S = 2.0
_CREW_S = 0.2
_DEVICE = Backoff(base_s=5.0, cap_s=60.0)


class Supervisor:
    """Works through the jobs with `tags`, until told to stop.

    Args:
        worker_id: a name of its own among all workers.
        work_dir: for the trainers' local files; may be shared by the workers of a machine.
        lease_s: as in the queue. A trainer is killed when the lease could not be renewed for so long.
        grace_s: how long a trainer may take to write a checkpoint and stop.
        command: how a trainer is started; the tests' own ones.
        backoff: how long a crashed job waits.
        devices: what its slots compute on; one slot with JAX's own choice when it is not given.
        keep_s: how long checkpoints stay of jobs that failed or were cancelled.
        crew: the other hosts of a worker that trains on several; it then takes jobs for so many hosts, one at a time.
        idle_s: how long to wait for a job before the worker ends; None waits for ever.
        tracer: takes a span of each attempt, in the trace of the request that submitted the job.
    """

    def __init__(
        self,
        *,
        queue: JobQueue,
        store: ModelStore,
        datasets: DatasetStore,
        checkpoints: CheckpointStore,
        worker_id: str,
        tags: Sequence[str],
        work_dir: Path,
        lease_s: float,
        clock: Clock,
        grace_s: float = 10.0,
        command: Sequence[str] = TRAINER,
        backoff: Backoff = DEFAULT_BACKOFF,
        devices: Devices | None = None,
        keep_s: float = 7 * 86_400.0,
        crew: Crew | None = None,
        idle_s: float | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._place = Workplace(
            queue, store, datasets, checkpoints, clock, lease_s, grace_s, tuple(command), backoff, keep_s, crew
        )
        self._crew = crew
        self._idle_s = idle_s
        self._tracer = tracer
        self._devices = devices
        self._worker_id = worker_id
        self._tags = tuple(tags) if crew is None else tuple(tag_of(tag, crew.hosts) for tag in tags)
        self._work_dir = work_dir
        self._version = version("axon-server")
        self._slots: tuple[Slot, ...] = (Slot(0),)
        self._current: dict[int, Attempt] = {}
        self._waiting: dict[int, str] = {}
        self._broken = ""
        self._device = ""
        self._tidied_at: float | None = None
        self._changed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; a job under way then writes a checkpoint and is given back.

        Must run on the main thread, which must live as long as the trainers: the kernel ties a trainer's life to the
        thread that started it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("supervisor: expected to run on the main thread, got another one")
        self._work_dir.mkdir(parents=True, exist_ok=True)
        beating = asyncio.create_task(self._beat())
        try:
            if self._crew is not None:
                await self._crew.open()
            await self._open_devices(stop)
            async with asyncio.TaskGroup() as slots:
                for slot in self._slots:
                    slots.create_task(self._serve(slot, stop))
        finally:
            if self._crew is not None:
                await self._crew.close()
            await end(beating)

    async def _open_devices(self, stop: asyncio.Event) -> None:
        """Initialise the devices. While that fails the worker says why and takes nothing."""
        failures = 0
        while self._devices is not None and not stop.is_set():
            try:
                self._slots = await self._devices.open()
            except (NotReady, OSError) as error:
                failures += 1
                self._broken = str(error)
                _log.error("worker %s takes no jobs: %s", self._worker_id, error)
                self._changed.set()
                await _until(stop.wait(), _DEVICE.delay_s(failures))
            else:
                self._broken, self._device = "", self._devices.kind
                self._changed.set()
                return

    async def _serve(self, slot: Slot, stop: asyncio.Event) -> None:
        """Work through jobs, one at a time."""
        failures = 0
        waiting_since = self._place.clock.monotonic()
        while not stop.is_set():
            if slot.number == 0:
                await self._tidy()
            if not await self._has_room(slot):
                await _until(stop.wait(), _ROOM_S if self._crew is None else _CREW_S)
                continue
            try:
                lease = await self._claim(stop)
            except NotReady as error:
                _log.warning("worker %s: %s", self._worker_id, error)
                failures += 1
                await _until(stop.wait(), AWAY.delay_s(failures))
                continue
            failures = 0
            if lease is not None:
                await self._attempt(slot, lease, stop)
                waiting_since = self._place.clock.monotonic()
            elif self._idle_s is not None and self._place.clock.monotonic() - waiting_since >= self._idle_s:
                return

    async def _has_room(self, slot: Slot) -> bool:
        """Whether all hosts are here and the slot's devices have memory for a trainer; when not the worker says so."""
        reason = "" if self._crew is None else self._crew.lack()
        if not reason and self._devices is not None:
            reason = await self._devices.lack(slot)
        if reason != self._waiting.get(slot.number, ""):
            self._waiting[slot.number] = reason
            if reason:
                _log.warning("worker %s: slot %d waits: %s", self._worker_id, slot.number, reason)
            self._changed.set()
        return not reason

    @property
    def _claim_s(self) -> float:
        return _CLAIM_S if self._idle_s is None else min(_CLAIM_S, self._idle_s)

    async def _claim(self, stop: asyncio.Event) -> Lease | None:
        """Wait for a job, or for `stop`; a claim that is given up takes nothing with it. Raises `NotReady`."""
        claiming = asyncio.create_task(self._place.queue.claim(self._worker_id, self._tags, wait_s=self._claim_s))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([claiming, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await end(claiming)
        return None if claiming.cancelled() else claiming.result()

    async def _attempt(self, slot: Slot, lease: Lease, stop: asyncio.Event) -> None:
        fault_point("claimed")
        try:
            with (
                private_folder(self._work_dir.absolute(), f"{lease.job.id}-{lease.attempt}") as folder,
                traced(self._tracer, self._place.clock, lease),
            ):
                attempt = self._current[slot.number] = Attempt(self._place, lease, folder, slot.environment)
                self._changed.set()
                await attempt.run(stop)
                self._device = attempt.device or self._device
        except Exception:  # the worker outlives any job; the lease runs out and the attempt counts
            _log.exception("worker %s: attempt %d at job %s broke", self._worker_id, lease.attempt, lease.job.id)
            await _until(stop.wait(), _BROKE_S)
        finally:
            self._current.pop(slot.number, None)
            self._changed.set()

    async def _beat(self) -> None:
        """Show this worker now and then, and soon after every change; no job waits for that."""
        while True:
            self._changed.clear()
            await self._show()
            await _until(self._changed.wait(), _HEARTBEAT_TTL_S / 3)

    async def _show(self) -> None:
        attempts = [self._current[number] for number in sorted(self._current)]
        reasons = [reason for number, reason in self._waiting.items() if reason and number not in self._current]
        state = "idle"
        if attempts:
            state = "training"
        elif self._broken or len(reasons) == len(self._slots):
            state = "broken" if self._broken else "waiting"
        jobs = tuple(attempt.job_id for attempt in attempts)
        info = WorkerInfo(
            id=self._worker_id,
            tags=self._tags,
            device=next((attempt.device for attempt in attempts if attempt.device), self._device),
            state=state,
            job=jobs[0] if jobs else None,
            version=self._version,
            heartbeat_at=self._place.clock.time(),
            slots=len(self._slots),
            jobs=jobs,
            devices=() if self._devices is None else self._devices.seen,
            problem=self._broken or "; ".join(reasons),
        )
        with contextlib.suppress(NotReady):
            await self._place.queue.beat(info, ttl_s=_HEARTBEAT_TTL_S)

    async def _tidy(self) -> None:
        """Now and then remove what killed workers left: local folders, and checkpoints of jobs that have ended."""
        now = self._place.clock.monotonic()
        if self._tidied_at is not None and now - self._tidied_at < _TIDY_EVERY_S:
            return
        self._tidied_at = now
        try:
            await asyncio.to_thread(remove_abandoned, self._work_dir)
            for job_id in await asyncio.to_thread(self._place.checkpoints.jobs):
                await self._clear(job_id)
        except (NotReady, OSError) as error:
            _log.warning("worker %s: cannot tidy up: %s", self._worker_id, error)

    async def _clear(self, job_id: str) -> None:
        """Remove a job's checkpoints when their time is over, or note when that will be."""
        expires_at = await asyncio.to_thread(self._place.checkpoints.expiry, job_id)
        if expires_at is not None:
            if self._place.clock.time() >= expires_at:
                await asyncio.to_thread(self._place.checkpoints.delete, job_id)
            return
        with contextlib.suppress(NotFound):  # perhaps another queue's: left alone
            job = await self._place.queue.get(job_id)
            if job.state.final:
                await asyncio.to_thread(self._place.clear, job)


async def _until(awaited: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaited
