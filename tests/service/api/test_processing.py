"""Preprocessing and postprocessing of bundles over both wires: the numbers of training, names in place of numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from fastapi import FastAPI

import engine as ax
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import OneHot, Preprocess, Standardize, Vocabulary
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

WORDS = Vocabulary(("<unk>", "<pad>", "good", "bad", "film", "!"), 0, length=4, padding=1)
STEPS = Preprocess({"text": (WORDS,), "size": (Standardize((10.0, -3.0), (2.0, 0.5)),), "kind": (OneHot(3),)})
LABELS = ("negative", "neutral", "positiv: ö")
TEXTS = ["Good film!", "bad, BAD film ... and more of it"]
SIZE = np.array([[12, -3], [7, -4]])
KIND = np.array([2, 0])
PRICE = Standardize((250.0,), (40.0,))


def classifier() -> ax.Model:
    """Classes of a text, of two numbers and a kind."""
    text = ax.input("text", shape=(None, 4), dtype="s32").embedding(6, 5).flatten()
    size, kind = ax.input("size", shape=(None, 2)), ax.input("kind", shape=(None, 3))
    return text.concatenate(size, kind).dense(3, kernel_initializer="normal").softmax(name="scores")


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
        self.app: App = Dispatcher(app, self.inference, max_body_bytes=100_000)

    async def submit(self, name: str, model: ax.Model, **members: Any) -> ax.ModelState:
        """Publish and load a bundle with these members; returns its state."""
        path, state = self.folder / f"{name}.axon", ax.build(model)[0](seed=3)
        ax.bundle.write(path, model, state, **members)
        await self.registry.submit(name, path)
        return state

    async def infer(self, model: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and body of a request."""
        reply = await call(self.app, "POST", f"/v2/models/{model}/infer", orjson.dumps(body))
        assert reply is not None
        return reply.status, reply.json


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """Without a model."""
    made = Server(tmp_path)
    yield made
    await made.registry.close()
    made.store.close()


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    """An input in JSON."""
    return {"name": name, "datatype": datatype, "shape": list(np.shape(values)), "data": values}


INPUTS = [
    tensor("text", "BYTES", TEXTS),
    tensor("size", "INT16", SIZE.tolist()),
    tensor("kind", "UINT8", KIND.tolist()),
]


def as_trained(state: ax.ModelState) -> np.ndarray:
    """What the model gives for what training would have given it."""
    inputs = STEPS.apply({"text": TEXTS, "size": SIZE, "kind": KIND})
    np.testing.assert_array_equal(inputs["text"], [[2, 4, 5, 1], [3, 0, 3, 4]])
    return np.asarray(ax.build(classifier())[1](state, inputs))


async def test_a_text_classifier_answers_with_labels(server: Server) -> None:
    """JSON texts and raw numbers in; the numbers of training out, and their labels through classification."""
    members = {"preprocess": STEPS, "postprocess": Postprocess({"scores": OutputSteps(labels=LABELS)})}
    scores = as_trained(await server.submit("text", classifier(), **members))
    status, reply = await server.infer("text", {"inputs": INPUTS})
    assert status == 200
    np.testing.assert_allclose(reply["outputs"][0]["data"], scores.ravel(), rtol=1e-6)
    wanted = [{"name": "scores", "parameters": {"classification": 2}}]
    status, reply = await server.infer("text", {"inputs": INPUTS, "outputs": wanted})
    assert reply["outputs"][0]["shape"] == [2, 2]
    told = [text.split(":", 2) for text in reply["outputs"][0]["data"]]
    best = np.argsort(-scores, axis=1)[:, :2]
    assert [(int(index), label) for _, index, label in told] == [(i, LABELS[i]) for i in best.ravel().tolist()]
    np.testing.assert_allclose([float(value) for value, _, _ in told], np.take_along_axis(scores, best, 1).ravel())
    metadata = await call(server.app, "GET", "/v2/models/text")
    assert metadata is not None
    assert metadata.json["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1]},
        {"name": "size", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "kind", "datatype": "INT64", "shape": [-1]},
    ]
    config = await call(server.app, "GET", "/v2/models/text/config")
    assert config is not None
    assert orjson.loads(config.json["parameters"]["labels.scores"]["string_value"]) == list(LABELS)
    assert config.json["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": []}


