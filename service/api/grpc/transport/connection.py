"""One connection: HTTP/2's frames in, calls on their streams, frames out; what a hostile peer may do is bounded."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, final

from service.api.grpc.transport import frames
from service.api.grpc.transport.compression import Inflation
from service.api.grpc.transport.frames import ConnectionFault, ErrorCode, StreamFault
from service.api.grpc.transport.header_blocks import MAX_LIST_BYTES, HeaderBlocks, Headers, PartialBlock, http_block
from service.api.grpc.transport.limits import Manners, Room
from service.api.grpc.transport.metadata import RequestHead, Status, malformed_trailers
from service.api.grpc.transport.outbox import Outbox
from service.api.grpc.transport.stream import Stream

if TYPE_CHECKING:
    from service.api.grpc.transport.server import GrpcServer

_HIGH_WATER_BYTES: Final = 2**19
_REMEMBERED: Final = 1024
"""Streams that ended here before their client was done: what was under way to them is no fault."""
_MOST_FRAME_OUT_BYTES: Final = 2**20

_log = logging.getLogger(__name__)


@final
class Connection(asyncio.Protocol):
    """A client's connection to `server`.

    `outbox` is what goes out, `room` what may come beyond the usual windows.
    """

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self.loop = server.loop
        self.limits = server.limits
        self.admission = server.admission
        self.room = Room(self.limits.max_room_bytes)
        self.outbox: Outbox
        self._transport: asyncio.Transport
        self._counted = False
        self._rest = b""
        self._begun = self._settled = False
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._last_taken = frames.MOST_WINDOW_BYTES
        self._forgotten: OrderedDict[int, None] = OrderedDict()
        self._lingering = 0
        self._headers = HeaderBlocks()
        self._block = PartialBlock()
        self._window = frames.FIRST_WINDOW_BYTES
        self._first_send_window = frames.FIRST_WINDOW_BYTES
        self._manners = Manners(self.limits, self.loop.time)
        self._silent_looks = self._half_looks = self._unread_looks = self._unread = 0
        self._draining = False

    # asyncio's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        self._transport = transport
        self.outbox = Outbox(self.loop, transport, self.limits.max_unread_bytes)
        self._server.opened(self, transport)
        transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        limits = self.limits
        wanted = {
            frames.MAX_CONCURRENT_STREAMS: limits.max_streams,
            frames.INITIAL_WINDOW_SIZE: limits.window_bytes,
            frames.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        self.outbox.write(frames.settings(wanted))
        self._counted = self.admission.connection_opened()
        if self._counted:
            self._widen()
        else:
            self._end(ErrorCode.ENHANCE_YOUR_CALM, str(self.admission.connection_refused()))

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel all calls."""
        self.outbox.ended = True
        for stream in list(self._streams.values()):
            stream.lost()
        if self._counted:
            self.admission.connection_closed()
        self._server.lost(self)

    def pause_writing(self) -> None:
        """The client reads too slowly: nothing more is read from it, so that nothing more is to be written."""
        self.outbox.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It caught up."""
        self._transport.resume_reading()
        self.outbox.resume()

    def data_received(self, data: bytes) -> None:
        """Read all frames that are whole."""
        self._silent_looks = 0
        if self.outbox.ended:
            return
        try:
            self._read(data)
        except ConnectionFault as fault:
            self._end(fault.code, str(fault))
        except Exception:
            _log.exception("gRPC: unplanned failure while reading a connection")
            self._end(ErrorCode.INTERNAL_ERROR, "internal error")

    # What the server calls

    def drain(self) -> None:
        """Ask the client to begin nothing more; what it began until it heard so is answered still."""
        if not self._draining and not self.outbox.ended:
            self._draining = True
            self.outbox.write(frames.goaway(frames.MOST_WINDOW_BYTES, ErrorCode.NO_ERROR, "the server stops"))
            self.outbox.write(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
            self._close_if_idle()

    def stop(self, status: Status) -> None:
        """End all calls with `status`, and the connection."""
        for stream in list(self._streams.values()):
            stream.refuse(status)
        self._end(ErrorCode.NO_ERROR, status.message)

    def abort(self) -> None:
        """End it at once; what is unsent is lost."""
        self._transport.abort()

    @property
    def calls(self) -> int:
        """Calls that go on."""
        return len(self._streams) + self._lingering

    def look(self, patience_looks: int, keepalive_looks: int, timeout_looks: int) -> None:
        """Called now and then: give up a client that has been silent for so many looks in a row.

        Looks are counted, not seconds: when the server itself stood still, what clients sent meanwhile is yet unread.
        """
        unread = self._transport.get_write_buffer_size()
        self._unread_looks = self._unread_looks + 1 if 0 < self._unread <= unread else 0
        self._unread = unread
        half = not self._settled or bool(self._rest) or bool(self._block.stream_id) or self.outbox.ended
        self._half_looks = self._half_looks + 1 if half else 0
        if self._unread_looks > patience_looks or self._half_looks > patience_looks:
            self.abort()
            return
        for stream in list(self._streams.values()):
            stream.look(patience_looks)
        self._silent_looks += 1
        if self._silent_looks > keepalive_looks + timeout_looks and not self.outbox.paused:
            self.abort()
        elif self._silent_looks == keepalive_looks:
            self.outbox.write(frames.frame(frames.PING, 0, 0, _KEEPALIVE_PING))

    # What streams call

    def closed(self, stream: Stream, room: int) -> None:
        """A stream is over and gives its room back."""
        self._streams.pop(stream.id, None)
        self.outbox.forget(stream)
        if room:
            self.room.give(room)
        if self._draining:
            self._close_if_idle()

    def forget(self, number: int) -> None:
        """A stream ended here before its client was done with it."""
        self._forgotten[number] = None
        if len(self._forgotten) > _REMEMBERED:
            self._forgotten.popitem(last=False)

    def linger(self, count: int) -> None:
        """`count` more calls (or less) are being ended, though their streams are gone."""
        self._lingering += count
        if self._draining:
            self._close_if_idle()

    def body_refused(self) -> Status:
        """What a call is told for whose messages there is no memory."""
        return self._server.explain(self.admission.body_refused())

    def inflate(self, stream: Stream, inflation: Inflation) -> None:
        """Inflate in a thread."""
        self._server.inflate(stream, inflation)

    # Sending

    def _widen(self) -> None:
        """Let the connection's window be as large as the limits say again."""
        missing = self.limits.connection_window_bytes - self._window
        self._window += missing
        self.outbox.write(frames.window_update(0, missing))

    def _end(self, code: ErrorCode, text: str) -> None:
        """Say why, and close; what is unsent by then goes out before."""
        if self.outbox.ended:
            return
        self.outbox.write(frames.goaway(self._last, code, text))
        self.outbox.end()
        self._transport.close()
        for stream in list(self._streams.values()):
            stream.lost()

    def _close_if_idle(self) -> None:
        if self._last_taken < frames.MOST_WINDOW_BYTES and not self.calls and not self.outbox.ended:
            self.outbox.end()
            self._transport.close()

    # Reading

    def _read(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, end = 0, len(data)
        if not self._begun:
            at = self._preface(data)
            if not at:
                self._rest = data
                return
        unpack, head_bytes = frames.HEAD.unpack_from, frames.HEAD_BYTES
        while end - at >= head_bytes:
            high, low, kind, flags, number = unpack(data, at)
            size = high << 16 | low
            if size > frames.LEAST_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame: expected at most 2**14 bytes, got {size}")
            start = at + head_bytes
            stop = start + size
            if stop > end:
                break
            try:
                if kind == frames.DATA and not flags & frames.PADDED and not self._block.stream_id:
                    self._data(number & frames.MOST_WINDOW_BYTES, data, start, stop, size, flags)
                else:
                    self._frame(kind, flags, number & frames.MOST_WINDOW_BYTES, data[start:stop])
            except StreamFault as fault:
                self._reset(fault)
            if self.outbox.ended:
                return
            at = stop
        if at:
            self._half_looks = 0
        if at < end:
            self._rest = data[at:]

    def _preface(self, data: bytes) -> int:
        preface = frames.PREFACE
        if not preface.startswith(data[: len(preface)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "expected the preface of HTTP/2")
        if len(data) < len(preface):
            return 0
        self._begun = True
        return len(preface)

    def _data(self, number: int, data: bytes, start: int, stop: int, size: int, flags: int) -> None:
        """`data[start:stop]` of a frame of `size` bytes, padding included."""
        self._window -= size
        if self._window < self.limits.connection_window_bytes >> 1:
            if self._window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA: expected no more than the window")
            self._widen()
        stream = self._streams.get(number)
        if stream is None:
            self._stray(number, "DATA")
            return
        if stream.half_closed:
            raise StreamFault(number, ErrorCode.STREAM_CLOSED, "DATA: expected none behind the end of the stream")
        stream.window -= size
        if stream.window < 0:
            raise StreamFault(number, ErrorCode.FLOW_CONTROL_ERROR, "DATA: expected no more than the window")
        if start < stop:
            self._manners.useful += 1
            stream.data(data, start, stop)
        elif not flags & frames.END_STREAM:
            self._manners.count_noise("empty DATA")
        if flags & frames.END_STREAM:
            stream.end()

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any frame that is not plain DATA."""
        if not self._settled and kind != frames.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS as the first frame")
        if self._block.stream_id and (kind != frames.CONTINUATION or number != self._block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "expected the rest of a header block")
        if kind == frames.HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == frames.DATA:
            content = frames.unpadded(payload, flags)
            self._manners.count_noise("padding")
            self._data(number, content, 0, len(content), len(payload), flags)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, number, payload)
        else:
            self._manners.count_noise("frames")
            self._on_control(kind, flags, number, payload)

    def _on_control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == frames.PRIORITY:
            if number == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY: expected a stream, got 0")
            if len(payload) != 5:
                raise StreamFault(number, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY: expected 5 bytes")
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE: expected none from a client")
        elif kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
            if number:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"expected stream 0, got {number}")
            if kind == frames.SETTINGS:
                self._on_settings(flags, payload)
            elif kind == frames.PING:
                self._on_ping(flags, payload)
            elif len(payload) < 8:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY: expected 8 bytes or more")

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: expected an acknowledgement to be empty")
            return
        self._settled = True
        wanted = dict(frames.read_settings(payload))  # the last of each: a frame has room for thousands
        self.outbox.frame_bytes = min(wanted.get(frames.MAX_FRAME_SIZE, self.outbox.frame_bytes), _MOST_FRAME_OUT_BYTES)
        window = wanted.get(frames.INITIAL_WINDOW_SIZE, self._first_send_window)
        change, self._first_send_window = window - self._first_send_window, window
        for stream in self._streams.values() if change else ():
            stream.send_window += change
            if stream.send_window > frames.MOST_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: a window became too large")
        self.outbox.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.outbox.pump()

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING: expected 8 bytes, got {len(payload)}")
        if not flags & frames.ACK:
            self.outbox.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._draining and payload == _DRAIN_PING and self._last_taken == frames.MOST_WINDOW_BYTES:
            self._last_taken = self._last
            self.outbox.write(frames.goaway(self._last, ErrorCode.NO_ERROR, "the server stops"))
            self._close_if_idle()

    def _on_window_update(self, number: int, payload: bytes) -> None:
        increment = frames.number(payload, "WINDOW_UPDATE")
        if number == 0:
            self.outbox.send_window += increment
            if not increment or self.outbox.send_window > frames.MOST_WINDOW_BYTES:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFault(code, "WINDOW_UPDATE: expected 1 to 2**31 - 1 in all")
        else:
            stream = self._streams.get(number)
            if stream is None:
                self._idle(number, "WINDOW_UPDATE")
                return
            stream.send_window += increment
            if not increment or stream.send_window > frames.MOST_WINDOW_BYTES:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise StreamFault(number, code, "WINDOW_UPDATE: expected 1 to 2**31 - 1 in all")
        self._manners.useful += self.outbox.pump()

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        frames.number(payload, "RST_STREAM")
        stream = self._streams.get(number)
        if stream is None:
            self._idle(number, "RST_STREAM")
            return
        self._manners.count_reset()
        stream.lost()

    # Header blocks

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS: expected an odd stream, got {number}")
        if flags & (frames.PADDED | frames.WITH_PRIORITY):
            payload = frames.without_priority(frames.unpadded(payload, flags), flags, number)
        if flags & frames.END_HEADERS:
            self._on_block(number, payload, flags)
        else:
            self._block.begin(number, flags, payload)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if not self._block.stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION: expected HEADERS before it")
        self._manners.count_noise("CONTINUATION")
        self._block.go_on(payload)
        if flags & frames.END_HEADERS:
            self._on_block(number, self._block.end(), self._block.flags)

    def _on_block(self, number: int, block: bytes, flags: int) -> None:
        ended = bool(flags & frames.END_STREAM)
        stream = self._streams.get(number)
        if stream is not None:
            self._on_trailers(stream, self._headers.fields(block), ended=ended)
        elif number > self._last:
            self._last = number
            self._open(number, self._headers.request(block), ended=ended)
        else:
            self._headers.fields(block)
            if number not in self._forgotten:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS: stream {number} is closed")
            self._manners.count_noise("HEADERS")

    def _on_trailers(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        if stream.half_closed:
            raise StreamFault(stream.id, ErrorCode.STREAM_CLOSED, "HEADERS: expected none behind the end of the stream")
        if not ended or malformed_trailers(fields):
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "HEADERS: expected them to end the stream")
        stream.end()

    def _open(self, number: int, head: RequestHead, *, ended: bool) -> None:
        """Begin a call, or say why not."""
        if head.fault is not None:
            raise StreamFault(number, ErrorCode.PROTOCOL_ERROR, head.fault)
        if self.calls >= self.limits.max_streams or number > self._last_taken:
            raise StreamFault(number, ErrorCode.REFUSED_STREAM, "too many streams")
        if head.http_status:
            self.outbox.write(
                frames.frame(
                    frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, http_block(head.http_status)
                )
            )
            if not ended:
                self.outbox.write(frames.rst_stream(number, ErrorCode.NO_ERROR))
                self.forget(number)
            self._manners.count_noise("requests that are no gRPC")
            return
        self._manners.useful += 1
        method = self._server.method(head.path)
        window = self.limits.window_bytes
        streaming = method is not None and method.streaming
        stream = Stream(self, number, head, self._first_send_window, window, streaming=streaming)
        self._streams[number] = stream
        if method is None or head.status is not None:
            stream.half_closed = ended
            stream.finish(head.status or self._server.unknown(head.path))
            return
        receiver = method.opener(stream)
        if not stream.closed:
            stream.receiver = receiver
            if ended:
                stream.end()

    # What is wrong

    def _reset(self, fault: StreamFault) -> None:
        self._manners.count_reset()
        stream = self._streams.get(fault.stream_id)
        if stream is not None:
            stream.reset(fault.code)
        else:
            self.outbox.write(frames.rst_stream(fault.stream_id, fault.code))
            self.forget(fault.stream_id)

    def _stray(self, number: int, what: str) -> None:
        """DATA for a stream that is not open."""
        self._idle(number, what)
        if number not in self._forgotten:
            raise StreamFault(number, ErrorCode.STREAM_CLOSED, f"{what}: stream {number} is closed")

    def _idle(self, number: int, what: str) -> None:
        """A frame for a stream that is not open: it may have been, and then the frame is late, not wrong."""
        if number > self._last or not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what}: stream {number} was never opened")


_DRAIN_PING: Final = b"draining"
_KEEPALIVE_PING: Final = b"you live"
