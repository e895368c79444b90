"""The extension model_repository over both wires, on a real store and registry."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.inference import InferenceServicer
from service.api.grpc.server import SECOND_REPOSITORY, build_server
from service.api.repository import ModelRepository
from service.api.rest import v2, v2_repository
from service.api.rest.errors import install
from service.core.inference import InferenceService
from tests.service.api.asgi import Reply, call
from tests.service.api.conftest import Server
from tests.service.api.grpc.listening import started
from tests.service.core.served import WAIT_S, RealClock
from tests.service.fake_engine import bundle_bytes

GRAPH = json.dumps({"scale": 3}).encode()
MAX_BODY = 300_000


class Wires:
    """Both wires over the registry of `server`."""

    def __init__(self, server: Server) -> None:
        self.registry = server.context.registry
        self.engine = server.engine
        self.root = server.root
        self.inference = inference = InferenceService(self.registry, "axon", "0", RealClock())
        self.repository = ModelRepository(self.registry, server.context.limits)
        self.app = FastAPI()
        self.app.include_router(v2.router(inference))
        self.app.include_router(v2_repository.router(self.repository, max_body_bytes=MAX_BODY))
        install(self.app)
        self.grpc = build_server(inference, self.repository, max_message_bytes=MAX_BODY)

    async def post(self, path: str, body: Any = None) -> Reply:
        """POST an object as JSON, or nothing."""
        content = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Length": str(len(content))}
        reply = await asyncio.wait_for(call(self.app, "POST", "/v2/repository" + path, content, headers), WAIT_S)
        assert reply is not None
        assert reply.headers["content-type"] == "application/json"
        return reply

    async def config(self) -> Any:
        """The configuration of `m`."""
        reply = await call(self.app, "GET", "/v2/models/m/config")
        assert reply is not None
        return reply.json


@pytest.fixture
async def wires(server: Server) -> Wires:
    """Both wires; gRPC has no port yet."""
    return Wires(server)


@pytest.fixture
async def channel(wires: Wires) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the gRPC side."""
    port = await started(wires.grpc)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await wires.grpc.stop(0)


async def test_index_has_every_version_and_its_state(wires: Wires) -> None:
    """READY, LOADING, UNAVAILABLE with a reason; a model that was never loaded has only its name."""
    assert (await wires.post("/index")).json == []
    await wires.registry.submit_graph("never", GRAPH, None, load=False)
    for scale in (1, 2):
        await wires.registry.submit_graph("m", json.dumps({"scale": scale}).encode(), None, load=scale == 2)
    wires.engine.fail[7] = ValueError("broken")
    with pytest.raises(Exception, match="did not load"):
        await wires.registry.submit_graph("m", b'{"scale": 7}', None)
    entries = (await wires.post("/index", {})).json
    assert entries[:2] == [
        {"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"},
        {"name": "m", "version": "2", "state": "READY", "reason": ""},
    ]
    assert (entries[2]["state"], entries[3:]) == ("UNAVAILABLE", [{"name": "never"}])
    assert "ValueError while loading" in entries[2]["reason"]
    assert (await wires.post("/any/index", {"ready": True})).json == [entries[1]]
    wires.engine.gate.clear()
    loading = asyncio.create_task(wires.registry.load("m", 1))
    async with asyncio.timeout(WAIT_S):
        while (await wires.post("/index")).json[0]["state"] != "LOADING":
            await asyncio.sleep(0.005)
    wires.engine.gate.set()
    await loading
    assert (await wires.post("/index", {"ready": 1})).status == 400


@pytest.mark.parametrize("prefix", ["", "/any"])
async def test_load_and_unload_are_effective_when_answered(wires: Wires, prefix: str) -> None:
    """Empty bodies, whatever the repository is called."""
    await wires.registry.submit_graph("m", GRAPH, None, load=False)
    assert (await wires.post(f"{prefix}/models/m/load")).json == {"name": "m", "load": True}
    assert wires.registry.versions("m") == [1]
    body = {"parameters": {"unload_dependents": True}}
    assert (await wires.post(f"{prefix}/models/m/unload", body)).json == {"name": "m", "unload": True}
    assert wires.registry.versions("m") == []
    assert (await wires.post("/index")).json[0] == {
        "name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded",
    }  # fmt: skip
    for verb in ("load", "unload"):
        assert (await wires.post(f"/models/none/{verb}")).status == 404


async def test_config_of_a_load_is_served(wires: Wires) -> None:
    """What it changes is changed, a load without it goes back; a client may repeat what it was told."""
    await wires.registry.submit_graph("m", GRAPH, None)
    told = await wires.config()
    policy = {"default_timeout_microseconds": "5000000", "max_queue_size": 9}
    changed = {
        **told,
        "dynamic_batching": {
            **told["dynamic_batching"],
            "max_queue_delay_microseconds": 20,
            "default_queue_policy": {**told["dynamic_batching"]["default_queue_policy"], **policy},
        },
    }
    body = {"parameters": {"config": json.dumps(changed)}}
    assert (await wires.post("/models/m/load", body)).status == 200
    config = wires.registry.resolve("m").config
    assert (config.max_queue_delay_us, config.default_timeout_us, config.max_queue_requests) == (20, 5_000_000, 9)
    assert (await wires.config())["dynamic_batching"]["max_queue_delay_microseconds"] == 20
    assert (await wires.post("/models/m/load")).status == 200
    assert wires.registry.resolve("m").config.max_queue_delay_us == 0


async def test_config_as_grpc_tells_it_may_be_repeated(wires: Wires) -> None:
    """Protobuf's JSON: texts for 64-bit numbers, nothing for zeros."""
    await wires.registry.submit_graph("m", GRAPH, None)
    message = await InferenceServicer(wires.inference, wires.repository).ModelConfig(
        pb.ModelConfigRequest(name="m"), None
    )
    told = MessageToDict(message.config, preserving_proto_field_name=True)
    assert told["dynamic_batching"]["priority_levels"] == "3"
    assert told["response_cache"] == {}
    told["dynamic_batching"]["max_queue_delay_microseconds"] = "30"
    assert (await wires.post("/models/m/load", {"parameters": {"config": json.dumps(told)}})).status == 200
    assert wires.registry.resolve("m").config.max_queue_delay_us == 30


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('{"max_batch_size": 1000}', "config.max_batch_size: expected at most 64"),
        ('{"max_batch_size": 0}', "max_batch_size: expected a whole number of 1 or more"),
        ('{"max_batch_size": true}', "max_batch_size: expected a whole number"),
        ('{"backend": "onnxruntime"}', "backend: expected only max_batch_size"),
        ('{"instance_group": [{"count": 2}]}', "instance_group: expected only"),
        ('{"dynamic_batching": {"preserve_ordering": true}}', "dynamic_batching.preserve_ordering"),
        ('{"dynamic_batching": 3}', "dynamic_batching: expected only"),
        ('{"name": "other"}', "name: expected only"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        (3, "expected a text of JSON"),
        ("[" * 100_000, "expected JSON"),
    ],
)
async def test_config_that_is_not_offered_is_refused(wires: Wires, config: Any, text: str) -> None:
    """400 that names it; what was served is served on."""
    await wires.registry.submit_graph("m", GRAPH, None)
    served = wires.registry.resolve("m")
    reply = await wires.post("/models/m/load", {"parameters": {"config": config}})
    assert (reply.status, text in reply.json["error"]) == (400, True), reply.json
    assert wires.registry.resolve("m") is served


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def test_files_of_a_load_become_a_version(wires: Wires) -> None:
    """A bundle, or a graph; the server numbers, the config holds."""
    wires.root.joinpath("made").mkdir()
    bundle = bundle_bytes(wires.root / "made", 4)
    files = {"config": '{"max_batch_size": 2}', "file:1/bundle.axon": _base64(bundle)}
    assert (await wires.post("/models/m/load", {"parameters": files})).status == 200
    served = wires.registry.resolve("m")
    assert (served.version, served.config.max_batch_size) == (1, 2)
    files = {"config": "{}", "file:1/graph.json": _base64(GRAPH), "file:1/params.safetensors": _base64(b"weights")}
    assert (await wires.post("/models/m/load", {"parameters": files})).status == 200
    served = wires.registry.resolve("m")
    assert served.version == 2
    assert (await served.infer({"x": np.ones((1, 2), np.float32)}))["y"][0, 0] == 3
    shutil.rmtree(wires.root / "made")


@pytest.mark.parametrize(
    ("files", "status", "text"),
    [
        ({"file:1/bundle.axon": _base64(b"x")}, 400, "expected config beside the files"),
        ({"config": "{}", "file:1/model.onnx": ""}, 400, "expected config, file:<version>/bundle.axon"),
        ({"config": "{}", "file:1/../graph.json": ""}, 400, "expected config, file:<version>/bundle.axon"),
        ({"config": "{}", "file:x/graph.json": ""}, 400, "expected config"),
        ({"config": "{}", "file:1/graph.json": "no base64!"}, 400, "expected base64"),
        ({"config": "{}", "file:1/graph.json": 3}, 400, "as bytes"),
        ({"config": "{}", "file:1/params.safetensors": ""}, 400, "the files of one version"),
        ({"config": "{}", "file:1/graph.json": "", "file:2/params.safetensors": ""}, 400, "of 2 versions"),
        ({"config": "{}", "file:1/bundle.axon": _base64(b"no zip")}, 400, "expected a zip file"),
        ({"config": "{}", "file:1/graph.json": _base64(b"{}")}, 400, "scale: expected a number"),
        ({"config": "{}", "file:1/graph.json": _base64(b" " * 2000)}, 413, "at most 1000 bytes"),
        ({"config": '{"x": 1}', "file:1/graph.json": _base64(GRAPH)}, 400, "x: expected only"),
        ({"other": 1}, 400, "expected config"),
    ],
)
async def test_files_that_are_no_model_are_refused(wires: Wires, files: Any, status: int, text: str) -> None:
    """Nothing is stored."""
    reply = await wires.post("/models/m/load", {"parameters": files})
    assert (reply.status, text in reply.json["error"]) == (status, True), reply.json
    assert wires.registry.names() == []


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"parameters": 3}', b'{"parameters": {"unload_dependents": 1}}', b'{"parameters":{"x":1}}']
)
async def test_wrong_bodies_are_refused(wires: Wires, body: bytes) -> None:
    """400 for what is no object, no parameter."""
    await wires.registry.submit_graph("m", GRAPH, None)
    assert (await wires.post("/models/m/unload", body)).status == 400
    assert wires.registry.versions("m") == [1]
    assert (await wires.post("/models/m/load", b" " * (MAX_BODY + 1))).status == 413


async def test_the_same_over_grpc(wires: Wires, channel: grpc.aio.Channel) -> None:
    """Index, load with a config and files, unload."""
    stub = pb_grpc.GRPCInferenceServiceStub(channel)
    parameters = {
        "config": pb.ModelRepositoryParameter(string_param='{"max_batch_size": 2}'),
        "file:1/graph.json": pb.ModelRepositoryParameter(bytes_param=GRAPH),
    }
    request = pb.RepositoryModelLoadRequest(model_name="m", parameters=parameters)
    reply = await asyncio.wait_for(stub.RepositoryModelLoad(request), WAIT_S)
    assert (reply.model_name, reply.isLoaded) == ("m", True)
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [(each.name, each.version, each.state) for each in index.models] == [("m", "1", "READY")]
    assert wires.registry.resolve("m").config.max_batch_size == 2
    dependents = {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)}
    await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m", parameters=dependents))
    assert wires.registry.versions("m") == []
    for wrong in ({"config": pb.ModelRepositoryParameter(string_param="[]")}, {"x": pb.ModelRepositoryParameter()}):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m", parameters=wrong))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_name_at_the_other_dialects_number(wires: Wires, channel: grpc.aio.Channel) -> None:
    """KServe's client writes the model's name under number 1 and reads name and success; bytes as it sends them."""
    await wires.registry.submit_graph("m", GRAPH, None, load=False)
    for method, loaded in (("Load", [1]), ("Unload", [])):
        send = channel.unary_unary(f"/inference.GRPCInferenceService/RepositoryModel{method}")
        assert await asyncio.wait_for(send(b"\x0a\x01m"), WAIT_S) == b"\x0a\x01m\x10\x01"
        assert wires.registry.versions("m") == loaded


async def test_second_services_name(wires: Wires, channel: grpc.aio.Channel) -> None:
    """MLServer's service answers the same three calls."""
    await wires.registry.submit_graph("m", GRAPH, None, load=False)
    for method in ("Load", "Unload"):
        send = channel.unary_unary(f"/{SECOND_REPOSITORY}/RepositoryModel{method}")
        await asyncio.wait_for(send(pb.RepositoryModelLoadRequest(model_name="m").SerializeToString()), WAIT_S)
    index = await channel.unary_unary(f"/{SECOND_REPOSITORY}/RepositoryIndex")(b"")
    assert [each.state for each in pb.RepositoryIndexResponse.FromString(index).models] == ["UNAVAILABLE"]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(f"/{SECOND_REPOSITORY}/RepositoryModelLoad")(b"\x12\x04none")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
