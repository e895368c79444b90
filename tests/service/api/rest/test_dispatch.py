"""Inference over HTTP as clients speak it: JSON, binary tensors, compression, limits, hostile bodies."""

from __future__ import annotations

import asyncio
import gzip
import struct
import threading
import tracemalloc
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from fastapi import FastAPI

from service.api.rest import dispatch
from service.api.rest.dispatch import Dispatcher
from service.core.inference import InferenceService
from service.core.types import ModelSpec, TensorSpec
from tests.service.api.asgi import call
from tests.service.api.rest.dispatching import (
    INFER,
    MAX_BODY,
    Server,
    X,
    binary,
    binary_input,
    request,
    split,
)
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve


async def test_json_in_json_out(dispatcher: Server) -> None:
    """The whole reply, to the byte."""
    reply = await dispatcher.post(request(id="a-1"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.body == (
        b'{"model_name":"fake","model_version":"3","id":"a-1","outputs":['
        b'{"name":"doubled","datatype":"FP32","shape":[2,3],"data":[2.0,4.0,6.0,8.0,10.0,12.0]},'
        b'{"name":"total","datatype":"FP64","shape":[2],"data":[6.0,15.0]}]}'
    )


async def test_binary_in_binary_out(dispatcher: Server) -> None:
    """Segments follow the JSON in its order; the header's name may have any case; no id, no id back."""
    body, headers = binary({"inputs": [binary_input(X)], "parameters": {"binary_data_output": True}}, X.tobytes())
    reply = await dispatcher.post(body, headers)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    content, segments = split(reply)
    assert content == {
        "model_name": "fake",
        "model_version": "3",
        "outputs": [
            {"name": "doubled", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "total", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}},
        ],
    }
    assert segments == (X * 2).tobytes() + np.array([6.0, 15.0]).tobytes()


async def test_mixed_outputs(dispatcher: Server) -> None:
    """Per-output binary_data beats binary_data_output; outputs come in the order asked for."""
    body = request(
        outputs=[{"name": "total"}, {"name": "doubled", "parameters": {"binary_data": False}}],
        parameters={"binary_data_output": True},
    )
    content, segments = split(await dispatcher.post(body))
    assert [output["name"] for output in content["outputs"]] == ["total", "doubled"]
    assert content["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert content["outputs"][1]["data"] == [2, 4, 6, 8, 10, 12]
    assert "parameters" not in content["outputs"][1]
    assert len(segments) == 16


async def test_version_in_the_path(dispatcher: Server) -> None:
    """The same answer with the version named; another one is not found."""
    assert (await dispatcher.post(request(), path="/v2/models/fake/versions/3/infer")).json["model_version"] == "3"
    reply = await dispatcher.post(request(), path="/v2/models/fake/versions/9/infer")
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert (await dispatcher.post(request(), path="/v2/models/none/infer")).status == 404


async def test_header_length_of_the_whole_body_is_json(dispatcher: Server) -> None:
    """The C++ client always sends the header."""
    body = orjson.dumps(request(), option=orjson.OPT_SERIALIZE_NUMPY)
    assert (await dispatcher.post(body, {"inference-header-content-length": str(len(body))})).status == 200


async def test_raw_request_is_the_only_inputs_bytes(dispatcher: Server) -> None:
    """N = 0: one row, everything back in binary."""
    reply = await dispatcher.post(X[:1].tobytes(), {"Inference-Header-Content-Length": "0"})
    content, segments = split(reply)
    assert content["outputs"][0]["shape"] == [1, 3]
    assert segments[:12] == (X[:1] * 2).tobytes()
    wrong = await dispatcher.post(b"12345", {"Inference-Header-Content-Length": "0"})
    assert wrong.status == 400
    assert "expected 12 bytes" in wrong.json["error"]


def raw_spec(datatype: str, *shapes: tuple[int, ...], max_batch_size: int = 0) -> ModelSpec:
    """Inputs of these shapes, and the first one as output."""
    inputs = tuple(TensorSpec(f"x{index}", datatype, shape) for index, shape in enumerate(shapes))
    return ModelSpec(inputs, (TensorSpec("y", datatype, shapes[0]),), max_batch_size, (1,) if max_batch_size else ())


@pytest.mark.parametrize(
    ("spec_", "body", "expected"),
    [
        (raw_spec("INT16", (-1, 2)), bytes(12), [3, 2]),
        (raw_spec("INT16", (2, 2)), bytes(8), [2, 2]),
        (raw_spec("INT16", (-1, 2), max_batch_size=1), bytes(4), [1, 2]),
        (raw_spec("INT16", (2, -1)), bytes(20), [2, 5]),
        (raw_spec("INT16", (-1, 2)), b"", [0, 2]),
        (raw_spec("BYTES", (-1,)), b"\xff\0", [1]),
        (raw_spec("BYTES", (-1, 1)), b"", [1, 1]),
        (raw_spec("INT16", (-1, -1)), bytes(8), "at most one open size"),
        (raw_spec("INT16", (2,), (2,)), bytes(4), "expected a model with one input"),
        (raw_spec("INT16", (-1, 2)), bytes(5), "expected 4 bytes"),
        (raw_spec("INT16", (2, 2)), bytes(6), "expected 8 bytes"),
        (raw_spec("INT16", (-1, 0)), bytes(2), "expected 0 bytes"),
    ],
)
async def test_raw_request_of_any_model(spec_: ModelSpec, body: bytes, expected: list[int] | str) -> None:
    """The length settles one open size; a batch is of one; BYTES are one element."""
    served = serve(HeldModel(spec_, lambda inputs: {"y": inputs["x0"]}), name="m")
    inference = InferenceService(FakeRegistry(served), "axon", "1", RealClock())
    app = Dispatcher(FastAPI(), inference, max_body_bytes=MAX_BODY)
    reply = await call(app, "POST", "/v2/models/m/infer", body, {"Inference-Header-Content-Length": "0"})
    assert reply is not None
    if isinstance(expected, str):
        assert (reply.status, expected in reply.json["error"]) == (400, True), reply.json
    else:
        content, segments = split(reply)
        assert content["outputs"][0]["shape"] == expected
        assert segments == (struct.pack("<I", len(body)) + body if spec_.inputs[0].datatype == "BYTES" else body)
    assert await served.close(WAIT_S)


async def test_what_nobody_knows_is_ignored(dispatcher: Server) -> None:
    """Keys of the request, of tensors and parameters; what clients add must not stop them."""
    body = request(more=[1, {"deep": None}], parameters={"team": "x", "weight": 0.5, "headers": {"a": "b"}})
    body["inputs"][0] |= {"layout": "NC", "parameters": {"custom": True}}
    body["outputs"] = [{"name": "total", "shape": [9], "parameters": {"custom": "x"}}]
    reply = await dispatcher.post(body)
    assert (reply.status, reply.json["outputs"][0]["data"]) == (200, [6, 15])


@pytest.mark.parametrize("given", ["7", "", "ü€ \n\u0000", "x" * 5000])
@pytest.mark.parametrize("is_binary", [False, True])
async def test_id_comes_back(dispatcher: Server, given: str, is_binary: bool) -> None:
    """In either form of the reply; an empty one is none."""
    reply = await dispatcher.post(request(id=given, parameters={"binary_data_output": is_binary}))
    content = split(reply)[0] if is_binary else reply.json
    assert content.get("id", "") == given


async def test_empty_body(dispatcher: Server) -> None:
    """No JSON, with the header or without; and no request to a model with fixed sizes."""
    for headers in ({}, {"Inference-Header-Content-Length": "0"}, {"Content-Encoding": "gzip"}):
        reply = await dispatcher.post(b"", headers)
        assert (reply.status, reply.headers["content-type"]) == (400, "application/json")


async def test_content_type_is_never_looked_at(dispatcher: Server) -> None:
    """Some clients send none, some a wrong one."""
    for content_type in ("text/html", "multipart/form-data", ""):
        assert (await dispatcher.post(request(), {"Content-Type": content_type})).status == 200


async def test_non_finite_values_travel_in_json(dispatcher: Server) -> None:
    """Bare tokens, null and strings in; strings out."""
    for values in ("NaN, Infinity, -Infinity", 'null, "Infinity", "-Infinity"'):
        body = f'{{"inputs":[{{"name":"x","shape":[1,3],"datatype":"FP32","data":[{values}]}}]}}'.encode()
        reply = await dispatcher.post(body)
        assert reply.status == 200
        assert reply.json["outputs"][0]["data"] == ["NaN", "Infinity", "-Infinity"]


async def test_body_of_single_bytes_takes_no_more_memory_than_its_own(dispatcher: Server) -> None:
    """However small the pieces; what they say is read in order."""
    body = orjson.dumps(request(id="x" * 90_000), option=orjson.OPT_SERIALIZE_NUMPY)
    cuts = [*range(40_000), *range(48_000, len(body))]  # one larger piece in the middle
    pieces = zip(cuts, [*cuts[1:], len(body)], strict=True)

    async def receive() -> dict[str, Any]:
        start, stop = next(pieces)
        return {"type": "http.request", "body": body[start:stop], "more_body": stop < len(body)}

    tracemalloc.start()
    sent: list[Any] = []
    await dispatcher.app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, _keep(sent))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert orjson.loads(sent[1]["body"])["id"] == "x" * 90_000
    assert peak < 30 * len(body)


def _keep(sent: list[Any]) -> Any:
    async def send(message: Any) -> None:
        sent.append(message)

    return send


@pytest.mark.parametrize("chunks", [1, 2, 7])
async def test_body_may_come_in_pieces(dispatcher: Server, chunks: int) -> None:
    """However the server cuts it."""
    body, headers = binary({"inputs": [binary_input(X)]}, X.tobytes())
    size = -(-len(body) // chunks)
    reply = await dispatcher.post([body[start : start + size] for start in range(0, len(body), size)], headers)
    assert reply.json["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_request_and_reply(dispatcher: Server, encoding: str, compress: Any) -> None:
    """N counts the uncompressed JSON; a reply is compressed for a client that accepts only that."""
    body, headers = binary({"inputs": [binary_input(X)], "parameters": {"binary_data_output": True}}, X.tobytes())
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    reply = await dispatcher.post(compress(body), headers)
    assert reply.headers["content-encoding"] == encoding
    reply.body = zlib.decompress(reply.body, 47)
    assert split(reply)[1][:24] == (X * 2).tobytes()


async def test_large_bodies_are_inflated_and_deflated_beside_the_event_loop(
    dispatcher: Server, monkeypatch: pytest.MonkeyPatch
):
    """A kilobyte of gzip may stand for a megabyte: whoever sends that holds up nobody else."""
    threads: dict[str, set[str]] = {"_decompress": set(), "_deflated": set()}
    for name, called in threads.items():
        original = getattr(dispatch, name)

        def noted(*arguments: Any, original: Any = original, called: set[str] = called) -> bytes:
            called.add(threading.current_thread().name)
            return bytes(original(*arguments))

        monkeypatch.setattr(dispatch, name, noted)
    monkeypatch.setattr(dispatch, "_DEFLATED_AT_ONCE", 10)
    body = orjson.dumps(request(), option=orjson.OPT_SERIALIZE_NUMPY) + b" " * 90_000
    padded = gzip.compress(body, 0)
    reply = await dispatcher.post(padded, {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert reply.status == 200
    assert gzip.decompress(reply.body)
    assert threading.current_thread().name not in threads["_decompress"] | threads["_deflated"]
    assert all(threads.values())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_errors_are_never_compressed(dispatcher: Server, encoding: str) -> None:
    """Clients do not decode them."""
    reply = await dispatcher.post(b"{", {"Accept-Encoding": encoding})
    assert "content-encoding" not in reply.headers
    assert "expected JSON" in reply.json["error"]


async def test_announcing_every_encoding_gets_a_plain_reply(dispatcher: Server) -> None:
    """A habit, not a wish."""
    reply = await dispatcher.post(request(), {"Accept-Encoding": "gzip, deflate, br"})
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b"x" * (MAX_BODY + 1), mtime=0), "gzip", 413),
        (b"not compressed", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400),
        (b"{}", "br", 400),
    ],
)
async def test_bad_compression_is_refused(dispatcher: Server, body: bytes, encoding: str, status: int) -> None:
    """Bombs, garbage, truncation, trailing bytes, unknown encodings."""
    assert (await dispatcher.post(body, {"Content-Encoding": encoding})).status == status


async def test_body_over_the_limit_is_refused(dispatcher: Server) -> None:
    """By its declared length before it is read, and by what really comes."""
    declared = await dispatcher.post(b"", {"Content-Length": str(MAX_BODY + 1)})
    assert declared.status == 413
    assert f"at most {MAX_BODY} bytes" in declared.json["error"]
    assert (await dispatcher.post(b"x" * (MAX_BODY + 1))).status == 413
    assert (await dispatcher.post([b"x" * MAX_BODY, b"x"])).status == 413


@pytest.mark.parametrize("datatype", ["INT64", "FP16", "BF16", "BOOL"])
async def test_every_width_travels_in_binary(dispatcher: Server, datatype: str) -> None:
    """Bits in, the same bits out."""
    payload = {"INT64": struct.pack("<2q", -1, 2**62), "BOOL": b"\x00\x01"}.get(datatype, b"\x00\x3c\x80\xbf")
    content = {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": len(payload)}}
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    body, headers = binary(content, payload)
    reply = await dispatcher.post(body, headers, path=f"/v2/models/{datatype}/infer")
    assert split(reply)[1] == payload


async def test_bytes_tensors_in_both_forms(dispatcher: Server) -> None:
    """Any bytes in binary, UTF-8 in JSON; the rest is told to ask for binary."""
    elements = [b"", b"a\0b", b"\xff\xfe", "é".encode()]
    payload = b"".join(struct.pack("<I", len(each)) + each for each in elements)
    item = {"name": "x", "shape": [2, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(payload)}}
    body, headers = binary({"inputs": [item], "parameters": {"binary_data_output": True}}, payload)
    assert split(await dispatcher.post(body, headers, path="/v2/models/BYTES/infer"))[1] == payload
    body, headers = binary({"inputs": [item]}, payload)
    reply = await dispatcher.post(body, headers, path="/v2/models/BYTES/infer")
    assert reply.status == 400
    assert "binary_data" in reply.json["error"]
    text = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "é"]}]}
    assert (await dispatcher.post(text, path="/v2/models/BYTES/infer")).json["outputs"][0]["data"] == ["a", "é"]


