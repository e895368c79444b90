"""The least of an HTTP/2 client that a load maker needs: requests made beforehand, flow control, statuses.

What a server may do is read and obeyed: SETTINGS, PING, windows. Answers come as pieces per stream; headers only as
the block's bytes, for which the server is asked to keep no table, so equal blocks mean equal headers.
Frames and header blocks: RFC 9113, RFC 7541; gRPC's own: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hpack import Decoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK, PADDED = 0x1, 0x4, 0x1, 0x8
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
LARGEST_WINDOW, FIRST_WINDOW, LARGEST_FRAME = 2**31 - 1, 65_535, 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(authority: str, path: str) -> bytes:
    """A gRPC call's headers, as literals that no table takes."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    encoded = [bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields]
    return b"".join(encoded)


class Answers(Protocol):
    """Whom a connection tells what came."""

    def data(self, stream: int, payload: bytes) -> None:
        """A piece of an answer's body."""

    def headers(self, stream: int, block: bytes, ended: bool) -> None:
        """Headers, or trailers when `ended`."""

    def lost(self, stream: int) -> None:
        """A stream was reset; every one, when the connection ended: 0."""


class Connection(asyncio.Protocol):
    """One connection; `ready` is set when the server has agreed to keep no header table."""

    def __init__(self, answers: Answers) -> None:
        self.ready = asyncio.Event()
        self.streams = 0
        self.most = LARGEST_WINDOW
        """How many streams the server allows at once."""
        self.goodbye = b""
        """The error code and the words with which the server sent us away."""
        self._answers = answers
        self._buffer = b""
        self._window = FIRST_WINDOW
        self._initial = FIRST_WINDOW
        self._windows: dict[int, int] = {}
        self._waiting: deque[tuple[int, bytes, int]] = deque()
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Say hello, and that answers may be as long as they like."""
        self._transport = transport
        settings = struct.pack(">HIHIHI", HEADER_TABLE_SIZE, 0, ENABLE_PUSH, 0, INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        opened = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW))
        transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + opened)

    def connection_lost(self, error: Exception | None) -> None:
        """Whatever was open has no answer."""
        self._answers.lost(0)

    def open(self, block: bytes) -> int:
        """Begin a call; its number."""
        stream = 2 * self.streams + 1
        self.streams += 1
        self._windows[stream] = self._initial
        self._out.append(frame(HEADERS, END_HEADERS, stream, block))
        return stream

    def send(self, stream: int, message: bytes, flags: int = 0) -> None:
        """A message of at most one frame: now, or when the windows allow it."""
        self._waiting.append((stream, message, flags))

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def flush(self) -> None:
        """Write what may be written, at once."""
        for _ in range(len(self._waiting)):
            stream, message, flags = self._waiting.popleft()
            size = len(message)
            if stream not in self._windows:
                continue
            if size > self._window or size > self._windows[stream]:
                self._waiting.append((stream, message, flags))
                continue
            self._window -= size
            self._windows[stream] -= size
            self._out.append(frame(DATA, flags, stream, message))
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def data_received(self, data: bytes) -> None:
        """Take whole frames, keep the rest."""
        buffer = self._buffer + data if self._buffer else data
        start, end = 0, len(buffer)
        while end - start >= 9:
            length = int.from_bytes(buffer[start : start + 3])
            if end - start < 9 + length:
                break
            stream = int.from_bytes(buffer[start + 5 : start + 9]) & LARGEST_WINDOW
            payload = buffer[start + 9 : start + 9 + length]
            self._take(buffer[start + 3], buffer[start + 4], stream, payload)
            start += 9 + length
        self._buffer = buffer[start:]
        self.flush()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._answers.data(stream, payload[1 : len(payload) - payload[0]] if flags & PADDED else payload)
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._windows.pop(stream, None)
            self._answers.headers(stream, payload, bool(flags & END_STREAM))
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
        elif kind == SETTINGS:
            self._settings(flags, payload)
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._windows.pop(stream, None)
            self._answers.lost(stream)
        elif kind == GOAWAY:
            self.goodbye = payload[4:]
            self._transport.close()

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.ready.set()
            return
        for name, value in struct.iter_unpack(">HI", payload):
            if name == MAX_CONCURRENT_STREAMS:
                self.most = value
            elif name == INITIAL_WINDOW_SIZE:
                self._windows = {stream: left + value - self._initial for stream, left in self._windows.items()}
                self._initial = value
        self._out.append(frame(SETTINGS, ACK, 0, b""))


def trailer(name: str) -> Callable[[bytes], str | None]:
    """Reads one header of a block; equal blocks are read once."""
    known: dict[bytes, str | None] = {}

    def read(block: bytes) -> str | None:
        if block not in known:
            known[block] = dict(Decoder().decode(block)).get(name)
        return known[block]

    return read
