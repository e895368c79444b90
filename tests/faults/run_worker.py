"""A worker as a process of its own: `python run_worker.py DATA_FOLDER REDIS_URL WORKER_ID LEASE_S [FAKE_TRAINER]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from service.adapters.clock import SystemClock
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.retry import Backoff
from service.worker.child import TRAINER
from service.worker.supervisor import Supervisor

FAKE_TRAINER = Path(__file__).parents[1] / "service" / "worker" / "fake_trainer.py"


async def main(root: Path, url: str, worker_id: str, lease_s: float, behaviour: str | None) -> None:
    """Work until SIGTERM, with real trainers or those of a behaviour of `tests/service/worker/fake_trainer.py`."""
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
        tags=[os.environ.get("TAG", "default")],
        work_dir=root / "work",
        lease_s=lease_s,
        clock=clock,
        backoff=Backoff(0.1, 0.5),
        command=TRAINER if behaviour is None else (sys.executable, str(FAKE_TRAINER), behaviour),
    )
    try:
        await supervisor.run(stop)
    finally:
        await queue.close()
        store.close()
        datasets.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), (sys.argv[5:] or [None])[0]))
