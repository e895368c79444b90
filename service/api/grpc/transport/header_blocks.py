"""Header blocks (HPACK, RFC 7541): those of requests read once and remembered, those of answers made beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from grpc import StatusCode
from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from service.api.grpc.transport.frames import ConnectionFault, ErrorCode
from service.api.grpc.transport.metadata import OK, RequestHead, Status, percent_encoded

Headers = Sequence[tuple[bytes, bytes]]

MAX_LIST_BYTES: Final = 2**14
"""Of one request's headers, counted as HPACK does; longer ones are refused, as the settings say."""
MOST_LIST_BYTES: Final = 2**16
"""Longer ones are not read to their end, which ends the connection: its table is lost."""
MAX_BLOCK_BYTES: Final = 2**15
"""Of a block as it comes, in how many frames ever."""
_KEPT_BLOCKS: Final = 64
_KEPT_BLOCK_BYTES: Final = 512
_ENTRY_BYTES: Final = 32
_TABLE_SIZE_UPDATE: Final = 0x20


@final
class _CountedTable(HeaderTable):
    """hpack's dynamic table, which says how often something was added."""

    additions = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Add an entry."""
        self.additions += 1
        super().add(name, value)


@final
class HeaderBlocks:
    """Reads the blocks of one connection.

    A block that adds nothing to the table means the same until another one does, so its request is kept: most calls
    of a client come with the very bytes of the one before.
    """

    __slots__ = ("_decoder", "_kept", "_table")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MOST_LIST_BYTES)
        self._table = self._decoder.header_table = _CountedTable()
        self._kept: dict[bytes, RequestHead] = {}

    def request(self, block: bytes) -> RequestHead:
        """The headers of a request; raises `ConnectionFault`."""
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        additions = self._table.additions
        fields = self.fields(block)
        head = RequestHead(fields)
        if list_bytes(fields) > MAX_LIST_BYTES:
            head.status = Status(StatusCode.RESOURCE_EXHAUSTED, f"headers: expected at most {MAX_LIST_BYTES} bytes")
        elif self._table.additions == additions and len(block) <= _KEPT_BLOCK_BYTES and not _resizes(block):
            if len(self._kept) >= _KEPT_BLOCKS:
                self._kept.clear()
            self._kept[block] = head
        return head

    def fields(self, block: bytes) -> Headers:
        """Names and values; raises `ConnectionFault`. What was kept is forgotten where the table has changed."""
        additions = self._table.additions
        try:
            fields = [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            text = f"headers: expected at most {MAX_LIST_BYTES} bytes, got far more"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text) from None
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"headers: {error}"[:200]) from None
        if self._table.additions != additions or _resizes(block):
            self._kept.clear()
        return fields


@final
class PartialBlock:
    """A block that comes in several frames; `stream_id` is the stream it is for, 0 when none is begun."""

    __slots__ = ("_pieces", "_size", "flags", "stream_id")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = self.flags = self.stream_id = 0

    def begin(self, stream_id: int, flags: int, payload: bytes) -> None:
        """The first frame's part, and its flags."""
        self.stream_id, self.flags = stream_id, flags
        self._pieces, self._size = [payload], len(payload)

    def go_on(self, payload: bytes) -> None:
        """A further part; raises `ConnectionFault`."""
        self._pieces.append(payload)
        self._size += len(payload)
        if self._size > MAX_BLOCK_BYTES:
            text = f"headers: expected at most {MAX_BLOCK_BYTES} bytes, got more"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)

    def end(self) -> bytes:
        """The whole block."""
        pieces, self._pieces, self.stream_id = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _resizes(block: bytes) -> bool:
    """Whether a block begins with a new size of the table."""
    return block[:1] != b"" and block[0] & 0xE0 == _TABLE_SIZE_UPDATE


def list_bytes(headers: Headers) -> int:
    """What headers count for (RFC 9113, section 6.5.2)."""
    return sum([len(name) + len(value) + _ENTRY_BYTES for name, value in headers])


def block_of(headers: Headers) -> bytes:
    """Headers as literals that neither use nor change a table."""
    return b"".join([b"\0" + _text(name) + _text(value) for name, value in headers])


def _text(value: bytes) -> bytes:
    return _integer(len(value), 7) + value


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541, section 5.1, with nothing in the bits before."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    value -= limit
    out = [limit]
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


_OK_200: Final = b"\x88"
_GRPC_TYPE: Final = block_of([(b"content-type", b"application/grpc")])
ANSWER_BLOCK: Final = _OK_200 + _GRPC_TYPE
"""The headers before an answer's first message."""
OK_BLOCK: Final = block_of([(b"grpc-status", b"0")])
"""The trailers behind its last."""


def answer_block(encoding: str) -> bytes:
    """The headers before an answer whose messages may be compressed."""
    return ANSWER_BLOCK + block_of([(b"grpc-encoding", encoding.encode())])


def trailer_block(status: Status) -> bytes:
    """The headers that end an answer."""
    if status is OK:
        return OK_BLOCK
    headers = [(b"grpc-status", str(status.code.value[0]).encode())]
    if status.message:
        headers.append((b"grpc-message", percent_encoded(status.message)))
    headers += [(name.encode("ascii"), value.encode("ascii", "replace")) for name, value in status.trailing]
    return block_of(headers)


def only_block(status: Status) -> bytes:
    """The headers of an answer that has no message."""
    return ANSWER_BLOCK + trailer_block(status)


def http_block(http_status: int) -> bytes:
    """The headers of an answer to what is no gRPC."""
    return block_of([(b":status", str(http_status).encode())])
