"""What one hostile client may do: each bound by itself, and that others are served all the while."""

from __future__ import annotations

import asyncio
import gc
import struct
import weakref
from collections.abc import Callable

import pytest
from hpack import Encoder

from service.api.admission import Admission
from service.api.grpc.transport.frames import ErrorCode
from tests.hostile.grpc_cases import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.service.api.grpc.transport.peers import (
    COUNT,
    HELD,
    MANY,
    MAX_MESSAGE,
    PREFACE,
    QUICK,
    STREAM,
    UNARY,
    Raw,
    block,
    connected,
    echoing,
    framed,
    raw,
)
from tests.service.core.served import WAIT_S

CALM = ErrorCode.ENHANCE_YOUR_CALM


def begun(number: int, path: str = HELD) -> bytes:
    """A call's headers."""
    return frame(HEADERS, END_HEADERS, number, block(path))


async def test_too_many_streams_are_refused_one_by_one() -> None:
    """Those that there is room for are served."""
    async with echoing(max_streams=3) as (port, echo, _), raw(port) as client:
        for number in (1, 3, 5, 7, 9):
            client.write(begun(number), frame(DATA, END_STREAM, number, framed(b"x")))
        assert [await client.reset(number) for number in (7, 9)] == [ErrorCode.REFUSED_STREAM] * 2
        echo.gate.set()
        assert [(await client.trailers(number))["grpc-status"] for number in (1, 3, 5)] == ["0"] * 3


async def test_calls_that_are_being_cancelled_count() -> None:
    """A client cannot have more methods running by resetting their streams."""
    async with echoing(max_streams=2) as (port, _, _), raw(port) as client:
        for number in (1, 3):
            client.write(begun(number), frame(DATA, END_STREAM, number, framed(b"x")))
            client.write(frame(RST_STREAM, 0, number, struct.pack(">I", 8)))
        client.write(begun(5, QUICK), begun(7, QUICK), begun(9, QUICK))
        client.write(*[frame(DATA, END_STREAM, number, framed(b"x")) for number in (5, 7, 9)])
        assert [await client.reset(number) for number in (5, 7, 9)] == [ErrorCode.REFUSED_STREAM] * 3
        client.write(begun(11, QUICK), frame(DATA, END_STREAM, 11, framed(b"x")))
        assert (await client.trailers(11))["grpc-status"] == "0"


async def flood(port: int, *pieces: bytes) -> tuple[int | None, Raw]:
    """The code with which the server ends a connection."""
    async with raw(port) as client:
        client.write(*pieces)
        return await asyncio.wait_for(client.code(), WAIT_S), client


RESETS = [begun(number) + frame(RST_STREAM, 0, number, struct.pack(">I", 8)) for number in range(1, 4001, 2)]
FAULTY = [frame(HEADERS, END_HEADERS, number, b"\x83\x84") for number in range(1, 4001, 2)]
FLOODS = {
    "rapid reset": RESETS,
    "faults that reset": FAULTY,
    "PING": [frame(PING, 0, 0, b"12345678")] * 10_000,
    "PING answers": [frame(PING, 1, 0, b"12345678")] * 10_000,
    "SETTINGS": [frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 70_000))] * 10_000,
    "empty DATA": [begun(1, COUNT), *[frame(DATA, 0, 1, b"")] * 10_000],
    "padding": [begun(1, COUNT), *[frame(DATA, 8, 1, b"\x00")] * 10_000],
    "WINDOW_UPDATE": [begun(1, COUNT), *[frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1))] * 10_000],
    "WINDOW_UPDATE of all": [frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))] * 10_000,
    "PRIORITY": [frame(PRIORITY, 0, 1, bytes(5))] * 10_000,
    "unknown frames": [frame(77, 0, 0, b"")] * 10_000,
    "empty CONTINUATION": [frame(HEADERS, 0, 1, block(HELD)), *[frame(CONTINUATION, 0, 1, b"")] * 10_000],
    "CONTINUATION": [frame(HEADERS, 0, 1, block(HELD)), *[frame(CONTINUATION, 0, 1, b"\x00" * 1000)] * 40],
    "requests that are no gRPC": [
        frame(HEADERS, END_HEADERS | END_STREAM, number, b"\x82\x84\x86") for number in range(1, 20_001, 2)
    ],
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_ends_its_connection(kind: str) -> None:
    """With ENHANCE_YOUR_CALM, while another client is served."""
    async with echoing() as (port, _, _), connected(port) as other:
        assert (await other.call(QUICK)).status == "0"
        code, _ = await flood(port, *FLOODS[kind])
        assert code in (CALM, None)  # none: the rest of the flood met a closed socket, and that reset the answer
        assert (await other.call(QUICK)).status == "0"


