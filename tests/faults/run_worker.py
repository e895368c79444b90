"""A worker as a process of its own: `python run_worker.py DATA_FOLDER REDIS_URL WORKER_ID LEASE_S`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from service.adapters.clock import SystemClock
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.worker.supervisor import Supervisor


async def main(root: Path, url: str, worker_id: str, lease_s: float) -> None:
    """Work until SIGTERM."""
    clock = SystemClock()
    store, datasets = FileModelStore(root, clock), FileDatasetStore(root)
    queue = RedisJobQueue(connect(url), clock, lease_s=lease_s)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    supervisor = Supervisor(
        queue=queue,
        store=store,
        datasets=datasets,
        checkpoints=FileCheckpointStore(root),
        worker_id=worker_id,
        tags=["default"],
        work_dir=root / "work",
        lease_s=lease_s,
        clock=clock,
    )
    try:
        await supervisor.run(stop)
    finally:
        await queue.close()
        store.close()
        datasets.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])))
