"""Calls over the transport as other people's clients make them: h2 by frames, grpcio by channels."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator

import grpc
import pytest
import trustme
import uvloop
from h2.settings import SettingCodes

from service.api.grpc.transport.frames import ErrorCode
from service.api.grpc.transport.metadata import percent_decoded
from tests.hostile.grpc_cases import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, frame
from tests.service.api.grpc.transport.peers import (
    COUNT,
    HELD,
    MANY,
    MAX_MESSAGE,
    METADATA,
    QUICK,
    STREAM,
    UNARY,
    block,
    connected,
    echoing,
    framed,
    raw,
)
from tests.service.core.served import WAIT_S


@pytest.mark.parametrize("path", [UNARY, QUICK])
@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, MAX_MESSAGE])
async def test_message_of_any_length_comes_back(path: str, size: int) -> None:
    """Shorter and longer than a frame and a window; headers, one message, trailers."""
    async with echoing() as (port, _, _), connected(port) as peer:
        message = bytes(number % 251 for number in range(size))
        answer = await peer.call(path, message)
        assert answer.messages == [message]
        assert (answer.headers[":status"], answer.headers["content-type"]) == ("200", "application/grpc")
        assert (answer.status, answer.reset) == ("0", None)


async def test_calls_at_once_are_told_apart() -> None:
    """Their frames come mixed, byte by byte."""
    async with echoing() as (port, _, _), connected(port) as peer:
        numbers = [peer.head(path) for path in (UNARY, QUICK) * 10]
        for byte in range(8):
            for number in numbers:
                await peer.send(number, framed(b"%03d" % number)[byte : byte + 1], end=byte == 7)
        for number in numbers:
            assert (await peer.answer(number)).messages == [b"%03d" % number]


async def test_stream_echoes_in_order_and_ends() -> None:
    """Several messages in a frame, one in several."""
    async with echoing() as (port, _, _), connected(port) as peer:
        number = peer.head(STREAM)
        sent = [bytes(size) for size in (0, 5, 30_000, 1, 70_000, 2)]
        await peer.send(number, b"".join(map(framed, sent)), end=True)
        answer = await peer.answer(number)
        assert (answer.messages, answer.status) == (sent, "0")


async def test_metadata_timeout_and_abort() -> None:
    """Texts and bytes of metadata, what is left of the time; details and trailing metadata of a status."""
    async with echoing() as (port, echo, _), connected(port) as peer:
        text = "50 % ü\n\U0001f600"
        more = [("grpc-timeout", "5S"), ("x-text", "a"), ("x-bin", "AP8"), ("te", "trailers")]
        answer = await peer.call(METADATA, text.encode(), headers=more)
        metadata, remaining_s = echo.seen[0]
        assert metadata == (("x-text", "a"), ("x-bin", b"\x00\xff"))
        assert 0 < remaining_s <= 5
        assert (answer.status, answer.headers["x-more"]) == ("15", "1")
        assert percent_decoded(answer.headers["grpc-message"].encode()) == text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/t.Echo/None", {}, ("200", "12")),
        ("/", {}, ("200", "12")),
        (UNARY, {"content-type": "application/json"}, ("415", "")),
        (UNARY, {"content-type": "application/grpcx"}, ("415", "")),
        (UNARY, {"content-type": "application/grpc+proto"}, ("200", "0")),
        (UNARY, {":method": "PUT"}, ("405", "")),
        (UNARY, {"grpc-encoding": "snappy"}, ("200", "12")),
        (UNARY, {"grpc-timeout": "1x"}, ("200", "3")),
        (UNARY, {"x": "y" * 20_000}, ("200", "8")),
    ],
)
async def test_other_requests_are_refused(path: str, headers: dict[str, str], status: tuple[str, str]) -> None:
    """By HTTP's status where they are no gRPC, by gRPC's where they are; the connection goes on."""
    async with echoing() as (port, _, _), connected(port) as peer:
        number = peer.head(path, headers=headers.items())
        if status[1] == "0":
            await peer.send(number, framed(b"x"), end=True)
        answer = await peer.answer(number)
        assert (answer.headers[":status"], answer.status) == status
        assert (await peer.call(QUICK)).status == "0"


@pytest.mark.parametrize("data", [b"", framed(b"a") * 2, framed(b"a") + b"\0"])
async def test_one_message_is_expected(data: bytes) -> None:
    """None, two, or one and a half: an error, not a wait."""
    async with echoing() as (port, _, _), connected(port) as peer:
        for path in (UNARY, HELD):
            number = peer.head(path)
            peer.http.send_data(number, data, end_stream=True)
            peer.flush()
            assert (await peer.answer(number)).status in {"12", "3"}


async def test_expired_and_cancelled_calls_end_their_methods() -> None:
    """By the deadline, by RST_STREAM, by the connection's end."""
    async with echoing() as (port, echo, _):
        async with connected(port) as peer:
            assert (await peer.call(HELD, headers=[("grpc-timeout", "20m")])).status == "4"
            number = peer.head(HELD)
            await peer.send(number, framed(b""), end=True)
            peer.http.reset_stream(number, ErrorCode.CANCEL)
            peer.flush()
            await peer.send(peer.head(HELD), framed(b""), end=True)
            echo.entered.clear()
            await asyncio.wait_for(echo.entered.wait(), WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while echo.cancelled < 2:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [10, 50_000, 150_000])
