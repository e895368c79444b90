"""Clients that keep a connection waiting: told and given up in time, and only when it is they who are slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.rest.http_protocol import JoinedWrites
from service.api.rest.server import build_server

PATIENCE_S = 0.6
WITHIN_S = PATIENCE_S + 10
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n1234"
LARGE = 16 * 2**20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and answers; `/slow` takes longer than clients may, `/large` says a lot."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * PATIENCE_S)
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server with little patience."""
    server = build_server(app, backlog=16, drain_s=1, patience_s=PATIENCE_S)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(serving, WITHIN_S)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b""),
        (b"\r\n\r\n", b""),
        (REQUEST[:20], b"headers: expected their end within the server's patience"),
        (REQUEST[:-1], b"body: expected more of it within the server's patience"),
        (REQUEST + REQUEST[:20], b"headers: expected their end within the server's patience"),
    ],
)
async def test_silent_client_is_given_up(port: int, sent: bytes, said: bytes):
    """Before its first request without a word, in mid-request with a reason; not at once."""
    async with connected(port) as (reader, writer):
        began = time.monotonic()
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), WITHIN_S)
        assert time.monotonic() - began >= PATIENCE_S
        last = answer[answer.rfind(b"HTTP/1.1") :] if said else answer
        assert last.startswith(b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json") == bool(said)
        assert said in last


async def test_head_that_drips_is_given_up(port: int):
    """A byte now and then does not make a head that never ends."""
    async with connected(port) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        for byte in REQUEST[:40]:
            if answer.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(PATIENCE_S / 6)
        assert answer.done()
        with contextlib.suppress(ConnectionResetError):  # a byte was on its way
            assert b"408" in answer.result()


async def test_body_that_drips_is_read(port: int):
    """An upload may take long as long as it goes on."""
    async with connected(port) as (reader, writer):
        writer.write(REQUEST[:-4])
        for byte in b"1234":
            await asyncio.sleep(PATIENCE_S / 2)
            writer.write(bytes([byte]))
        assert (await asyncio.wait_for(reader.readline(), WITHIN_S)).startswith(b"HTTP/1.1 200")


async def test_slow_server_is_not_the_clients_silence(port: int):
    """A whole request is answered however long that takes."""
    async with connected(port) as (reader, writer):
        writer.write(REQUEST.replace(b"/ ", b"/slow ", 1))
        assert (await asyncio.wait_for(reader.readline(), WITHIN_S)).startswith(b"HTTP/1.1 200")


async def test_server_that_stood_still_blames_nobody(port: int):
    """Found by the soak: after a stall of the event loop, what clients had sent meanwhile was taken for silence."""
    async with connected(port) as (reader, writer):
        writer.write(REQUEST[:-4])
        await asyncio.sleep(0.1)
        writer.write(REQUEST[-4:])
        time.sleep(3 * PATIENCE_S)  # the whole event loop, on purpose
        assert (await asyncio.wait_for(reader.readline(), WITHIN_S)).startswith(b"HTTP/1.1 200")


async def test_unread_answer_is_given_up(port: int):
    """A client that does not read what it asked for loses the connection; one that reads slowly does not."""
    async with connected(port) as (reader, writer):
        writer.write(REQUEST.replace(b"/ ", b"/large ", 1))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(4 * PATIENCE_S)  # this is the client that does not read
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.readexactly(LARGE), WITHIN_S)
            pytest.fail("the whole answer came")
    async with connected(port) as (reader, writer):
        writer.write(REQUEST.replace(b"/ ", b"/large ", 1))
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(LARGE // 2**21):
            await asyncio.wait_for(reader.readexactly(2**21), WITHIN_S)
            await asyncio.sleep(PATIENCE_S / 4)


class _Closed(asyncio.Transport):
    """A transport that raises on writing after its end, as uvloop's do."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        raise RuntimeError("the handler is closed")


async def test_late_answer_to_a_closed_connection_is_dropped():
    """Found by the fuzzer: a request refused in mid-body was answered once more, into a traceback."""
    transport = JoinedWrites(_Closed(), asyncio.get_running_loop())
    transport.write(b"late")
    transport.write(b"later")
