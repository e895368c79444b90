"""Bundles with programs over HTTP: a good one is served, a hostile one gets a 400 that names its operation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

import engine as ax
from service.adapters.clock import SystemClock
from service.adapters.dataset_files import FileDatasetReader
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.file_uploads import FileUploadStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.api.rest.app import create_app
from service.api.rest.context import Context
from service.core.datasets import DatasetService
from service.core.errors import InvalidModel
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.starts import Starts
from service.core.types import ServingConfig
from service.core.uploads import UploadService
from tests.engine.bundle.hostile_bundles import good, packed
from tests.engine.bundle.hostile_corpus import CORPUS

HOSTILE = {
    "Python callback": "custom_call @xla_python_cpu_callback",
    "LAPACK": "custom_call @lapack_sgetrf_ffi",
    "endless loop in the derivative": "vjp, function main: while",
    "pickle for an artifact": "offsets inside of the file",
    "cut at 0.5": "zip",
}


@dataclass
class Server:
    """REST over the real engine, and what it has stored."""

    http: httpx.AsyncClient
    models: FileModelStore
    registry: Registry


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """An application with the real engine, without a socket."""
    clock, limits, engine = SystemClock(), Limits(), EngineRuntime(device="cpu")
    models, datasets = FileModelStore(tmp_path, clock), FileDatasetStore(tmp_path)
    queue, unfinished = MemoryJobQueue(clock), FileUploadStore(tmp_path)
    starts = Starts(models, FileCheckpointStore(tmp_path), queue)
    uploads = UploadService(unfinished, clock, limits)
    registry = Registry(models, engine, clock, ServingConfig(max_batch_size=4))
    context = Context(
        registry,
        DatasetService(datasets, datasets.scratch, FileDatasetReader(), clock, limits, queue, uploads),
        JobService(queue, datasets, engine, clock, limits, starts=starts),
        uploads,
        limits,
        asyncio.Event(),
    )
    transport = httpx.ASGITransport(create_app(context, version="0"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as http:
        yield Server(http, models, registry)
    await registry.close()
    models.close()
    datasets.close()
    unfinished.close()


async def test_a_bundle_with_a_program_is_served(server: Server, tmp_path: Path):
    """Submitted, loaded and described; it answers what the model it was written from answers."""
    data = packed(good())
    reply = await server.http.post("/v1/models/m/versions", content=data)
    assert (reply.status_code, reply.json().get("state")) == (201, "READY"), reply.text
    graph = (await server.http.get("/v1/models/m/versions/1/graph")).json()
    assert [node["op"] for node in graph["nodes"]].count("program") == 1
    assert list(graph["artifacts"]) == ["square_0"]
    served = server.registry.resolve("m")
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    (got,) = (await served.infer({"x": x})).values()
    path = tmp_path / "m.axon"
    path.write_bytes(data)
    found = ax.bundle.read(path, trusted=True)
    np.testing.assert_allclose(got, ax.build(found.model)[1](found.state, x), rtol=1e-6)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_bundle_gets_a_400_that_says_why(server: Server, name: str):
    """Nothing is stored, and the server goes on."""
    reply = await server.http.post("/v1/models/m/versions", content=CORPUS[name].build())
    assert reply.status_code == 400, reply.text
    assert HOSTILE[name] in reply.json()["error"]
    assert server.models.models() == []


def test_a_graph_alone_cannot_name_programs():
    """They are in bundles: validation, submission of a graph and jobs say so."""
    runtime, graph = EngineRuntime(device="cpu"), good()["graph.json"]
    with pytest.raises(InvalidModel, match="artifacts: expected a bundle, which holds the programs"):
        runtime.check_graph(graph)
    with pytest.raises(InvalidModel, match="artifacts: expected a bundle, which holds the programs"):
        runtime.check_training(graph, loss={"name": "mean_squared_error"}, optimizer={"name": "sgd"}, metrics=())
