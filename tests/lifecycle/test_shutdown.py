"""SIGTERM: first not ready, what was accepted is answered, and the end comes in time whatever is going on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as rpc
from tests.lifecycle.servers import MODEL, graph, mark_of, params, question, serving
from tests.service.waiting import wait_until

pytestmark = pytest.mark.e2e

DELAY_S = 2.0
WAITS_S = 1.5
"""How long a request waits for company here, so that it is on its way for sure when the signal comes."""


async def _submit(client: httpx.AsyncClient) -> None:
    files = {"graph": ("graph", json.dumps(graph()).encode()), "params": ("params", params(1))}
    (await client.post(f"/v1/models/{MODEL}/versions?alias=prod", files=files)).raise_for_status()


async def _ask(client: httpx.AsyncClient, seed: int) -> int:
    x = question(np.random.default_rng(seed), 1)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
    reply = await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]})
    assert reply.status_code == 200, reply.text
    return mark_of(x, np.array(reply.json()["outputs"][0]["data"], np.float32).reshape(x.shape))


async def _ask_grpc(stub: Any, seed: int) -> int:
    x = question(np.random.default_rng(seed), 1)
    given = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
    reply = await stub.ModelInfer(
        pb.ModelInferRequest(model_name=MODEL, inputs=[given], raw_input_contents=[x.tobytes()]), timeout=30
    )
    return mark_of(x, np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(x.shape))


async def test_stopping_server_is_first_not_ready_then_answers_what_it_has(tmp_path: Path):
    """On both wires: not ready while it still takes requests, the last of which are answered after it stopped to."""
    with serving(tmp_path / "data", stop_delay_s=DELAY_S) as (server,):
        limits = httpx.Limits(max_connections=50)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            await _submit(client)
            config = json.dumps({"dynamic_batching": {"max_queue_delay_microseconds": int(WAITS_S * 1e6)}})
            load = {"parameters": {"config": config}}
            (await client.post(f"/v2/repository/models/{MODEL}/load", json=load)).raise_for_status()
            stub = rpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            assert await _ask_grpc(stub, 0) == 1
            asked = [asyncio.create_task(_ask(client, seed)) for seed in range(3)]
            await asyncio.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await wait_until(lambda: _unready(client))
            assert time.monotonic() - began < DELAY_S
            health = health_pb2_grpc.HealthStub(channel)
            reply = await health.Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
            await asyncio.sleep(max(0.0, DELAY_S - 0.7 - (time.monotonic() - began)))
            # These are accepted still, and wait for longer than the server listens.
            asked += [asyncio.create_task(_ask(client, 10)), asyncio.create_task(_ask_grpc(stub, 11))]
            assert await asyncio.gather(*asked) == [1] * len(asked)
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert time.monotonic() - began < DELAY_S + WAITS_S + 10


async def _unready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/v2/health/ready")).status_code == 503


def _slow_graph(layers: int) -> dict[str, Any]:
    """A model that takes long to compile."""
    nodes: list[dict[str, Any]] = [{"name": "x", "op": "input", "options": {"shape": [None, 8, 8, 4]}}]
    for index in range(layers):
        options = {"units": 4 + index % 3, "kernel_size": 3, "padding": "same"}
        before = nodes[-1]["name"]
        nodes.append({"name": f"conv_{index}", "op": "conv", "inputs": [before], "options": options})
        nodes.append({"name": f"gelu_{index}", "op": "gelu", "inputs": [f"conv_{index}"]})
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": nodes[-1]["name"]}


async def test_server_that_compiles_ends_in_time(tmp_path: Path):
    """What is being compiled is given up, what serves is drained, and the process says that it ended well."""
    with serving(tmp_path / "data", drain_s=2, max_batch_size=64) as (server,):
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            await _submit(client)
            files = {"graph": ("graph", json.dumps(_slow_graph(150)).encode())}
            query = {"load": False}
            (await client.post("/v1/models/slow/versions", params=query, files=files)).raise_for_status()
            loading = asyncio.create_task(client.post("/v1/models/slow/versions/1:load"))
            await wait_until(lambda: _state(client, "LOADING"))
            await asyncio.sleep(1)
            assert await _ask(client, 1) == 1
            assert await _state(client, "LOADING"), "the model compiles too fast for this test"
            began = time.monotonic()
            code = await asyncio.to_thread(server.stop)
            took_s = time.monotonic() - began
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
    log = server.log.read_text()
    assert (code, "gave up loading model 'slow' version 1" in log) == (0, True), log[-3000:]
    assert took_s < 15


async def test_server_whose_store_hangs_ends_in_time(tmp_path: Path):
    """A file system that never answers keeps a thread for ever, not the process."""
    with serving(tmp_path / "data", drain_s=1) as (server,):
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await _submit(client)
            hung = tmp_path / "data" / "models" / "hung"
            hung.mkdir()
            os.mkfifo(hung / "state.json")  # who opens it waits for a writer
            await asyncio.sleep(2)  # some polls
            assert await _ask(client, 1) == 1
            began = time.monotonic()
            code = await asyncio.to_thread(server.stop)
    assert code == 0, server.log.read_text()[-3000:]
    assert time.monotonic() - began < 15


async def _state(client: httpx.AsyncClient, state: str) -> bool:
    found = (await client.get("/v1/models/slow")).json()["versions"][0]["state"]
    return bool(found == state)
