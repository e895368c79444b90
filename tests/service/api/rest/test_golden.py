"""Requests and replies to the byte, written down from the protocol and not from what the code gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from service.api.rest import v2
from service.api.rest.dispatch import App, Dispatcher
from service.api.rest.errors import install
from service.core.inference import InferenceService
from service.core.serving import ServedModel
from service.core.types import ModelSpec, TensorSpec
from tests.service.api.asgi import Reply, call
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec

REQUEST = (
    b'{"id":"7","inputs":['
    b'{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}],'
    b'"outputs":[{"name":"total","parameters":{"binary_data":true}},{"name":"doubled"}]}'
)
X = b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x40\x40"  # 1, -2, 3
REPLY = (
    b'{"model_name":"fake","model_version":"3","id":"7","outputs":['
    b'{"name":"total","datatype":"FP64","shape":[1],"parameters":{"binary_data_size":8}},'
    b'{"name":"doubled","datatype":"FP32","shape":[1,3],"data":[2.0,-4.0,6.0]}]}'
)
TWO = b"\x00\x00\x00\x00\x00\x00\x00\x40"
TEXTS = b"\x02\x00\x00\x00\xff\x00\x00\x00\x00\x00"  # two bytes that are no UTF-8, then none

ONE = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'

FULL = b"model 'full' version 1: the queue is full: 0 requests (at most 0) of 0 bytes (at most 268435456) are waiting"


class Server:
    """`fake` of `served.spec`, and `texts`, which gives its BYTES back."""

    def __init__(self) -> None:
        texts = ModelSpec((TensorSpec("t", "BYTES", (-1,)),), (TensorSpec("u", "BYTES", (-1,)),), 0, ())
        scores = ModelSpec((TensorSpec("s", "FP32", (-1, 3)),), (TensorSpec("s", "FP32", (-1, 3)),), 4, (4,))
        self.served: list[ServedModel] = [
            serve(HeldModel(spec(max_batch_size=4)), version=3),
            serve(HeldModel(texts, lambda inputs: {"u": inputs["t"]}), name="texts"),
            serve(HeldModel(scores, lambda inputs: {"s": inputs["s"]}), name="scores"),
            serve(HeldModel(spec()), name="full", max_queue_requests=0),
        ]
        inference = InferenceService(FakeRegistry(*self.served, loading=("slow",)), "axon", "1", RealClock())
        app = FastAPI()
        app.include_router(v2.router(inference))
        install(app)
        self.app: App = Dispatcher(app, inference, max_body_bytes=10_000)

    async def post(self, model: str, body: bytes, header_length: int | None = None, **headers: str) -> Reply:
        """One request for inference."""
        if header_length is not None:
            headers["Inference-Header-Content-Length"] = str(header_length)
        reply = await asyncio.wait_for(call(self.app, "POST", f"/v2/models/{model}/infer", body, headers), WAIT_S)
        assert reply is not None
        return reply


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is closed at the end."""
    made = Server()
    yield made
    for served in made.served:
        assert await served.close(WAIT_S)


async def test_binary_extension(server: Server) -> None:
    """Bytes in, one output as bytes and one as JSON out; the headers say which is which."""
    reply = await server.post("fake", REQUEST + X, len(REQUEST))
    assert (reply.status, reply.body) == (200, REPLY + TWO)
    assert reply.headers == {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(REPLY)),
        "content-length": str(len(REPLY) + 8),
    }


async def test_raw_request(server: Server) -> None:
    """N = 0."""
    header = (
        b'{"model_name":"fake","model_version":"3","outputs":['
        b'{"name":"doubled","datatype":"FP32","shape":[1,3],"parameters":{"binary_data_size":12}},'
        b'{"name":"total","datatype":"FP64","shape":[1],"parameters":{"binary_data_size":8}}]}'
    )
    doubled = b"\x00\x00\x00\x40\x00\x00\x80\xc0\x00\x00\xc0\x40"
    reply = await server.post("fake", X, 0)
    assert (reply.status, reply.body) == (200, header + doubled + TWO)
    header = (
        b'{"model_name":"texts","model_version":"1","outputs":['
        b'{"name":"u","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":9}}]}'
    )
    assert (await server.post("texts", b"a\0\xffbc", 0)).body == header + b"\x05\x00\x00\x00a\0\xffbc"