async def test_the_same_over_grpc(server: Server) -> None:
    """Typed texts, raw numbers; the largest with their labels as outputs of their own."""
    steps = Postprocess({"scores": OutputSteps(labels=LABELS, top_k=2)})
    scores = as_trained(await server.submit("text", classifier(), preprocess=STEPS, postprocess=steps))
    item = pb.ModelInferRequest.InferInputTensor
    request = pb.ModelInferRequest(
        model_name="text",
        inputs=[
            item(name="text", datatype="BYTES", shape=[2], contents={"bytes_contents": [t.encode() for t in TEXTS]}),
            item(name="size", datatype="FP32", shape=[2, 2], contents={"fp32_contents": SIZE.ravel()}),
            item(name="kind", datatype="INT64", shape=[2], contents={"int64_contents": KIND}),
        ],
    )
    running = build_server(server.inference, ModelRepository(server.registry, Limits()), max_message_bytes=10_000)
    port = await started(running)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        metadata = await asyncio.wait_for(stub.ModelMetadata(pb.ModelMetadataRequest(name="text")), WAIT_S)
        config = (await asyncio.wait_for(stub.ModelConfig(pb.ModelConfigRequest(name="text")), WAIT_S)).config
        reply = await asyncio.wait_for(stub.ModelInfer(request), WAIT_S)
        request.inputs[0].contents.bytes_contents[1] = b"\xff"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(stub.ModelInfer(request), WAIT_S)
    await running.stop(0)
    assert orjson.loads(config.parameters["labels.scores"].string_value) == list(LABELS)
    told = [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs]
    assert told == [("scores_scores", "FP32", [-1, 2]), ("scores_labels", "BYTES", [-1, 2])]
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
        ("scores_scores", "FP32", [2, 2]),
        ("scores_labels", "BYTES", [2, 2]),
    ]
    best = np.argsort(-scores, axis=1)[:, :2]
    given = np.frombuffer(reply.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(given, np.take_along_axis(scores, best, 1).ravel(), rtol=1e-6)
    texts = [LABELS[index].encode() for index in best.ravel().tolist()]
    assert reply.raw_output_contents[1] == b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "input 'text': vocabulary: expected UTF-8 in row 1" in (refused.value.details() or "")


async def test_a_regression_answers_in_the_units_of_its_target(server: Server) -> None:
    """A declared output, and not a layer asked for beside it."""
    model = ax.input("x", shape=(None, 2)).dense(1, kernel_initializer="normal", name="price").linear(name="copy")
    steps = Postprocess({"copy": OutputSteps(unstandardize=PRICE)})
    state = await server.submit("price", model, postprocess=steps, serving={"expose_intermediate": ["price"]})
    plain = np.asarray(ax.build(model)[1](state, {"x": SIZE.astype(np.float32)}), np.float64)
    wanted = [{"name": "copy"}, {"name": "price"}]
    status, reply = await server.infer("price", {"inputs": [tensor("x", "FP32", SIZE.tolist())], "outputs": wanted})
    assert status == 200
    np.testing.assert_allclose(reply["outputs"][0]["data"], (plain * 40 + 250).ravel(), rtol=1e-6)
    np.testing.assert_allclose(reply["outputs"][1]["data"], plain.ravel(), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (tensor("text", "INT32", [[2, 4, 5, 1]] * 2), "input 'text': expected datatype BYTES, got INT32"),
        (tensor("text", "BYTES", [["a"], ["b"]]), r"input 'text': expected shape [-1], got [2, 1]"),
        (tensor("size", "BYTES", [["a", "b"]] * 2), "input 'size': expected datatype FP32 or BF16 or BOOL"),
        (tensor("kind", "FP32", [1.0, 2.0]), "input 'kind': expected datatype INT64 or INT16"),
        (tensor("kind", "INT64", [1, 3]), "input 'kind': one_hot: expected classes below 3, got 3 in row 1"),
        (tensor("kind", "INT64", [-1, 0]), "input 'kind': one_hot: expected classes below 3, got -1 in row 0"),
        (tensor("text", "BYTES", ["one"]), "expected one leading size for all inputs"),
        (tensor("text", "BYTES", ["one"] * 3), "expected at most 2 rows in one request, got 3"),
    ],
)
async def test_what_steps_cannot_take_is_refused(server: Server, changed: dict[str, Any], message: str) -> None:
    """With the model, the input, and the row where one is at fault."""
    await server.submit("text", classifier(), preprocess=STEPS)
    inputs = [changed if item["name"] == changed["name"] else item for item in INPUTS]
    status, reply = await server.infer("text", {"inputs": inputs})
    assert status == 400
    assert message in reply["error"]
    assert "model 'text' version 1" in reply["error"]