async def test_frames_of_use_excuse_small_ones() -> None:
    """Clients send an update of a window, or a ping, with every other message, however many those are."""
    async with echoing(max_noise=50, noise_per_s=0.0) as (port, _, _), raw(port) as client:
        update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 10)) + frame(PING, 0, 0, bytes(8))
        for number in range(1, 601, 2):
            client.write(begun(number, QUICK), frame(DATA, END_STREAM, number, framed(b"x")), update)
        await client.trailers(599)


async def test_headers_that_would_grow_without_end() -> None:
    """An entry of the table, repeated by one byte each, is not inflated to its end."""
    encoder = Encoder()
    big = bytes(encoder.encode([("x", "y" * 4000)], huffman=False))
    async with echoing() as (port, _, _):
        code, client = await flood(port, frame(HEADERS, END_HEADERS, 1, big + b"\xbe" * 12_000))
        assert code == CALM
        assert not client.of(HEADERS)


async def test_answers_that_nobody_reads_end_the_connection() -> None:
    """TCP's window is shut: after the server's patience the connection goes, with what was to be sent."""
    async with echoing(patience_s=0.1, max_unread_bytes=10**9) as (port, _, server), raw(port) as client:
        client.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1)))
        client.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
        client.writer.transport.pause_reading()
        connection = weakref.ref(next(iter(server._connections)))
        for number in range(1, 201, 2):
            client.write(begun(number, MANY), frame(DATA, END_STREAM, number, framed(b"10000")))
        async with asyncio.timeout(WAIT_S):
            while server._connections:
                await asyncio.sleep(0.01)
        await until(lambda: gc.collect() is not None and connection() is None)


async def test_stream_that_is_not_read_is_reset() -> None:
    """Its window stays shut: the others of its connection go on."""
    async with echoing(patience_s=0.1) as (port, _, _), raw(port) as client:
        client.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 10)))
        client.write(begun(1, QUICK), frame(DATA, END_STREAM, 1, framed(bytes(1000))))
        assert await client.reset(1) == ErrorCode.CANCEL
        client.write(begun(3, QUICK), frame(DATA, END_STREAM, 3, framed(b"x")))
        assert (await client.trailers(3))["grpc-status"] == "0"


async def test_unread_answers_are_bounded() -> None:
    """All windows shut: answers beyond the bound are given up."""
    async with echoing(max_unread_bytes=50_000) as (port, _, server), raw(port) as client:
        client.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        for number in range(1, 13, 2):
            client.write(begun(number, QUICK), frame(DATA, END_STREAM, number, framed(bytes(15_000))))
        assert [await client.reset(number) for number in (7, 9, 11)] == [CALM] * 3
        assert next(iter(server._connections)).outbox.unsent_bytes == 3 * 15_005


@pytest.mark.parametrize("hello", [b"", PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS, 0, 0, b"")[:5]])
async def test_silence_before_the_first_call(hello: bytes) -> None:
    """No preface, half of one, no settings: given up after the server's patience."""
    async with echoing(patience_s=0.05) as (port, _, _), raw(port, hello=False) as client:
        client.write(hello)
        await client.until(lambda: False)
        assert client.closed


