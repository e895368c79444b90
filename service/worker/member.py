"""A host of a worker that does not lead: it runs its part of every attempt, in a trainer process of its own.

It claims nothing and writes nothing but its trainer's own folder: lease, events, checkpoints and versions are the
leader's (`service.worker.crew`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from service.core.errors import InvalidRequest, NotReady, ServiceError
from service.core.ports import CheckpointStore, Clock, DatasetStore, ModelStore
from service.core.retry import AWAY, Backoff
from service.core.types import Json
from service.worker.child import TRAINER, Child, ended_by
from service.worker.crew import Link, host_and_port
from service.worker.devices import Devices, Slot
from service.worker.folders import private_folder, remove_abandoned
from service.worker.protocol import EXIT_STOPPED, MAX_MESSAGE_BYTES, TrainerJob
from service.worker.task import Task, trainer_job

_log = logging.getLogger(__name__)

_DEVICE = Backoff(base_s=5.0, cap_s=60.0)
_AWAY_S = 60.0
_MAX_FAILURE = 4000


@dataclass(frozen=True, slots=True)
class Member:
    """Host `number` (1 or more) of `hosts`, whose leader is at `leader` (`host:port`) and has the same `version`.

    `grace_s`: how long a trainer may take to stop; `command`: how it is started; `devices`: what it computes on;
    `idle_s`: how long the leader may be away, for ever without it.
    """

    number: int
    hosts: int
    leader: str
    version: str
    store: ModelStore
    datasets: DatasetStore
    checkpoints: CheckpointStore
    work_dir: Path
    clock: Clock
    grace_s: float = 10.0
    command: Sequence[str] = TRAINER
    devices: Devices | None = None
    idle_s: float | None = None

    async def run(self, stop: asyncio.Event) -> bool:
        """Take part in attempts until `stop`, or until the leader dismisses it; returns whether it has.

        Must run on the main thread, as the supervisor. Raises `InvalidRequest` when the leader does not want it,
        `NotReady` when that is away for `idle_s`.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("worker: expected to run on the main thread, got another one")
        await asyncio.to_thread(self.work_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(remove_abandoned, self.work_dir)
        slot = await self._slot(stop)
        failures, away_since = 0, self.clock.monotonic()
        while not stop.is_set():
            try:
                link = Link(*await asyncio.open_connection(*host_and_port(self.leader), limit=MAX_MESSAGE_BYTES))
            except OSError as error:
                failures += 1
                _log.log(logging.WARNING if failures == 1 else logging.DEBUG, "leader %s: %s", self.leader, error)
                if self.idle_s is not None and self.clock.monotonic() - away_since >= self.idle_s:
                    raise NotReady(f"leader {self.leader} has been away for {self.idle_s:g} s: {error}") from None
                await _until(stop, AWAY.delay_s(failures))
                continue
            try:
                if await self._take_part(link, slot, stop):
                    return True
            finally:
                await link.close()
            failures, away_since = 0, self.clock.monotonic()
        return False

    async def _slot(self, stop: asyncio.Event) -> Slot:
        failures = 0
        while self.devices is not None and not stop.is_set():
            try:
                return (await self.devices.open())[0]
            except (NotReady, OSError) as error:
                failures += 1
                _log.error("host %d takes no part: %s", self.number, error)
                await _until(stop, _DEVICE.delay_s(failures))
        return Slot(0)

    async def _take_part(self, link: Link, slot: Slot, stop: asyncio.Event) -> bool:
        """One connection: wait for an attempt, and run it; returns whether the leader said goodbye."""
        link.keep_alive()
        with contextlib.suppress(OSError):
            await link.send("member", number=self.number, hosts=self.hosts, version=self.version)
        hearing, stopping = asyncio.create_task(link.receive()), asyncio.create_task(stop.wait())
        await asyncio.wait([hearing, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        message = hearing.result() if hearing.done() else None
        hearing.cancel()
        match message:
            case {"type": "dismissed"}:
                return True
            case {"type": "refused", "reason": reason}:
                raise InvalidRequest(f"leader {self.leader}: {reason}")
            case {"type": "task", "task": task, "coordinator": coordinator}:
                failure = await self._attempt(Task(**task), coordinator, link, slot, stop)
                with contextlib.suppress(OSError):
                    await link.send("ended", failure=failure[-_MAX_FAILURE:])
                await link.receive()  # the leader ends the connection, when the attempt is over for all
        return False

    async def _attempt(self, task: Task, coordinator: str, link: Link, slot: Slot, stop: asyncio.Event) -> str:
        """Run the trainer until it ends, or the leader is gone; returns how it failed."""
        with private_folder(self.work_dir.absolute(), f"{task.job}-{task.attempt}-{self.number}") as folder:
            try:
                job = await self._prepared(task, folder, stop)
            except (ServiceError, OSError) as error:
                return str(error)
            job = replace(job, process=self.number, processes=self.hosts, coordinator=coordinator)
            child = await Child.spawn(job, self.clock, command=self.command, environment=slot.environment)
            try:
                code = await self._watch(child, link, stop)
            finally:
                await child.close()
        return "" if code in (0, EXIT_STOPPED) else ended_by(code, child.tail)

    async def _prepared(self, task: Task, folder: Path, stop: asyncio.Event) -> TrainerJob:
        """What the trainer needs; a store that is away for a moment costs the job no attempt, as on the first host."""
        failures, since = 0, self.clock.monotonic()
        while True:
            try:
                return await trainer_job(self, task, folder)
            except NotReady as error:
                failures += 1
                if stop.is_set() or self.clock.monotonic() - since >= _AWAY_S:
                    raise
                _log.log(logging.WARNING if failures == 1 else logging.DEBUG, "job %s waits: %s", task.job, error)
                await _until(stop, AWAY.delay_s(failures))

    async def _watch(self, child: Child, link: Link, stop: asyncio.Event) -> int:
        """The trainer's exit status; it is killed when the leader is gone, or when it does not stop in time."""
        running = asyncio.create_task(_ended(child))
        gone = asyncio.create_task(link.receive())  # nothing is said to a member that trains
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([running, gone, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not gone.done():
                with contextlib.suppress(OSError):
                    await link.send("stopping")  # the leader has all trainers stop at the same step
                await asyncio.wait([running, gone], timeout=self.grace_s, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                child.kill()
            return await running
        finally:
            for task in (gone, stopping):
                task.cancel()
            await asyncio.gather(gone, stopping, return_exceptions=True)


async def _ended(child: Child) -> int:
    """Read what a trainer says, which is for the log only, to its end."""
    async for message in child.messages():
        _tell(message)
    return await child.wait()


def _tell(message: Mapping[str, Json]) -> None:
    match message:
        case {"type": "log", "line": line}:
            _log.info("trainer: %s", line)
        case {"type": "failed", "error": error}:
            _log.info("trainer: %s", error)


async def _until(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