WIDE = Vocabulary(tuple(map(str, range(300))), length=2, padding=0)


@pytest.mark.parametrize(
    ("shape", "dtype", "step", "message"),
    [
        ((None, 3), "f32", OneHot(2), "one_hot: expected a model's input with a last axis of 2"),
        ((None, 2), "s32", Standardize((0.0,), (1.0,)), "a datatype of floating-point numbers, got an input of INT32"),
        ((None, 2), "u8", WIDE, "a datatype that holds 300 token numbers, got an input of UINT8"),
        ((None, 2), "bf16", WIDE, "a datatype that holds 300 token numbers, got an input of BF16"),
        ((None, 3), "s32", WIDE, r"vocabulary: expected a model's input of shape \(rows, 2\)"),
    ],
)
async def test_bundles_whose_steps_do_not_fit_are_refused(
    server: Server, shape: tuple[int | None, ...], dtype: str, step: Any, message: str
) -> None:
    """Before they are published."""
    with pytest.raises(InvalidModel, match=message):
        await server.submit("wrong", ax.input("x", shape=shape, dtype=dtype), preprocess=Preprocess({"x": (step,)}))
    assert "wrong" not in server.registry.names()


async def test_a_vocabulary_without_a_length_has_that_of_the_model(server: Server) -> None:
    """Where the model's is fixed, texts are cut and filled as with a length of that size."""
    model = ax.input("text", shape=(None, 4), dtype="s32").linear()
    words = Vocabulary(WORDS.tokens, padding=1)
    await server.submit("echo", model, preprocess=Preprocess({"text": (words,)}))
    status, reply = await server.infer("echo", {"inputs": [tensor("text", "BYTES", TEXTS)]})
    assert (status, reply["outputs"][0]["data"]) == (200, WORDS.apply(TEXTS).ravel().tolist())


LONG = Vocabulary(WORDS.tokens, padding=1)


def open_sizes(**more: Any) -> dict[str, Any]:
    """A `serving.json` for texts of up to 3 or 6 tokens."""
    return {"open_sizes": [{"axes": {"text": [1]}, "sizes": [3, 6], **more}]}


@pytest.mark.parametrize(
    ("padded", "length"), [({"pad_values": {"text": 1}}, 4), ({}, 6)], ids=["padded by the batcher", "exact sizes"]
)
async def test_texts_of_a_request_are_as_long_as_the_longest(
    server: Server, padded: dict[str, Any], length: int
) -> None:
    """Where the model leaves their length open; beyond its largest size they are refused."""
    model = ax.input("text", shape=(None, None), dtype="s32").linear()
    await server.submit("open", model, preprocess=Preprocess({"text": (LONG,)}), serving=open_sizes(**padded))
    texts = ["good film!", "bad, film"]
    status, reply = await server.infer("open", {"inputs": [tensor("text", "BYTES", texts)]})
    expected = LONG.apply(texts)
    np.testing.assert_array_equal(expected, [[2, 4, 5], [3, 0, 4]])
    assert (status, reply["outputs"][0]["shape"]) == (200, [2, 3])
    assert reply["outputs"][0]["data"] == expected.ravel().tolist()
    status, reply = await server.infer("open", {"inputs": [tensor("text", "BYTES", [texts[0], "bad " * 4])]})
    assert (status, reply["outputs"][0]["shape"]) == (200, [2, length])
    assert reply["outputs"][0]["data"][:length] == [2, 4, 5] + [1] * (length - 3)
    status, reply = await server.infer("open", {"inputs": [tensor("text", "BYTES", ["bad", "bad " * 7])]})
    assert (status, "input 'text': vocabulary: expected at most 6 tokens in row 1, got 7" in reply["error"]) == (
        400,
        True,
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pad_values": {"text": 0}}, "preprocess.json: inputs.text: expected the padding 0, .*got 1"),
        (
            {"pad_values": {"text": 1}, "mask": "seen"},
            "inputs.text: expected a length beside the mask 'seen', got none",
        ),
    ],
)
async def test_padding_that_is_not_that_of_the_texts_is_refused(
    server: Server, more: dict[str, Any], message: str
) -> None:
    """Another number, or a mask that knows one length for all texts of a request."""
    text = ax.input("text", shape=(None, None), dtype="s32")
    model = text.multiply(ax.input("seen", shape=(None, None), dtype="s32")) if "mask" in more else text.linear()
    with pytest.raises(InvalidModel, match=message):
        await server.submit("wrong", model, preprocess=Preprocess({"text": (LONG,)}), serving=open_sizes(**more))