@pytest.mark.parametrize("end", [b"", begun(1, UNARY)[:-5], frame(HEADERS, 0, 1, block(UNARY))])
async def test_silence_within_a_frame(end: bytes) -> None:
    """A frame or a header block that does not end ends the connection; none begun is no silence."""
    async with echoing(patience_s=0.05) as (port, _, _), raw(port) as client:
        client.write(end)
        if not end:
            await asyncio.sleep(0.3)
            client.write(begun(1, QUICK), frame(DATA, END_STREAM, 1, framed(b"x")))
            assert (await client.trailers(1))["grpc-status"] == "0"
        else:
            await client.until(lambda: False)


@pytest.mark.parametrize(("path", "data"), [(UNARY, b""), (UNARY, framed(b"abc")[:6]), (STREAM, framed(b"abc")[:6])])
async def test_message_that_does_not_end(path: str, data: bytes) -> None:
    """DEADLINE_EXCEEDED after the server's patience; a stream between two messages may be silent."""
    async with echoing(patience_s=0.05) as (port, _, _), raw(port) as client:
        client.write(begun(1, STREAM), begun(3, path), frame(DATA, 0, 3, data) if data else b"")
        assert (await client.trailers(3))["grpc-status"] == "4"
        client.write(frame(DATA, END_STREAM, 1, framed(b"x")))
        assert (await client.trailers(1))["grpc-status"] == "0"


async def test_long_message_is_refused_by_its_length() -> None:
    """Before its bytes come; the client is told to stop."""
    async with echoing() as (port, _, _), raw(port) as client:
        for number, path in ((1, UNARY), (3, STREAM), (5, QUICK)):
            client.write(begun(number, path), frame(DATA, 0, number, struct.pack(">BI", 0, MAX_MESSAGE + 1)))
            assert (await client.trailers(number))["grpc-status"] == "8"
            assert await client.reset(number) == ErrorCode.NO_ERROR
            client.write(frame(DATA, 0, number, bytes(10_000)))  # was under way
        client.write(begun(7, QUICK), frame(DATA, END_STREAM, 7, framed(b"x")))
        assert (await client.trailers(7))["grpc-status"] == "0"


async def test_message_of_tiny_frames_takes_its_own_size() -> None:
    """Two bytes each: as objects of their own they would take twenty times what is counted of them."""
    message = bytes(range(250)) * 40
    pieces = [framed(message)[at : at + 2] for at in range(0, len(message) + 5, 2)]
    async with echoing() as (port, _, server), raw(port) as client:
        client.write(begun(1, UNARY), *[frame(DATA, 0, 1, piece) for piece in pieces[:-1]])
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(lambda: bool(client.of(PING)))
        (connection,) = server._connections
        assert len(connection._streams[1]._chunks) <= 2
        client.write(frame(DATA, END_STREAM, 1, pieces[-1]))
        assert (await client.trailers(1))["grpc-status"] == "0"
        assert b"".join([each.payload for each in client.of(DATA)]) == framed(message)


async def test_window_grows_only_to_the_messages_length() -> None:
    """By what its prefix says, and no byte more."""
    async with echoing() as (port, _, _), raw(port) as client:
        client.write(begun(1, UNARY), frame(DATA, 0, 1, struct.pack(">BI", 0, 150_000)))
        await client.until(lambda: any(each.stream == 1 for each in client.of(WINDOW_UPDATE)))
        grown = [int.from_bytes(each.payload) for each in client.of(WINDOW_UPDATE) if each.stream == 1]
        assert 65_535 + sum(grown) == 150_005


