"""The application over real stores, a memory queue and the fake engine; spoken to without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.adapters.clock import SystemClock
from service.adapters.dataset_files import FileDatasetReader
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_replicas import FileReplicaBoard
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.api.rest.app import create_app
from service.api.rest.context import Context
from service.core.datasets import DatasetService
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.starts import Starts
from service.core.types import ServingConfig
from service.core.uploads import UploadService
from tests.service.fake_engine import FakeEngine

LIMITS = Limits(max_graph_bytes=1000, max_bundle_bytes=200_000, max_dataset_bytes=200_000, max_job_spec_bytes=5000)


@dataclass
class Server:
    """The application with its parts."""

    http: httpx.AsyncClient
    context: Context
    engine: FakeEngine
    models: FileModelStore
    queue: MemoryJobQueue
    root: Path

    def scratch_files(self) -> list[Path]:
        """What uploads left behind."""
        return [path for path in (self.root / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running application with small limits."""
    clock, engine = SystemClock(), FakeEngine()
    models, datasets = FileModelStore(tmp_path, clock), FileDatasetStore(tmp_path)
    queue = MemoryJobQueue(clock)
    unfinished = FileUploadStore(tmp_path)
    starts = Starts(models, FileCheckpointStore(tmp_path), queue)
    uploads = UploadService(unfinished, clock, LIMITS)
    registry = Registry(models, engine, clock, ServingConfig(), board=FileReplicaBoard(tmp_path, clock))
    context = Context(
        registry,
        DatasetService(datasets, datasets.scratch, FileDatasetReader(), clock, LIMITS, queue, uploads),
        JobService(queue, datasets, engine, clock, LIMITS, starts=starts),
        uploads,
        LIMITS,
        asyncio.Event(),
        heartbeat_s=0.05,
    )
    transport = httpx.ASGITransport(create_app(context, version="0"), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Server(http, context, engine, models, queue, tmp_path)
    engine.gate.set()
    await registry.close()
    models.close()
    datasets.close()
    unfinished.close()
