"""Frames of HTTP/2 as bytes (RFC 9113, sections 4 and 6), and what is wrong with some of them."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
LEAST_FRAME_BYTES: Final = 2**14
"""Largest payload that every peer takes, and that this server takes: a setting could only raise it."""
MOST_FRAME_BYTES: Final = 2**24 - 1
FIRST_WINDOW_BYTES: Final = 2**16 - 1
"""Every window before a setting or an update."""
MOST_WINDOW_BYTES: Final = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    1, 2, 3, 4, 5, 6,
)  # fmt: skip

HEAD = struct.Struct(">BHBBI")
"""Length in two parts, type, flags, stream."""
_NUMBER = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_GOAWAY = struct.Struct(">II")


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer broke the protocol so that the connection ends with `code`."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class StreamFault(Exception):
    """The peer broke the protocol so that one stream ends with `code`."""

    def __init__(self, stream_id: int, code: ErrorCode, text: str) -> None:
        self.stream_id = stream_id
        self.code = code
        super().__init__(text)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """What this side wants."""
    return frame(SETTINGS, 0, 0, b"".join([_SETTING.pack(*each) for each in values.items()]))


def window_update(stream_id: int, increment: int) -> bytes:
    """`increment` more bytes may come, on stream 0: on all together."""
    return frame(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A stream ends here."""
    return frame(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def goaway(last_id: int, code: ErrorCode, text: str = "") -> bytes:
    """Streams above `last_id` will not be looked at; `text` is for whoever debugs."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_id, code) + text.encode("ascii", "replace"))


def number(payload: bytes, what: str) -> int:
    """The 31 bits that are all of a RST_STREAM or WINDOW_UPDATE; raises `ConnectionFault`."""
    if len(payload) != _NUMBER.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{what}: expected 4 bytes, got {len(payload)}")
    value: int = _NUMBER.unpack(payload)[0]
    return value & MOST_WINDOW_BYTES


def unpadded(payload: bytes, flags: int) -> bytes:
    """What the padding surrounds; raises `ConnectionFault`."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding: expected less of it than the frame is long")
    return payload[1 : len(payload) - payload[0]]


def without_priority(payload: bytes, flags: int, stream_id: int) -> bytes:
    """A header block without the priority before it, which nobody uses any more; raises faults."""
    if not flags & WITH_PRIORITY:
        return payload
    if len(payload) < 5:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS: expected 5 bytes of priority")
    if _NUMBER.unpack_from(payload)[0] & MOST_WINDOW_BYTES == stream_id:
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "HEADERS: a stream depends on itself")
    return payload[5:]


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """What the peer wants, each value checked; raises `ConnectionFault`."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS: expected sixes of bytes, got {len(payload)}")
    for key, value in _SETTING.iter_unpack(payload):
        if key == INITIAL_WINDOW_SIZE and value > MOST_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS: a window of {value} bytes is too large")
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS: expected ENABLE_PUSH of 0 or 1, got {value}")
        if key == MAX_FRAME_SIZE and not LEAST_FRAME_BYTES <= value <= MOST_FRAME_BYTES:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS: expected frames of 2**14 or more, got {value}")
        yield key, value
