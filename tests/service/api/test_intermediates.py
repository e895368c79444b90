"""Any layer's value over both wires, of versions that expose it: real bundles, the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from fastapi import FastAPI

import engine as ax
from service.adapters.clock import SystemClock
from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_store import FileModelStore
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.server import build_server
from service.api.repository import ModelRepository
from service.api.rest import v2
from service.api.rest.dispatch import App, Dispatcher
from service.api.rest.errors import install
from service.core.errors import InvalidModel
from service.core.inference import InferenceService
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.types import ServingConfig
from tests.service.api.asgi import call
from tests.service.api.grpc.listening import started
from tests.service.waiting import WAIT_S

X = np.array([[1, -2, 3]], np.float32)
Serving = dict[str, Any]


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 3)).dense(4, activation="tanh").dense(2)


class Server:
    """Both wires over a registry with the real engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FileModelStore(folder / "data", SystemClock())
        self.registry = Registry(self.store, EngineRuntime(), SystemClock(), ServingConfig(max_batch_size=2))
        self.inference = InferenceService(self.registry, "axon", "0", SystemClock())
        app = FastAPI()
        app.include_router(v2.router(self.inference))
        install(app)
        self.app: App = Dispatcher(app, self.inference, max_body_bytes=10_000)
        self.state = ax.build(_model())[0](seed=1)

    async def submit(self, name: str, serving: Serving) -> None:
        """Publish and load the model with such a `serving.json`."""
        path = self.folder / f"{name}.axon"
        ax.bundle.write(path, _model(), self.state, serving=serving)
        await self.registry.submit(name, path)

    async def rest(self, model: str, *outputs: str) -> tuple[int, Any]:
        """Status and body of a request for these outputs (none: not said)."""
        body: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": X.tolist()}]}
        if outputs:
            body["outputs"] = [{"name": name} for name in outputs]
        reply = await call(self.app, "POST", f"/v2/models/{model}/infer", orjson.dumps(body))
        assert reply is not None
        return reply.status, reply.json

    def hidden(self) -> np.ndarray:
        """What the layer tanh_0 gives for X."""
        return np.asarray(np.tanh(X @ np.asarray(self.state.parameters["dense_0"]["kernel"])))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Models `plain`, `some` (exposes one layer) and `all`."""
    made = Server(tmp_path)
    await made.submit("plain", {})
    await made.submit("some", {"expose_intermediate": ["tanh_0"], "max_batch_size": 1})
    await made.submit("all", {"expose_intermediate": True})
    yield made
    await made.registry.close()
    made.store.close()


async def test_an_exposed_layer_is_an_output_by_its_name(server: Server) -> None:
    """Alone, or beside declared outputs, in the order asked for."""
    for model in ("some", "all"):
        status, reply = await server.rest(model, "tanh_0", "dense_1")
        assert status == 200
        assert [(o["name"], o["shape"], o["datatype"]) for o in reply["outputs"]] == [
            ("tanh_0", [1, 4], "FP32"),
            ("dense_1", [1, 2], "FP32"),
        ]
        np.testing.assert_allclose(reply["outputs"][0]["data"], server.hidden()[0], rtol=1e-5)
    status, reply = await server.rest("all", "dense_0")
    assert [o["name"] for o in reply["outputs"]] == ["dense_0"]


async def test_requests_that_name_no_outputs_get_the_declared_ones(server: Server) -> None:
    """As metadata lists them; the version's own settings hold too."""
    for model in ("plain", "some", "all"):
        status, reply = await server.rest(model)
        assert status == 200
        assert [o["name"] for o in reply["outputs"]] == ["dense_1"]
        metadata = await call(server.app, "GET", f"/v2/models/{model}")
        assert metadata is not None
        assert [o["name"] for o in metadata.json["outputs"]] == ["dense_1"]
    assert server.inference.model("some").spec.max_batch_size == 1
    assert server.inference.model("all").spec.max_batch_size == 2


async def test_without_the_option_a_layer_is_an_unknown_output(server: Server) -> None:
    """A clear 400; a model that exposes some lists them."""
    assert server.inference.model("plain").spec.intermediates == ()
    status, reply = await server.rest("plain", "tanh_0")
    assert (status, "expected outputs among 'dense_1', got 'tanh_0'" in reply["error"]) == (400, True)
    status, reply = await server.rest("some", "dense_0")
    assert (status, "expected outputs among 'dense_1', 'tanh_0', got 'dense_0'" in reply["error"]) == (400, True)


async def test_the_same_over_grpc(server: Server) -> None:
    """Raw bytes of the layer, and INVALID_ARGUMENT where it is not exposed."""
    running = build_server(server.inference, ModelRepository(server.registry, Limits()), max_message_bytes=10_000)
    port = await started(running)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        reply = await asyncio.wait_for(stub.ModelInfer(_request("some")), WAIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(stub.ModelInfer(_request("plain")), WAIT_S)
    await running.stop(0)
    assert [(o.name, list(o.shape)) for o in reply.outputs] == [("tanh_0", [1, 4])]
    np.testing.assert_allclose(np.frombuffer(reply.raw_output_contents[0], np.float32), server.hidden()[0], rtol=1e-5)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _request(model: str) -> pb.ModelInferRequest:
    item = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=X.shape)
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="tanh_0")
    return pb.ModelInferRequest(model_name=model, inputs=[item], outputs=[wanted], raw_input_contents=[X.tobytes()])


@pytest.mark.parametrize(
    ("serving", "message"),
    [
        ({"expose_intermediate": ["nope"]}, "expected the name of a layer, such as .*got 'nope'"),
        ({"expose_intermediate": 3}, "serving.json.expose_intermediate: expected true, false, or a list"),
        ({"max_batch_size": 3}, "serving.json.max_batch_size: expected at most 2, the server's limit, got 3"),
        ({"max_queue_bytes": 2**40}, "serving.json.max_queue_bytes: expected at most 268435456"),
        ({"max_batch_sise": 3}, "serving.json.max_batch_sise: expected one of .*got an unknown key"),
    ],
)
async def test_bundles_that_want_the_impossible_are_refused(server: Server, serving: Serving, message: str) -> None:
    """Before they are published."""
    with pytest.raises(InvalidModel, match=message):
        await server.submit("wrong", serving)
    assert "wrong" not in server.registry.names()
