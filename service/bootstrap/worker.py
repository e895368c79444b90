"""`axon worker`."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence

from service.adapters.clock import SystemClock
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.bootstrap.queue import build_queue, redis_url
from service.core.retry import Backoff
from service.settings import Settings


async def work(settings: Settings, tags: Sequence[str], stop: asyncio.Event) -> None:
    """`axon worker`: takes jobs with `tags` until `stop`; never imports JAX."""
    from service.worker.devices import Devices
    from service.worker.supervisor import Supervisor

    devices = Devices(settings.worker_device, settings.worker_slots, os.environ)
    clock = SystemClock()
    queue = build_queue(settings, redis_url(settings))
    models, datasets = FileModelStore(settings.data_dir, clock), FileDatasetStore(settings.data_dir)
    supervisor = Supervisor(
        queue=queue,
        store=models,
        datasets=datasets,
        checkpoints=FileCheckpointStore(settings.data_dir),
        worker_id=f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}",
        tags=tags,
        work_dir=settings.data_dir / "work",
        lease_s=settings.job_lease_s,
        clock=clock,
        grace_s=settings.job_grace_s,
        backoff=Backoff(settings.job_retry_base_s, settings.job_retry_cap_s),
        devices=devices,
        keep_s=settings.keep_jobs_s,
    )
    try:
        await supervisor.run(stop)
    finally:
        models.close()
        datasets.close()
        await queue.close()