async def test_compressed_messages(encoding: str, size: int) -> None:
    """Inflated at once or in a thread, in order with plain ones; answers of middling length are compressed."""
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    sent = [bytes([number]) * size for number in range(4)]
    async with echoing() as (port, _, _), connected(port) as peer:
        number = peer.head(STREAM, headers=[("grpc-encoding", encoding)])
        data = b"".join(framed(pack(each), 1) if index != 2 else framed(each) for index, each in enumerate(sent))
        await peer.send(number, data, end=True)
        answer = await peer.answer(number)
        assert (answer.status, answer.headers["grpc-encoding"]) == ("0", encoding)
        found = answer.messages
        if answer.data[0]:
            found = [gzip.decompress(each) if encoding == "gzip" else zlib.decompress(each) for each in found]
        assert found == sent
        assert bool(answer.data[0]) == (size == 50_000)


@pytest.mark.parametrize(
    ("message", "flag", "encoding", "status"),
    [
        (gzip.compress(bytes(MAX_MESSAGE + 1)), 1, "gzip", "8"),
        (gzip.compress(bytes(100_000_000)), 1, "gzip", "8"),
        (gzip.compress(b"x" * 100)[:-9], 1, "gzip", "3"),
        (b"nothing", 1, "deflate", "3"),
        (gzip.compress(b"x") + b"y", 1, "gzip", "3"),
        (b"x", 1, "identity", "3"),
        (b"x", 2, "gzip", "3"),
    ],
)
async def test_wrong_compression_is_refused(message: bytes, flag: int, encoding: str, status: str) -> None:
    """Bombs without being inflated whole, rubbish, flags that are none."""
    async with echoing() as (port, _, _), connected(port) as peer:
        number = peer.head(UNARY, headers=[("grpc-encoding", encoding)])
        await peer.send(number, framed(message, flag), end=True)
        assert (await peer.answer(number)).status == status


async def test_answers_wait_for_the_clients_window() -> None:
    """Of the stream and of the connection; more is made only as the client takes what there is."""
    async with echoing() as (port, echo, _), connected(port, settings={SettingCodes.INITIAL_WINDOW_SIZE: 7}) as peer:
        peer.acknowledge = False
        number = peer.head(MANY)
        await peer.send(number, framed(b"50"), end=True)
        answer = peer.answers[number]
        await peer.until(lambda: len(answer.data) == 7)
        await asyncio.sleep(0.05)
        assert len(echo.seen) < 10
        peer.http.increment_flow_control_window(100_000, number)
        peer.flush()
        await peer.until(lambda: len(answer.data) == 65_535)
        peer.acknowledge = True
        peer.http.increment_flow_control_window(2**20)
        peer.http.increment_flow_control_window(2**20, number)
        peer.flush()
        assert (await peer.answer(number)).messages == [bytes(10_000)] * 50


