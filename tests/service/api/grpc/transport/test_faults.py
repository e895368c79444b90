"""What RFC 9113 forbids, and the code it wants for each: by section, as h2spec has them."""

from __future__ import annotations

import asyncio
import struct

import pytest

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
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.service.api.grpc.transport.peers import COUNT, PREFACE, QUICK, block, echoing, framed, raw
from tests.service.core.served import WAIT_S
from tests.service.waiting import wait_until

PROTOCOL, SIZE, FLOW = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR
OPEN = frame(HEADERS, END_HEADERS, 1, block(COUNT))
DONE = frame(HEADERS, END_HEADERS, 1, block(QUICK)) + frame(DATA, END_STREAM, 1, framed(b"x"))
RESET = OPEN + frame(RST_STREAM, 0, 1, struct.pack(">I", 8))


def update(number: int, increment: int) -> bytes:
    """A WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, number, struct.pack(">I", increment))


def setting(key: int, value: int) -> bytes:
    """A SETTINGS of one value."""
    return frame(SETTINGS, 0, 0, struct.pack(">HI", key, value))


CONNECTION = {
    "4.2 too large a frame": (OPEN + frame(DATA, 0, 1, b"", length=16_385), SIZE),
    "4.3 a block that cannot be decoded": (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), 9),
    "4.3 an index that is not there": (frame(HEADERS, END_HEADERS, 1, b"\xfe"), 9),
    "4.3 a table larger than allowed": (frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + block(COUNT)), 9),
    "4.3 another frame within a block": (frame(HEADERS, 0, 1, block(COUNT)) + frame(PING, 0, 0, bytes(8)), PROTOCOL),
    "4.3 DATA within a block": (frame(HEADERS, 0, 1, block(COUNT)) + frame(DATA, 0, 1, b"x"), PROTOCOL),
    "5.1 DATA on an idle stream": (frame(DATA, 0, 1, b"x"), PROTOCOL),
    "5.1 RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 1, bytes(4)), PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (update(1, 1), PROTOCOL),
    "5.1.1 an even stream": (frame(HEADERS, END_HEADERS, 2, block(COUNT)), PROTOCOL),
    "5.1.1 a stream of a lower number": (frame(HEADERS, END_HEADERS, 5, block(COUNT)) + OPEN, ErrorCode.STREAM_CLOSED),
    "6.1 DATA on stream 0": (frame(DATA, 0, 0, b"x"), PROTOCOL),
    "6.1 padding as long as the frame": (OPEN + frame(DATA, 8, 1, b"\x05abcd"), PROTOCOL),
    "6.2 HEADERS on stream 0": (frame(HEADERS, END_HEADERS, 0, block(COUNT)), PROTOCOL),
    "6.2 padding as long as the block": (frame(HEADERS, END_HEADERS | 8, 1, b"\xff\x83"), PROTOCOL),
    "6.2 priority cut short": (frame(HEADERS, END_HEADERS | 0x20, 1, b"abcd"), SIZE),
    "6.3 PRIORITY on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "6.4 RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), PROTOCOL),
    "6.4 RST_STREAM of a wrong size": (OPEN + frame(RST_STREAM, 0, 1, bytes(3)), SIZE),
    "6.5 SETTINGS on a stream": (frame(SETTINGS, 0, 1, b""), PROTOCOL),
    "6.5 acknowledgement with a value": (frame(SETTINGS, 1, 0, bytes(6)), SIZE),
    "6.5 SETTINGS of a wrong size": (frame(SETTINGS, 0, 0, bytes(5)), SIZE),
    "6.5.2 ENABLE_PUSH of 2": (setting(2, 2), PROTOCOL),
    "6.5.2 too large a window": (setting(4, 2**31), FLOW),
    "6.5.2 too small a frame": (setting(5, 16_383), PROTOCOL),
    "6.5.2 too large a frame": (setting(5, 2**24), PROTOCOL),
    "6.6 PUSH_PROMISE of a client": (OPEN + frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL),
    "6.7 PING on a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL),
    "6.7 PING of a wrong size": (frame(PING, 0, 0, bytes(7)), SIZE),
    "6.8 GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "6.8 GOAWAY cut short": (frame(GOAWAY, 0, 0, bytes(7)), SIZE),
    "6.9 an update of 0": (update(0, 0), PROTOCOL),
    "6.9 an update of a wrong size": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    "6.9.1 more than the largest window": (update(0, 2**31 - 1), FLOW),
    "6.9.2 settings beyond the largest window": (OPEN + update(1, 2**31 - 1 - 65_535) + setting(4, 70_000), FLOW),
    "6.10 CONTINUATION without HEADERS": (OPEN + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
    "6.10 CONTINUATION of another stream": (
        frame(HEADERS, 0, 1, block(COUNT)) + frame(CONTINUATION, END_HEADERS, 3, b""),
        PROTOCOL,
    ),
}

STREAM = {
    "5.1 DATA behind the end": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block(COUNT)) + frame(DATA, 0, 1, b"x"),
        ErrorCode.STREAM_CLOSED,
    ),
    "5.1 HEADERS behind the end": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block(COUNT)) + frame(HEADERS, END_HEADERS, 1, b""),
        ErrorCode.STREAM_CLOSED,
    ),
    "5.1 DATA on a closed stream": (DONE + frame(DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "5.3.1 a stream that depends on itself": (
        frame(HEADERS, END_HEADERS | 0x20, 1, struct.pack(">IB", 1, 0) + block(COUNT)),
        PROTOCOL,
    ),
    "6.3 PRIORITY of a wrong size": (OPEN + frame(PRIORITY, 0, 1, bytes(4)), SIZE),
    "6.9 an update of 0": (OPEN + update(1, 0), PROTOCOL),
    "6.9.1 more than the largest window": (OPEN + update(1, 2**31 - 1), FLOW),
    "8.1 a second HEADERS that does not end it": (OPEN + frame(HEADERS, END_HEADERS, 1, b""), PROTOCOL),
    "8.1 pseudo-headers in trailers": (OPEN + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83"), PROTOCOL),
    "8.1.1 more than content-length": (
        frame(HEADERS, END_HEADERS, 1, block(COUNT, ("content-length", "3"))) + frame(DATA, 0, 1, b"abcd"),
        PROTOCOL,
    ),
    "8.1.1 less than content-length": (
        frame(HEADERS, END_HEADERS, 1, block(COUNT, ("content-length", "3"))) + frame(DATA, END_STREAM, 1, b"ab"),
        PROTOCOL,
    ),
    **{
        f"8.2, 8.3 {what}": (frame(HEADERS, END_HEADERS, 1, fields), PROTOCOL)
        for what, fields in {
            "upper case": block(COUNT, ("X-a", "b")),
            "a line break": block(COUNT, ("x-a", "b\r\nc: d")),
            "a field of the connection": block(COUNT, ("connection", "keep-alive")),
            "te of another kind": block(COUNT, ("te", "gzip")),
            "a pseudo-header after others": block(COUNT, (":path", "/x")),
            "an unknown pseudo-header": b"\0\x02:x\x01y" + block(COUNT),
            "a response's pseudo-header": b"\x88" + block(COUNT),
            "no path": b"\x83\x86",
            "an empty path": block(""),
            "two methods": b"\x83" + block(COUNT),
            "two content-lengths": block(COUNT, ("content-length", "3"), ("content-length", "3")),
            "a content-length that is none": block(COUNT, ("content-length", "-1")),
        }.items()
    },
}


@pytest.mark.parametrize("what", CONNECTION)
async def test_fault_ends_the_connection(what: str) -> None:
    """With GOAWAY of the right code."""
    wrong, code = CONNECTION[what]
    async with echoing() as (port, _, _), raw(port) as client:
        client.write(wrong)
        assert await asyncio.wait_for(client.code(), WAIT_S) == code


@pytest.mark.parametrize("what", STREAM)
async def test_fault_ends_the_stream(what: str) -> None:
    """With RST_STREAM of the right code; the next call is served."""
    wrong, code = STREAM[what]
    async with echoing() as (port, _, _), raw(port) as client:
        client.write(wrong)
        assert await asyncio.wait_for(client.reset(1), WAIT_S) == code
        client.write(frame(HEADERS, END_HEADERS, 3, block(QUICK)), frame(DATA, END_STREAM, 3, framed(b"x")))
        assert (await client.trailers(3))["grpc-status"] == "0"


ALLOWED = {
    "4.1 an unknown frame": frame(99, 0xFF, 7, b"whatever"),
    "5.1 PRIORITY on an idle stream": frame(PRIORITY, 0, 101, bytes(5)),
    "5.1 late frames of a call that was answered": DONE + update(1, 5) + frame(RST_STREAM, 0, 1, bytes(4)),
    "5.1 late frames of a call that was reset": RESET + update(1, 5) + frame(RST_STREAM, 0, 1, bytes(4)),
    "6.1 padded DATA": frame(HEADERS, END_HEADERS, 1, block(QUICK))
    + frame(DATA, 9, 1, b"\x03" + framed(b"x") + bytes(3)),
    "6.2 padded HEADERS with priority": frame(
        HEADERS, END_HEADERS | 0x28, 1, b"\x02" + bytes(5) + block(COUNT) + bytes(2)
    ),
    "6.5.2 an unknown setting": setting(99, 99),
    "6.5.3 a setting twice, of which the last holds": frame(SETTINGS, 0, 0, struct.pack(">HIHI", 4, 0, 4, 70_000)),
    "6.7 an answer to no PING": frame(PING, 1, 0, bytes(8)),
    "6.10 a block in pieces": b"".join(
        (frame(HEADERS, 0, 1, block(COUNT)[:9]), frame(CONTINUATION, 0, 1, block(COUNT)[9:30]))
    )
    + frame(CONTINUATION, END_HEADERS, 1, block(COUNT)[30:]),
    "8.1 trailers": OPEN + frame(DATA, 0, 1, framed(b"x")) + frame(HEADERS, 5, 1, b"\0\x01a\x01b"),
}


@pytest.mark.parametrize("what", ALLOWED)
async def test_odd_but_allowed(what: str) -> None:
    """The connection goes on."""
    async with echoing() as (port, _, _), raw(port) as client:
        client.write(ALLOWED[what])
        client.write(frame(HEADERS, END_HEADERS, 3, block(QUICK)), frame(DATA, END_STREAM, 3, framed(b"x")))
        assert (await client.trailers(3))["grpc-status"] == "0"
        assert not client.of(GOAWAY)


@pytest.mark.parametrize("at", [1, 8, 9, 16, 23])
async def test_preface_in_two_pieces(at: int) -> None:
    """Is one; what has come of it is not taken for a frame."""
    async with echoing() as (port, _, server), raw(port, hello=False) as client:
        await client.until(lambda: bool(client.of(SETTINGS)))
        client.write(PREFACE[:at])
        await wait_until(lambda: all(each._rest or each.outbox.ended for each in server._connections))
        client.write(PREFACE[at:], frame(SETTINGS, 0, 0, b""))
        client.write(frame(HEADERS, END_HEADERS, 1, block(QUICK)), frame(DATA, END_STREAM, 1, framed(b"x")))
        assert (await client.trailers(1))["grpc-status"] == "0"


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        PREFACE[:-1] + b"x",
        PREFACE + frame(PING, 0, 0, bytes(8)),
    ],
)
async def test_something_else_than_http2(start: bytes) -> None:
    """GOAWAY and the end, at once."""
    async with echoing() as (port, _, _), raw(port, hello=False) as client:
        client.write(start)
        assert await asyncio.wait_for(client.code(), WAIT_S) == PROTOCOL
