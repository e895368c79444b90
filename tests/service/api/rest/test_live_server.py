"""The dispatcher behind the real HTTP server: keep-alive, pipelining, chunked bodies, disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import numpy as np
import orjson
import pytest

from service.api.rest.dispatch import App, Dispatcher
from service.api.rest.fast_lane import FastLane
from service.api.rest.http_protocol import MAX_HEADER_BYTES
from service.api.rest.server import build_server
from service.core.inference import InferenceService
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def nowhere(scope: object, receive: object, send: object) -> None:
    """The application behind the dispatcher, which these tests never reach."""
    raise AssertionError("not an inference request")


class Live:
    """A server on a free port, with the fast lane or without."""

    def __init__(self, *, fast: bool) -> None:
        self.model = HeldModel(spec(max_batch_size=1))
        self.served = serve(self.model)
        inference = InferenceService(FakeRegistry(self.served), "axon", "1", RealClock())
        app: App = Dispatcher(nowhere, inference, max_body_bytes=10_000)
        lane = FastLane(inference, RealClock(), max_body_bytes=10_000) if fast else None
        self.server = build_server(app, backlog=16, drain_s=1, lane=lane)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    async def connect(self) -> Streams:
        """A client's connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture(params=[True, False], ids=["fast lane", "long way"])
async def live(request: pytest.FixtureRequest) -> AsyncIterator[Live]:
    """A server that is stopped at the end."""
    made = Live(fast=request.param)
    serving = asyncio.create_task(made.server.serve(sockets=[made.listener]))
    yield made
    made.model.gate.set()
    made.server.should_exit = True
    await asyncio.wait_for(serving, WAIT_S)
    assert await made.served.close(WAIT_S)


def content(first: float) -> bytes:
    """A body whose answer tells it from others."""
    x = np.array([first, 0, 0], np.float32)
    item = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": x}
    return orjson.dumps({"inputs": [item]}, option=orjson.OPT_SERIALIZE_NUMPY)


def post(body: bytes, *headers: str) -> bytes:
    """A request on the wire."""
    lines = ["POST /v2/models/fake/infer HTTP/1.1", "Host: test", *(headers or (f"Content-Length: {len(body)}",))]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next reply."""
    async with asyncio.timeout(WAIT_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


def answered(body: bytes) -> float:
    """The number that tells an answer from others."""
    return float(orjson.loads(body)["outputs"][0]["data"][0])


async def test_one_connection_serves_many_requests(live: Live) -> None:
    """One after the other, then pipelined: answers in the order of the requests."""
    reader, writer = await live.connect()
    for number in (1, 2):
        writer.write(post(content(number)))
        status, body = await reply(reader)
        assert (status, answered(body)) == (200, 2 * number)
    writer.write(b"".join(post(content(number)) for number in (3, 4, 5)))
    assert [answered((await reply(reader))[1]) for _ in range(3)] == [6, 8, 10]
    writer.close()


async def test_chunked_body_is_read(live: Live) -> None:
    """Without a Content-Length, and bounded all the same."""
    reader, writer = await live.connect()
    body = content(7)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"
    writer.write(post(chunks, "Transfer-Encoding: chunked"))
    assert answered((await reply(reader))[1]) == 14
    writer.write(post(b"4000\r\n" + b"x" * 0x4000 + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"))
    assert (await reply(reader))[0] == 413
    writer.close()


async def test_refused_body_does_not_break_the_connection(live: Live) -> None:
    """A client that sends everything before it reads gets the reason, and may go on."""
    reader, writer = await live.connect()
    writer.write(post(b"x" * 20_000))
    assert (await reply(reader))[0] == 413
    writer.write(post(content(1)))
    assert answered((await reply(reader))[1]) == 2
    writer.close()


async def test_client_that_hangs_up_leaves_the_queue(live: Live) -> None:
    """The connection is closed while its request waits: its place is free before the model is."""
    live.model.gate.clear()
    first_reader, first_writer = await live.connect()
    first_writer.write(post(content(1)))
    assert await asyncio.to_thread(live.model.started.acquire, timeout=WAIT_S)
    _, gone = await live.connect()
    gone.write(post(content(2)))
    async with asyncio.timeout(WAIT_S):
        while live.served.queue_depth < 1:
            await asyncio.sleep(0.001)
        gone.close()
        while live.served.queue_depth:
            await asyncio.sleep(0.001)
    live.model.gate.set()
    assert answered((await reply(first_reader))[1]) == 2
    first_writer.close()
    assert len(live.model.batches) == 1


@pytest.mark.parametrize("garbage", [b"no request at all\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"])
async def test_what_is_no_http_gets_the_protocols_error(live: Live, garbage: bytes) -> None:
    """400 with a JSON body, and the connection is closed."""
    reader, writer = await live.connect()
    writer.write(garbage)
    async with asyncio.timeout(WAIT_S):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.split(b"\r\n")
    assert orjson.loads(body).keys() == {"error"}
    writer.close()


async def test_headers_without_an_end_are_refused(live: Live) -> None:
    """After a bound, however they come; slow ones that do end are read."""
    reader, writer = await live.connect()
    with contextlib.suppress(ConnectionError):
        writer.write(b"POST /v2/models/fake/infer HTTP/1.1\r\n")
        for _ in range(MAX_HEADER_BYTES // 1000 + 2):
            writer.write(b"x: " + b"y" * 995 + b"\r\n")
            await writer.drain()
    async with asyncio.timeout(WAIT_S):
        assert b"headers: expected at most" in await reader.read()
    writer.close()
    reader, writer = await live.connect()
    request = post(content(1))
    for _ in range(2):
        for piece in (request[:30], request[30:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert answered((await reply(reader))[1]) == 2
    writer.close()