async def test_bytes_in_binary(server: Server) -> None:
    """Each element with its length before it."""
    body = b'{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":10}}],'
    body += b'"parameters":{"binary_data_output":true}}'
    header = (
        b'{"model_name":"texts","model_version":"1","outputs":['
        b'{"name":"u","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":10}}]}'
    )
    assert (await server.post("texts", body + TEXTS, len(body))).body == header + TEXTS


async def test_classification(server: Server) -> None:
    """Texts in the place of the numbers, as JSON and as bytes."""
    body = (
        b'{"inputs":[{"name":"s","shape":[2,3],"datatype":"FP32","data":[0.1,0.7,0.2,3,1,2]}],'
        b'"outputs":[{"name":"s","parameters":{"classification":2,"binary_data":%b}}]}'
    )
    head = b'{"model_name":"scores","model_version":"1","outputs":[{"name":"s","datatype":"BYTES","shape":[2,2],'
    reply = await server.post("scores", body % b"false")
    assert reply.body == head + b'"data":["0.7:1","0.2:2","3.0:0","2.0:2"]}]}'
    reply = await server.post("scores", body % b"true")
    texts = b"".join(b"\x05\x00\x00\x00" + each for each in (b"0.7:1", b"0.2:2", b"3.0:0", b"2.0:2"))
    assert reply.body == head + b'"parameters":{"binary_data_size":36}}]}' + texts
    for wrong in (b"0", b"-1", b"true", b'"2"', b"1.0"):
        other = body.replace(b'"classification":2', b'"classification":' + wrong)
        assert (await server.post("scores", other % b"true")).status == 400


@pytest.mark.parametrize(
    ("model", "body", "status", "text"),
    [
        ("none", b'{"inputs":[{"name":"x","shape":[0],"datatype":"FP32","data":[]}]}', 404, b"no model 'none'"),
        ("slow", b'{"inputs":[{"name":"x","shape":[0],"datatype":"FP32","data":[]}]}', 503, b"model 'slow' is loading"),
        ("fake", b"[]", 400, b"request: expected a JSON object, got list"),
        (
            "fake",
            b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2]}]}',
            400,
            b"input 'x': expected 3 values as the shape says, got 2",
        ),
        ("fake", b"x" * 10_001, 413, b"body: expected at most 10000 bytes, got 10001"),
        ("full", ONE, 429, FULL),
        (
            "fake",
            ONE.replace(b'"data":[1,2,3]', b'"parameters":{"shared_memory_region":"r"}'),
            501,
            b"input 'x': this server does not offer shared memory",
        ),
    ],
)
async def test_errors(server: Server, model: str, body: bytes, status: int, text: bytes) -> None:
    """`{"error":"..."}`, and exactly this content type."""
    reply = await server.post(model, body)
    assert (reply.status, reply.body) == (status, b'{"error":"%b"}' % text)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get("retry-after") == ("1" if status in (429, 503) else None)


async def test_wrong_method(server: Server) -> None:
    """405 names the one that is right."""
    reply = await call(server.app, "PUT", "/v2/models/fake/infer")
    assert reply is not None
    assert (reply.status, reply.body) == (405, b'{"error":"expected the method POST"}')
    assert reply.headers == {"content-type": "application/json", "allow": "POST", "content-length": "36"}


async def test_zero_elements_in_every_form(server: Server) -> None:
    """No rows: legal, and binary outputs say their zero bytes."""
    body = b'{"inputs":[{"name":"x","shape":[0,3],"datatype":"FP32","data":[]}],"outputs":[{"name":"doubled"%b}]}'
    head = b'{"model_name":"fake","model_version":"3","outputs":[{"name":"doubled","datatype":"FP32","shape":[0,3],'
    assert (await server.post("fake", body % b"")).body == head + b'"data":[]}]}'
    wanted = b',"parameters":{"binary_data":true}'
    assert (await server.post("fake", body % wanted)).body == head + b'"parameters":{"binary_data_size":0}}]}'