async def test_long_messages_of_one_connection_wait_for_room() -> None:
    """There is room for two: the third may send when one of them has its answer."""
    async with echoing() as (port, echo, _), raw(port) as client:
        for number in (1, 3, 5):
            client.write(begun(number), frame(DATA, 0, number, struct.pack(">BI", 0, MAX_MESSAGE)))

        def grown() -> set[int]:
            return {each.stream for each in client.of(WINDOW_UPDATE)} - {0}

        await client.until(lambda: len(grown()) == 2)
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(lambda: bool(client.of(PING)))
        assert grown() == {1, 3}
        client.write(frame(RST_STREAM, 0, 3, struct.pack(">I", 8)))
        await client.until(lambda: len(grown()) == 3)
        echo.gate.set()
        for _ in range(12):
            client.write(frame(DATA, 0, 5, bytes(16_384)))
        client.write(frame(DATA, END_STREAM, 5, bytes(MAX_MESSAGE - 12 * 16_384)))
        await client.until(lambda: any(each.stream == 5 for each in client.of(DATA)))


async def test_room_of_calls_that_were_given_up_comes_back() -> None:
    """Also of one that has some, as calls of many messages do, and waits for more."""
    async with echoing(stream_window_bytes=70_000) as (port, _, server), raw(port) as client:
        for number in (1, 3, 5):  # there is room for two
            client.write(begun(number, STREAM), frame(DATA, 0, number, struct.pack(">BI", 0, MAX_MESSAGE)))
        for number in (5, 3, 1):
            client.write(frame(RST_STREAM, 0, number, struct.pack(">I", 8)))
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(lambda: bool(client.of(PING)))
        (connection,) = server._connections
        assert connection.room.take(2 * MAX_MESSAGE)


async def test_many_long_messages_at_once_all_arrive() -> None:
    """Though there is room for two at a time; the room comes back."""
    async with echoing() as (port, _, server), connected(port) as peer:
        numbers = [peer.head(path) for path in (UNARY, QUICK, STREAM) * 4]
        sends: dict[int, bytes] = {number: framed(bytes([number]) * MAX_MESSAGE) for number in numbers}
        while sends:
            for number, data in list(sends.items()):
                room = min(peer.http.local_flow_control_window(number), 16_384, len(data))
                if room:
                    peer.http.send_data(number, data[:room], end_stream=room == len(data))
                    sends[number] = data[room:]
                    if room == len(data):
                        del sends[number]
            peer.flush()
            if sends and all(peer.http.local_flow_control_window(number) == 0 for number in sends):
                await peer.hear()
        for number in numbers:
            assert (await peer.answer(number)).messages == [bytes([number]) * MAX_MESSAGE]
        assert next(iter(server._connections)).room._taken == 0
        assert server.admission.held_bytes == 0


@pytest.mark.parametrize("path", [UNARY, STREAM])
async def test_more_than_the_streams_window(path: str) -> None:
    """FLOW_CONTROL_ERROR on the stream."""
    async with echoing(stream_window_bytes=65_535) as (port, _, _), raw(port) as client:
        client.write(begun(1, path), frame(DATA, 0, 1, b"\0\0\0\xf0\0" + bytes(16_379)))
        client.write(*[frame(DATA, 0, 1, bytes(16_384))] * 4)
        assert await client.reset(1) == ErrorCode.FLOW_CONTROL_ERROR


async def test_connections_window_is_given_back() -> None:
    """As bytes come, also those that nobody takes yet: one call does not keep the others from sending."""
    async with echoing(connection_window_bytes=70_000) as (port, _, _), raw(port) as client:
        for number in range(1, 30, 2):
            client.write(begun(number, COUNT), *[frame(DATA, 0, number, framed(bytes(16_379)))] * 3)
        client.write(begun(31, QUICK), frame(DATA, END_STREAM, 31, framed(b"x")))
        assert (await client.trailers(31))["grpc-status"] == "0"


