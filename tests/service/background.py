"""REST over a real socket in a thread, with the fake engine and, by default, a memory queue: for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.adapters.clock import SystemClock
from service.adapters.dataset_files import FileDatasetReader
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.api.rest import v2
from service.api.rest.app import create_app
from service.api.rest.context import Context
from service.api.rest.dispatch import Dispatcher
from service.api.rest.server import Server, build_server
from service.core.datasets import DatasetService
from service.core.inference import InferenceService
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.starts import Starts
from service.core.types import ServingConfig
from service.core.uploads import UploadService
from tests.service.fake_engine import FakeEngine
from tests.service.waiting import WAIT_S


@dataclass
class Background:
    """A running server; `call` runs a coroutine on its loop."""

    url: str
    queue: Any
    engine: FakeEngine
    loop: asyncio.AbstractEventLoop

    def call(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Await `work()` on the server's loop."""

        async def run() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)


@contextlib.contextmanager
def server(
    root: Path, make_queue: Callable[[], Any] | None = None, limits: Limits | None = None
) -> Iterator[Background]:
    """Serve on a free port until the block ends; `make_queue` is called on the server's loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    started: list[Background] = []
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(root, listener, started, ready, stop, make_queue, limits or Limits()))
    )
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        yield started[0]
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


class _Nobody:
    """No job needs a data set."""

    async def using(self, dataset_id: str) -> list[str]:
        return []


async def _serve(
    root: Path,
    listener: socket.socket,
    started: list[Background],
    ready: threading.Event,
    stop: threading.Event,
    make_queue: Callable[[], Any] | None,
    limits: Limits,
) -> None:
    clock, engine = SystemClock(), FakeEngine()
    models, datasets = FileModelStore(root, clock), FileDatasetStore(root)
    queue = MemoryJobQueue(clock) if make_queue is None else make_queue()
    unfinished = FileUploadStore(root)
    starts = Starts(models, FileCheckpointStore(root), queue)
    uploads = UploadService(unfinished, clock, limits)
    uses = _Nobody() if make_queue else queue
    registry = Registry(models, engine, clock, ServingConfig(), board=FileReplicaBoard(root, clock))
    inference = InferenceService(registry, "axon", "0", clock)
    stopping = asyncio.Event()
    context = Context(
        registry,
        DatasetService(datasets, datasets.scratch, FileDatasetReader(), clock, limits, uses, uploads),
        JobService(queue, datasets, engine, clock, limits, starts=starts),
        uploads,
        limits,
        stopping,
    )
    app = create_app(context, (v2.router(inference),), version="0")
    http: Server = build_server(Dispatcher(app, inference, max_body_bytes=2**20), backlog=16, drain_s=5)
    running = asyncio.create_task(http.serve(sockets=[listener]))
    convergence = asyncio.create_task(registry.run(stopping))
    started.append(
        Background(f"http://127.0.0.1:{listener.getsockname()[1]}", queue, engine, asyncio.get_running_loop())
    )
    while not http.started:
        await asyncio.sleep(0.01)
    ready.set()
    await asyncio.to_thread(stop.wait)
    stopping.set()
    http.should_exit = True
    await asyncio.gather(running, convergence)
    await registry.close()
    models.close()
    datasets.close()
    unfinished.close()
