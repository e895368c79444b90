"""A text classifier with lengths 4, 8 and 16 over REST: every length up to 16 gives the unpadded model's numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jax
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
from service.api.rest import v2
from service.api.rest.app import create_app
from service.api.rest.context import Context
from service.api.rest.dispatch import Dispatcher
from service.core.datasets import DatasetService
from service.core.inference import InferenceService
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.starts import Starts
from service.core.types import ServingConfig
from service.core.uploads import UploadService
from tests.service.adapters.text_model import LENGTHS, SERVING, tokens_of, unpadded, write_bundle


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The whole of REST over the real engine, without a socket."""
    clock, limits, engine = SystemClock(), Limits(), EngineRuntime(device="cpu")
    models, datasets = FileModelStore(tmp_path, clock), FileDatasetStore(tmp_path)
    queue, unfinished = MemoryJobQueue(clock), FileUploadStore(tmp_path)
    starts = Starts(models, FileCheckpointStore(tmp_path), queue)
    uploads = UploadService(unfinished, clock, limits)
    registry = Registry(models, engine, clock, ServingConfig())
    context = Context(
        registry,
        DatasetService(datasets, datasets.scratch, FileDatasetReader(), clock, limits, queue, uploads),
        JobService(queue, datasets, engine, clock, limits, starts=starts),
        uploads,
        limits,
        asyncio.Event(),
    )
    inference = InferenceService(registry, "axon", "0", clock)
    app = Dispatcher(create_app(context, (v2.router(inference),), version="0"), inference, max_body_bytes=2**20)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=300) as client:
        yield client
    await registry.close()
    models.close()
    datasets.close()
    unfinished.close()


async def _submit(http: httpx.AsyncClient, path: Path) -> ax.ModelState:
    state = write_bundle(path, SERVING)
    reply = await http.post("/v1/models/text/versions", content=path.read_bytes())
    assert (reply.status_code, reply.json().get("state")) == (201, "READY"), reply.text
    return state


async def _infer(http: httpx.AsyncClient, tokens: np.ndarray, **more: Any) -> httpx.Response:
    tensor = {"name": "tokens", "shape": list(tokens.shape), "datatype": "INT32", "data": tokens.ravel().tolist()}
    return await http.post("/v2/models/text/infer", json={"inputs": [tensor, *more.get("inputs", [])]})


def _outputs(reply: httpx.Response) -> dict[str, np.ndarray]:
    assert reply.status_code == 200, reply.text
    return {each["name"]: np.array(each["data"], np.float32).reshape(each["shape"]) for each in reply.json()["outputs"]}


async def test_requests_of_any_length_get_the_unpadded_models_numbers(http: httpx.AsyncClient, tmp_path: Path):
    """One after the other and all at once, so that lengths share batches; nothing is compiled for any of them."""
    state = await _submit(http, tmp_path / "text.axon")
    described = (await http.get("/v2/models/text")).json()
    assert [(tensor["name"], tensor["shape"]) for tensor in described["inputs"]] == [("tokens", [-1, -1])]
    assert [(tensor["name"], tensor["shape"]) for tensor in described["outputs"]] == [
        ("classes", [-1, 3]),
        ("steps", [-1, -1, 5]),
    ]
    requests = [tokens_of(rows, length) for length in range(1, 17) for rows in (1, 3)]
    expected = [unpadded(state, tokens) for tokens in requests]
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        alone = [await _infer(http, tokens) for tokens in requests]
        together = await asyncio.gather(*(_infer(http, tokens) for tokens in requests))
        refused = [await _infer(http, tokens_of(1, length)) for length in (17, 64, 1000)]
        refused.append(await _infer(http, tokens_of(5, 4)))
        mask = {"name": "mask", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}
        refused.append(await _infer(http, tokens_of(1, 4), inputs=[mask]))
    finally:
        jax.monitoring.clear_event_listeners()
    for replies in (alone, together):
        for reply, wanted in zip(replies, expected, strict=True):
            found = _outputs(reply)
            assert found["steps"].shape == wanted["steps"].shape
            for name, values in wanted.items():
                np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6)
    assert [reply.status_code for reply in refused] == [400] * len(refused)
    assert str(LENGTHS[-1]) in refused[0].json()["error"]
    assert not [event for event in compiled if "compile" in event]


async def test_sizes_may_be_declared_by_the_load(http: httpx.AsyncClient, tmp_path: Path):
    """A version without them is stored, but loading asks for them; exact sizes alone need no mask to be filled."""
    path = tmp_path / "text.axon"
    state = write_bundle(path)
    reply = await http.post("/v1/models/text/versions", params={"load": "false"}, content=path.read_bytes())
    assert reply.status_code == 201, reply.text
    load = "/v1/models/text/versions/1:load"
    reply = await http.post(load)
    assert reply.status_code == 400
    assert "input 'tokens' axis 1: expected open_sizes" in reply.json()["error"]
    size = {"axes": {"tokens": 1}, "sizes": [4], "mask": "mask"}
    reply = await http.post(load, json={"serving": {"batch_buckets": [1], "open_sizes": [size]}})
    assert (reply.status_code, reply.json()["state"]) == (200, "READY"), reply.text
    tokens = tokens_of(1, 4)
    np.testing.assert_allclose(
        _outputs(await _infer(http, tokens))["classes"], unpadded(state, tokens)["classes"], atol=1e-6
    )
    assert (await _infer(http, tokens_of(1, 3))).status_code == 400
