"""The worker: claims jobs, runs each in a trainer process of its own, one at a time, and shows that it is alive.

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
from service.core.ports import CheckpointStore, Clock, DatasetStore, JobQueue, ModelStore
from service.core.retry import AWAY, DEFAULT_BACKOFF, Backoff
from service.core.types import Lease, WorkerInfo
from service.worker.attempt import Attempt, Workplace
from service.worker.child import TRAINER
from service.worker.folders import private_folder, remove_abandoned

_log = logging.getLogger(__name__)

_CLAIM_S = 30.0
_BROKE_S = 1.0
_HEARTBEAT_TTL_S = 15.0
_TIDY_EVERY_S = 600.0


class Supervisor:
    """Works through the jobs with `tags`, until told to stop.

    Args:
        worker_id: a name of its own among all workers.
        work_dir: for the trainers' local files; may be shared by the workers of a machine.
        lease_s: as in the queue. A trainer is killed when the lease could not be renewed for so long.
        grace_s: how long a trainer may take to write a checkpoint and stop.
        command: how a trainer is started; the tests' own ones.
        backoff: how long a crashed job waits.
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
    ) -> None:
        self._place = Workplace(queue, store, datasets, checkpoints, clock, lease_s, grace_s, tuple(command), backoff)
        self._failures = 0
        self._worker_id = worker_id
        self._tags = tuple(tags)
        self._work_dir = work_dir
        self._version = version("axon-server")
        self._current: Attempt | None = None
        self._device = ""
        self._tidied_at: float | None = None

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
            while not stop.is_set():
                await self._tidy()
                lease = await self._claim(stop)
                if lease is not None:
                    await self._attempt(lease, stop)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _claim(self, stop: asyncio.Event) -> Lease | None:
        """Wait for a job, or for `stop`; a claim that is given up takes nothing with it."""
        claiming = asyncio.create_task(self._place.queue.claim(self._worker_id, self._tags, wait_s=_CLAIM_S))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([claiming, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            claiming.cancel()
            await asyncio.wait([claiming, stopping])
        if claiming.cancelled():
            return None
        try:
            lease = claiming.result()
        except NotReady as error:
            _log.warning("worker %s: %s", self._worker_id, error)
            self._failures += 1
            await _until(stop.wait(), AWAY.delay_s(self._failures))
            return None
        self._failures = 0
        return lease

    async def _attempt(self, lease: Lease, stop: asyncio.Event) -> None:
        try:
            with private_folder(self._work_dir, f"{lease.job.id}-{lease.attempt}") as folder:
                self._current = Attempt(self._place, lease, folder)
                await self._show()
                await self._current.run(stop)
                self._device = self._current.device or self._device
        except Exception:  # the worker outlives any job; the lease runs out and the attempt counts
            _log.exception("worker %s: attempt %d at job %s broke", self._worker_id, lease.attempt, lease.job.id)
            await _until(stop.wait(), _BROKE_S)
        finally:
            self._current = None

    async def _beat(self) -> None:
        while True:
            await self._show()
            await asyncio.sleep(_HEARTBEAT_TTL_S / 3)

    async def _show(self) -> None:
        current = self._current
        info = WorkerInfo(
            id=self._worker_id,
            tags=self._tags,
            device=self._device if current is None else current.device or self._device,
            state="idle" if current is None else "training",
            job=None if current is None else current.job_id,
            version=self._version,
            heartbeat_at=self._place.clock.time(),
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
                with contextlib.suppress(NotFound):  # perhaps another queue's: left alone
                    if (await self._place.queue.get(job_id)).state.final:
                        await asyncio.to_thread(self._place.checkpoints.delete, job_id)
        except (NotReady, OSError) as error:
            _log.warning("worker %s: cannot tidy up: %s", self._worker_id, error)


async def _until(awaited: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaited
