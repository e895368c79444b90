"""`axon worker`."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from importlib.metadata import version

from service.adapters.clock import SystemClock
from service.bootstrap.observing import build_tracer
from service.bootstrap.queue import build_queue, redis_url
from service.bootstrap.stores import build_stores
from service.core.errors import InvalidRequest, NotReady
from service.core.retry import Backoff
from service.settings import Settings
from service.worker.crew import Crew, host_and_port

_SPANS_S = 2.0


async def work(settings: Settings, tags: Sequence[str], stop: asyncio.Event) -> None:
    """`axon worker`: takes jobs with `tags` until `stop`; never imports JAX.

    Raises `InvalidRequest` for settings that do not go together.
    """
    from service.worker.devices import Devices
    from service.worker.supervisor import Supervisor

    _check_hosts(settings)
    if settings.worker_number > 0:
        await _take_part(settings, stop)
        return
    devices = Devices(settings.worker_device, settings.worker_slots, os.environ)
    clock = SystemClock()
    queue = build_queue(settings, redis_url(settings))
    stores = build_stores(settings, clock)
    tracer = build_tracer(settings)
    supervisor = Supervisor(
        queue=queue,
        store=stores.models,
        datasets=stores.datasets,
        checkpoints=stores.checkpoints,
        worker_id=f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}",
        tags=tags,
        work_dir=settings.data_dir / "work",
        lease_s=settings.job_lease_s,
        clock=clock,
        grace_s=settings.job_grace_s,
        backoff=Backoff(settings.job_retry_base_s, settings.job_retry_cap_s),
        devices=devices,
        keep_s=settings.keep_jobs_s,
        crew=_crew(settings),
        idle_s=settings.worker_idle_s,
        tracer=tracer,
    )
    try:
        await supervisor.run(stop)
    finally:
        if tracer is not None:
            await asyncio.to_thread(tracer.close, _SPANS_S)
        stores.close()
        await queue.close()


async def _take_part(settings: Settings, stop: asyncio.Event) -> None:
    """A host of a worker that does not lead: it needs the stores, and no queue.

    Raises `NotReady` when it ends before its leader does, so that whoever keeps it running starts it again.
    """
    from service.worker.devices import Devices
    from service.worker.member import Member

    clock = SystemClock()
    stores = build_stores(settings, clock)
    member = Member(
        number=settings.worker_number,
        hosts=settings.worker_hosts,
        leader=settings.worker_leader or "",
        version=version("axon-server"),
        store=stores.models,
        datasets=stores.datasets,
        checkpoints=stores.checkpoints,
        work_dir=settings.data_dir / "work",
        clock=clock,
        grace_s=settings.job_grace_s,
        devices=Devices(settings.worker_device, 1, os.environ),
        idle_s=settings.worker_idle_s,
    )
    try:
        if not await member.run(stop):
            raise NotReady(f"host {settings.worker_number} ends before its leader")
    finally:
        stores.close()


def _crew(settings: Settings) -> Crew | None:
    if settings.worker_hosts == 1:
        return None
    return Crew(settings.worker_hosts, settings.worker_leader or "", version("axon-server"))


def _check_hosts(settings: Settings) -> None:
    if settings.worker_number >= settings.worker_hosts:
        expected = f"a number of 0 to {settings.worker_hosts - 1}"
        raise InvalidRequest(f"worker number: expected {expected}, got {settings.worker_number}")
    if settings.worker_hosts > 1:
        host_and_port(settings.worker_leader or "")
        if settings.worker_slots != 1:
            raise InvalidRequest(f"worker slots: expected 1 with several hosts, got {settings.worker_slots}")