async def test_request_stream_is_held_back_by_its_reader() -> None:
    """What a method does not take stays with the client."""
    async with echoing(stream_window_bytes=65_535) as (port, echo, _), connected(port) as peer:
        number = peer.head(COUNT)
        await peer.until(lambda: echo.entered.is_set())
        sent = 0
        while peer.http.local_flow_control_window(number) > 1005:
            peer.http.send_data(number, framed(bytes(1000)))
            sent += 1000
            peer.flush()
            await asyncio.sleep(0)
        assert sent < 66_000
        echo.gate.set()
        await peer.send(number, framed(bytes(1000)) * 300, end=True)
        assert (await peer.answer(number)).messages == [b"%d" % (sent + 300_000)]


async def test_stop_answers_what_was_begun() -> None:
    """Two GOAWAYs, the second with the last stream; what comes in between is served, what comes later is not."""
    async with echoing() as (port, echo, server), raw(port) as client:
        call = frame(DATA, END_STREAM, 1, framed(b"late"))
        client.write(frame(HEADERS, END_HEADERS, 1, block(HELD)), call)
        await asyncio.wait_for(echo.entered.wait(), WAIT_S)
        stopping = asyncio.create_task(server.stop(WAIT_S))
        await client.until(lambda: bool(client.of(PING)))
        client.write(frame(HEADERS, END_HEADERS, 3, block(HELD)), frame(DATA, END_STREAM, 3, framed(b"later")))
        client.write(frame(PING, 1, 0, client.of(PING)[0].payload))
        client.write(frame(HEADERS, END_HEADERS, 5, block(HELD)))
        assert await client.reset(5) == ErrorCode.REFUSED_STREAM
        assert [int.from_bytes(each.payload[:4]) for each in client.of(GOAWAY)] == [2**31 - 1, 3]
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        echo.gate.set()
        assert (await client.trailers(3))["grpc-status"] == "0"
        assert await client.code() == ErrorCode.NO_ERROR
        assert {each.stream: each.payload for each in client.of(DATA)} == {1: framed(b"late"), 3: framed(b"later")}
        await asyncio.wait_for(stopping, WAIT_S)


async def test_stop_ends_what_takes_too_long() -> None:
    """With UNAVAILABLE, and its method is cancelled."""
    async with echoing() as (port, echo, server), raw(port) as client:
        client.write(frame(HEADERS, END_HEADERS, 1, block(HELD)), frame(DATA, END_STREAM, 1, framed(b"x")))
        await asyncio.wait_for(echo.entered.wait(), WAIT_S)
        stopping = asyncio.create_task(server.stop(0.05))
        assert (await client.trailers(1))["grpc-status"] == "14"
        await asyncio.wait_for(stopping, WAIT_S)
        assert echo.cancelled == 1


def test_on_uvloop_with_grpcio() -> None:
    """The loop that serves, the client that most have: unary, streams, deadline, compression, large messages."""

    async def talk() -> None:
        async with echoing() as (port, _, _), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for path in (UNARY, QUICK):
                call = channel.unary_unary(path)
                for size in (0, 100, MAX_MESSAGE):
                    assert await call(bytes(size), timeout=WAIT_S) == bytes(size)
                assert await call(bytes(5000), compression=grpc.Compression.Gzip) == bytes(5000)
                assert await asyncio.gather(*(call(b"%d" % each) for each in range(300))) == [
                    b"%d" % each for each in range(300)
                ]

            async def requests() -> AsyncIterator[bytes]:
                for each in range(300):
                    yield b"%d" % each

            echoed = [each async for each in channel.stream_stream(STREAM)(requests())]
            assert echoed == [b"%d" % each for each in range(300)]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(HELD)(b"", timeout=0.05)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(UNARY)(bytes(MAX_MESSAGE + 1))
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())


async def test_over_tls() -> None:
    """With a certificate and h2 in ALPN."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with (
        echoing(tls=context) as (port, _, _),
        grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel,
    ):
        for size in (1, MAX_MESSAGE):
            assert await channel.unary_unary(QUICK)(bytes(size), timeout=WAIT_S) == bytes(size)