async def test_empty_binary_tensor(dispatcher: Server) -> None:
    """Zero rows are legal, and say their zero bytes."""
    empty = np.zeros((0, 3), np.float32)
    body, headers = binary({"inputs": [binary_input(empty)], "parameters": {"binary_data_output": True}})
    content, segments = split(await dispatcher.post(body, headers))
    assert content["outputs"][0]["shape"] == [0, 3]
    assert content["outputs"][0]["parameters"] == {"binary_data_size": 0}
    assert segments == b""


async def test_data_of_null_is_no_data(dispatcher: Server) -> None:
    """KServe's client writes it beside the size of a tensor without elements, in a body without the header."""
    empty = {**binary_input(X[:0]), "data": None}
    assert (await dispatcher.post({"inputs": [empty]})).json["outputs"][0]["shape"] == [0, 3]
    body, headers = binary({"inputs": [{**binary_input(X), "data": None}]}, X.tobytes())
    assert (await dispatcher.post(body, headers)).json["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12]


async def test_other_methods_on_the_infer_path(dispatcher: Server) -> None:
    """405 with the protocol's body and the method that is allowed."""
    reply = await call(dispatcher.app, "GET", INFER)
    assert reply is not None
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert "POST" in reply.json["error"]


async def test_not_ready_says_when_to_retry(dispatcher: Server) -> None:
    """503 with Retry-After."""
    reply = await dispatcher.post(request(), path="/v2/models/slow/infer")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


async def test_timeout_parameter_is_enforced(dispatcher: Server) -> None:
    """Microseconds; 504 although the model hangs."""
    dispatcher.model.gate.clear()
    reply = await dispatcher.post(request(parameters={"timeout": 20_000}))
    assert reply.status == 504
    assert "time" in reply.json["error"]


async def test_unplanned_error_shows_no_details(dispatcher: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is a 500 with a request id."""

    async def broken(*_: object) -> None:
        raise KeyError("/secret")

    monkeypatch.setattr(dispatcher.served[0].__class__, "infer", broken)
    reply = await dispatcher.post(request())
    assert reply.status == 500
    assert "secret" not in reply.json["error"]
    assert reply.json["request_id"] in reply.json["error"]


async def test_client_that_goes_away_leaves_the_queue(dispatcher: Server) -> None:
    """A disconnect cancels what waits; nothing is sent."""
    dispatcher.model.gate.clear()
    body = orjson.dumps(request(), option=orjson.OPT_SERIALIZE_NUMPY)
    running = asyncio.create_task(call(dispatcher.app, "POST", INFER, body))
    assert await asyncio.to_thread(dispatcher.model.started.acquire, timeout=WAIT_S)
    disconnect = asyncio.Event()
    gone = asyncio.create_task(call(dispatcher.app, "POST", INFER, body, disconnect=disconnect))
    kept = asyncio.create_task(call(dispatcher.app, "POST", INFER, body))
    while dispatcher.served[0].queue_depth < 2:
        await asyncio.sleep(0)
    disconnect.set()
    assert await asyncio.wait_for(gone, WAIT_S) is None
    assert dispatcher.served[0].queue_depth == 1
    dispatcher.model.gate.set()
    for task in (running, kept):
        reply = await asyncio.wait_for(task, WAIT_S)
        assert reply is not None
        assert reply.status == 200
    assert len(dispatcher.model.batches) == 2


async def test_client_that_goes_away_while_sending(dispatcher: Server) -> None:
    """Half a body and a disconnect: no answer, no error."""
    event = asyncio.Event()
    event.set()

    async def send(message: Any) -> None:
        raise AssertionError("nothing may be sent")

    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    await dispatcher.app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send)


async def test_concurrent_callers_get_their_own_rows(dispatcher: Server) -> None:
    """Many at once, batched together, each with its own numbers."""

    async def one(number: int) -> None:
        x = np.full((1, 3), number, np.float32)
        body, headers = binary(
            {"inputs": [binary_input(x)], "outputs": [{"name": "doubled", "parameters": {"binary_data": True}}]},
            x.tobytes(),
        )
        assert split(await dispatcher.post(body, headers))[1] == (x * 2).tobytes()

    await asyncio.gather(*(one(number) for number in range(100)))
    assert len(dispatcher.model.batches) < 100
