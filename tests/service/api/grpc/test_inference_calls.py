"""ModelInfer and ModelStreamInfer below what a client library lets through: floods, shut windows, callers that go."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import numpy as np
import pytest

from service.api.grpc.generated import inference_pb2 as pb
from tests.hostile.grpc_cases import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame
from tests.service.api.grpc.test_server import Server, X
from tests.service.api.grpc.test_server import raw as request
from tests.service.api.grpc.transport.peers import Raw, block, framed, raw
from tests.service.core.served import WAIT_S

INFER, STREAM = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    await made.start()
    yield made
    await made.stop()


def pieces(number: int, data: bytes, *, end: bool = True) -> bytes:
    """DATA frames."""
    size = 16_384
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    last = len(parts) - 1
    return b"".join(frame(DATA, END_STREAM if end and at == last else 0, number, part) for at, part in enumerate(parts))


def answers(client: Raw, number: int) -> list[pb.ModelStreamInferResponse]:
    """The messages of a stream so far."""
    data = b"".join(each.payload for each in client.of(DATA) if each.stream == number)
    found = []
    while len(data) >= 5 and len(data) >= 5 + (size := struct.unpack(">I", data[1:5])[0]):
        found.append(pb.ModelStreamInferResponse.FromString(data[5 : 5 + size]))
        data = data[5 + size :]
    return found


async def depth(server: Server, expected: int) -> None:
    """Until so many requests wait."""
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth != expected:
            await asyncio.sleep(0.001)


async def test_thousands_of_wrong_requests_in_one_stream(server: Server) -> None:
    """Each fails before the next begins, however many come at once: all are answered, in order."""
    async with raw(server.port) as client:
        window = struct.pack(">I", 10**7)
        client.write(frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        client.write(frame(WINDOW_UPDATE, 0, 0, window), frame(WINDOW_UPDATE, 0, 1, window))
        wrong = b"".join(framed(pb.ModelInferRequest(id=str(number)).SerializeToString()) for number in range(5000))
        client.write(pieces(1, wrong))
        assert (await client.trailers(1))["grpc-status"] == "0"
        found = answers(client, 1)
        assert [each.infer_response.id for each in found] == [str(number) for number in range(5000)]
        assert all("at least one input" in each.error_message for each in found)


async def test_stream_whose_answers_nobody_takes(server: Server) -> None:
    """What is computed and not taken is bounded; the rest goes on with the window, to its end."""
    async with raw(server.port) as client:
        client.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)), frame(HEADERS, END_HEADERS, 1, block(STREAM)))
        sent = b"".join(
            framed(request(np.full((4, 3), number, np.float32), id="x" * 1000).SerializeToString())
            for number in range(150)
        )
        client.write(pieces(1, sent))
        async with asyncio.timeout(WAIT_S):
            while not (taken := server.served[0].statistics.success.count) or server.served[0].in_flight:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        taken = server.served[0].statistics.success.count
        assert 50 < taken < 150
        window = struct.pack(">I", 10**6)
        client.write(frame(WINDOW_UPDATE, 0, 0, window), frame(WINDOW_UPDATE, 0, 1, window))
        assert (await client.trailers(1))["grpc-status"] == "0"
        values = [np.frombuffer(each.infer_response.raw_output_contents[0], np.float32) for each in answers(client, 1)]
        assert [value[0] for value in values] == [2.0 * number for number in range(150)]


@pytest.mark.parametrize("path", [INFER, STREAM])
@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_callers_that_go_free_their_places(server: Server, path: str, how: str) -> None:
    """At once, while the model is busy; what it computes for them is dropped."""
    server.model.gate.clear()
    message = framed(request(np.ones((4, 3), np.float32)).SerializeToString())
    async with raw(server.port) as client:
        for number in (1, 3, 5):
            client.write(frame(HEADERS, END_HEADERS, number, block(path)), pieces(number, message))
            await depth(server, max(0, number // 2))
        if how == "reset":
            client.write(*[frame(RST_STREAM, 0, number, struct.pack(">I", 8)) for number in (1, 3, 5)])
            await depth(server, 0)
    await depth(server, 0)
    server.model.gate.set()
    assert (await server.infer(request(X))).outputs


async def test_sixty_four_requests_of_a_stream_at_a_time(server: Server) -> None:
    """More wait on the wire, and begin as others end."""
    server.model.gate.clear()
    async with raw(server.port) as client:
        message = framed(request(np.ones((4, 3), np.float32)).SerializeToString())
        client.write(frame(HEADERS, END_HEADERS, 1, block(STREAM)), pieces(1, message * 100))
        await depth(server, 63)
        server.model.gate.set()
        assert (await client.trailers(1))["grpc-status"] == "0"
        assert len(answers(client, 1)) == 100