async def test_silent_connections_are_asked_whether_they_live() -> None:
    """One that answers stays, one that does not goes."""
    async with echoing(keepalive_s=0.05, keepalive_timeout_s=0.1) as (port, _, server), raw(port) as client:
        async with raw(port) as dead:
            await dead.until(lambda: bool(dead.of(PING)))
            for _ in range(3):
                seen = len(client.of(PING))
                await client.until(lambda seen=seen: len(client.of(PING)) > seen)  # type: ignore[misc]
                client.write(frame(PING, 1, 0, client.of(PING)[-1].payload))
            await dead.until(lambda: False)
        assert len(server._connections) == 1
        assert not client.closed


async def test_connections_and_bodies_have_one_bound() -> None:
    """One connection too many is told so; one body too many is RESOURCE_EXHAUSTED with the time to wait."""
    admission = Admission(max_connections=1, max_bodies_bytes=100_000)
    async with echoing(admission) as (port, echo, _), raw(port) as client:
        async with raw(port) as other:
            assert await other.code() == CALM
        assert (admission.connections, admission.refused_connections) == (1, 1)
        client.write(begun(1), *[frame(DATA, 0, 1, framed(bytes(16_379)))[:16_393]])
        client.write(frame(DATA, END_STREAM, 1, b""))
        await asyncio.wait_for(echo.entered.wait(), WAIT_S)
        assert admission.held_bytes == 16_384
        for number in range(3, 15, 2):
            client.write(begun(number), frame(DATA, END_STREAM, number, framed(bytes(16_379))))
        assert (await client.trailers(13))["grpc-status"] == "10"  # as `explain` says
        echo.gate.set()
        client.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 10**6)))
        assert (await client.trailers(11))["grpc-status"] == "0"
        await client.until(lambda: admission.held_bytes == 0)


async def test_gone_connection_leaves_nothing() -> None:
    """With calls of every kind half sent, being answered and waiting for a window."""
    async with echoing() as (port, echo, server):
        async with raw(port) as client:
            client.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
            client.write(begun(1), frame(DATA, END_STREAM, 1, framed(b"x")))
            client.write(begun(3, STREAM), frame(DATA, 0, 3, framed(bytes(1000))))
            client.write(begun(5, UNARY), frame(DATA, 0, 5, struct.pack(">BI", 0, MAX_MESSAGE)))
            client.write(begun(7, MANY), frame(DATA, END_STREAM, 7, framed(b"100")))
            client.write(frame(PING, 0, 0, bytes(8)))
            await asyncio.wait_for(echo.entered.wait(), WAIT_S)
            await client.until(lambda: bool(client.of(PING)))
            connection = weakref.ref(next(iter(server._connections)))
        async with asyncio.timeout(WAIT_S):
            while server._connections or not echo.cancelled:
                await asyncio.sleep(0.001)
        assert (server.admission.held_bytes, server.admission.connections) == (0, 0)
        await until(lambda: gc.collect() is not None and connection() is None)


async def until(done: Callable[[], bool]) -> None:
    """Look until `done`."""
    async with asyncio.timeout(WAIT_S):
        while not done():
            await asyncio.sleep(0.001)


async def test_answers_of_a_turn_leave_in_one_write() -> None:
    """Of all calls of a connection."""
    async with echoing() as (port, _, server), raw(port) as client:
        client.write(frame(PING, 0, 0, bytes(8)))
        await client.until(lambda: bool(client.of(PING)))
        written: list[int] = []
        outbox = next(iter(server._connections)).outbox
        real = outbox._transport

        class Counting:
            def write(self, data: bytes) -> None:
                written.append(len(data))
                real.write(data)

            def is_closing(self) -> bool:
                return real.is_closing()

        outbox._transport = Counting()  # type: ignore[assignment]
        calls = [begun(n, QUICK) + frame(DATA, END_STREAM, n, framed(b"x")) for n in range(1, 101, 2)]
        client.write(*calls)
        await client.until(lambda: len(client.of(DATA)) == 50)
        assert len(written) == 1
        assert GOAWAY not in {each.kind for each in client.frames}
