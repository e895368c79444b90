"""gRPC messages to the byte, written down from the protocol's field numbers and not from what the code gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.service.api.grpc.test_server import Server
from tests.service.core.served import WAIT_S

METHOD = "/inference.GRPCInferenceService/"
X = b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x40\x40"  # 1, -2, 3
TENSOR = b"\x0a\x01x\x12\x04FP32\x1a\x02\x01\x03"
HEAD = b"\x0a\x04fake\x1a\x017"
TOTAL = b"\x32\x07\x0a\x05total"
RAW = HEAD + b"\x2a\x0d" + TENSOR + TOTAL + b"\x3a\x0c" + X
TYPED = HEAD + b"\x2a\x1d" + TENSOR + b"\x2a\x0e\x32\x0c" + X + TOTAL
NOT_PACKED = b"\x0a\x01x\x12\x04FP32\x18\x01\x18\x03\x2a\x0f" + b"".join(b"\x35" + X[at : at + 4] for at in (0, 4, 8))
UNPACKED = HEAD + b"\x2a" + bytes([len(NOT_PACKED)]) + NOT_PACKED + TOTAL
"""Repeated numbers one by one, as older clients may write them."""
REPLY = (
    (b"\x0a\x04fake\x12\x013\x1a\x017")
    + (b"\x2a\x10\x0a\x05total\x12\x04FP64\x1a\x01\x01")
    + (b"\x32\x08\x00\x00\x00\x00\x00\x00\x00\x40")
)
FINAL = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("request_", [RAW, TYPED, UNPACKED])
async def test_inference(server: Server, request_: bytes) -> None:
    """Raw or typed contents in, raw ones out."""
    call = server.channel.unary_unary(f"{METHOD}ModelInfer")
    assert await asyncio.wait_for(call(request_), WAIT_S) == REPLY


async def test_stream(server: Server) -> None:
    """An answer, a failure with its text and id, and an answer again; each marked as final."""

    async def requests() -> AsyncIterator[bytes]:
        yield RAW
        yield RAW.replace(b"\x0a\x04fake", b"\x0a\x04none")
        yield TYPED

    stream = server.channel.stream_stream(f"{METHOD}ModelStreamInfer")(requests())
    async with asyncio.timeout(WAIT_S):
        answers = [answer async for answer in stream]
    good = REPLY.replace(b"\x2a\x10", FINAL + b"\x2a\x10")
    failed = b"\x1a\x017" + FINAL
    assert answers == [
        b"\x12" + bytes([len(good)]) + good,
        b"\x0a\x0fno model 'none'\x12" + bytes([len(failed)]) + failed,
        b"\x12" + bytes([len(good)]) + good,
    ]


async def test_health_and_index(server: Server) -> None:
    """The shortest messages: true is a field, false is nothing."""
    for method, request, reply in (
        ("ServerLive", b"", b"\x08\x01"),
        ("ServerReady", b"", b"\x08\x01"),
        ("ModelReady", b"\x0a\x04fake\x12\x013", b"\x08\x01"),
        ("ModelReady", b"\x0a\x04slow", b""),
        ("SystemSharedMemoryStatus", b"", b""),
        ("CudaSharedMemoryUnregister", b"\x0a\x01r", b""),
    ):
        assert await asyncio.wait_for(server.channel.unary_unary(METHOD + method)(request), WAIT_S) == reply
