"""Large JSON: read beside the event loop, bounded in bytes and in lists, and told what to send instead."""

from __future__ import annotations

import gzip
import threading

import numpy as np
import pytest

from service.api.rest import infer_wire
from service.api.rest.asgi import App
from service.api.rest.dispatch import Dispatcher
from service.core.inference import InferenceService
from tests.service.api.asgi import Reply, call
from tests.service.core.served import FakeRegistry, HeldModel, RealClock, serve, spec

PATH = "/v2/models/fake/infer"
WIDTH = 30_000
MAX_JSON = 2_000_000


def app(model: HeldModel) -> App:
    """The dispatcher over one model."""
    inference = InferenceService(FakeRegistry(serve(model)), "axon", "1", RealClock())

    async def nowhere(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    return Dispatcher(nowhere, inference, max_body_bytes=2**23, max_json_bytes=MAX_JSON)


async def post(model: HeldModel, body: bytes | list[bytes], headers: dict[str, str] | None = None) -> Reply:
    """The answer."""
    reply = await call(app(model), "POST", PATH, body, headers)
    assert reply is not None
    return reply


def rows(count: int) -> bytes:
    """So many rows of `WIDTH` ones."""
    data = b",".join([b"1.0"] * count * WIDTH)
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,%d],"data":[%s]}]}' % (count, WIDTH, data)


async def test_large_json_is_read_in_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """The small on the event loop; both give the same."""
    readers: list[str] = []
    decode = infer_wire.decode_request

    def noted(body: bytes, header_length: int | None, *arguments: object) -> object:
        readers.append(threading.current_thread().name)
        return decode(body, header_length, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(infer_wire, "decode_request", noted)
    model = HeldModel(spec(width=WIDTH))
    assert len(rows(1)) < infer_wire.JSON_AT_ONCE < len(rows(4))
    for count in (1, 4):
        reply = await post(model, rows(count))
        assert reply.status == 200
        assert reply.json["outputs"][0]["data"] == [2.0] * count * WIDTH
    assert readers[0] == threading.current_thread().name
    assert readers[1].startswith("json")


async def test_more_json_than_may_be_is_refused_and_binary_is_not():
    """By what is announced, by what comes, and by what it is inflated to; the error says what to send instead."""
    model = HeldModel(spec(width=WIDTH))
    long = rows(17)
    assert len(long) > MAX_JSON
    for body, headers in (
        (b"", {"Content-Length": str(MAX_JSON + 1)}),
        ([long[:1000], long[1000:]], {}),
        (gzip.compress(long), {"Content-Encoding": "gzip"}),
        (long, {"Inference-Header-Content-Length": str(len(long))}),
    ):
        reply = await post(model, body, headers)
        assert reply.status == 413
        assert "Inference-Header-Content-Length" in reply.json["error"]
    raw = np.ones((8, 3 * WIDTH), np.float32).tobytes()
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[8,%d],"parameters":{"binary_data_size":%d}}]}' % (
        3 * WIDTH,
        len(raw),
    )
    assert len(raw) > MAX_JSON
    wide = HeldModel(spec(width=3 * WIDTH))
    reply = await post(wide, head + raw, {"Inference-Header-Content-Length": str(len(head))})
    assert reply.status == 200


async def test_more_lists_than_may_be_are_refused():
    """A list around every value is what makes JSON slow to read."""
    data = b",".join([b"[1.0]"] * (infer_wire.MAX_CONTAINERS + 1))
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[131073,1],"data":[%s]}]}' % data
    reply = await post(HeldModel(spec()), body)
    assert reply.status == 413
    assert "data may be one flat list" in reply.json["error"]
