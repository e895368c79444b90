"""One call on its connection: messages out of DATA frames, answers into them, both within their windows."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from grpc import StatusCode

from service.api.body_chunks import add_chunk
from service.api.grpc.transport.compression import AT_ONCE_BYTES, Inflation, NotInflated, deflated
from service.api.grpc.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    ErrorCode,
    StreamFault,
    frame,
    rst_stream,
    window_update,
)
from service.api.grpc.transport.header_blocks import ANSWER_BLOCK, OK_BLOCK, answer_block, only_block, trailer_block
from service.api.grpc.transport.metadata import OK, RequestHead, Status
from service.api.grpc.transport.receiver import GONE, Receiver

if TYPE_CHECKING:
    from service.api.grpc.transport.connection import Connection

_PREFIX_BYTES: Final = 5
_PREFIX = struct.Struct(">BI")
_LEAST_DEFLATED_BYTES: Final = 512
_WAITS_BYTES: Final = 2**16
"""Unsent bytes of one call from which on whoever makes more of them waits."""

_ANSWER = struct.Struct(f">BHBBI{len(ANSWER_BLOCK)}sBHBBIBI")
_MESSAGE = struct.Struct(">BHBBIBI")
_TRAILERS = struct.Struct(f">BHBBI{len(OK_BLOCK)}s")


Opener = Callable[["Stream"], Receiver]
"""Takes up a call of one method; may end it at once."""


@final
class Stream:
    """One call. `window` is what the client may still send, `send_window` what it still takes; both in bytes.

    `streaming` says that the client may send any number of messages; `room_wanted` is for how many bytes of room a
    message waits (0: it does not).
    """

    __slots__ = (
        "_behind", "_chunks", "_connection", "_counted", "_ending", "_have", "_headers_sent", "_held", "_length",
        "_looks", "_opened", "_outbox", "_queue", "_queued_bytes", "_room", "_timer", "_unread_looks",
        "_unsent_at_look", "_waiter", "_wanted", "_widened", "closed", "half_closed", "head", "id", "receiver",
        "room_wanted", "send_window", "streaming", "window",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, number: int, head: RequestHead, send_window: int, window: int, *, streaming: bool
    ) -> None:
        self._connection = connection
        self._outbox = connection.outbox
        self.id = number
        self.head = head
        self.send_window = send_window
        self.window = window
        self.streaming = streaming
        self.receiver: Receiver = GONE
        self.half_closed = self.closed = False
        self._looks = self._unsent_at_look = self._unread_looks = 0
        self._length = head.length
        self._opened = 0.0 if head.timeout_s is None else connection.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._chunks: list[bytes | bytearray] = []
        self._have = self._held = self._counted = self._room = self._widened = self.room_wanted = 0
        self._wanted = _PREFIX_BYTES
        self._behind: deque[bytes | Inflation | None] | None = None
        self._headers_sent = False
        self._queue: deque[memoryview] | None = None
        self._queued_bytes = 0
        self._ending: Status | None = None
        self._waiter: asyncio.Future[None] | None = None

    # What the connection calls

    def data(self, data: bytes, start: int, stop: int) -> None:
        """Take `data[start:stop]`, which the windows allowed; raises `StreamFault`."""
        size = stop - start
        self._looks = 0
        if self._length is not None:
            self._length -= size
            if self._length < 0:
                raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "body: expected no more than content-length")
        if not self._connection.admission.hold(size):
            self.refuse(self._connection.body_refused())
            return
        self._counted += size
        if (
            self._have == 0
            and size >= _PREFIX_BYTES
            and data[start] == 0
            and int.from_bytes(data[start + 1 : start + _PREFIX_BYTES]) == size - _PREFIX_BYTES
            and size - _PREFIX_BYTES <= self._connection.limits.max_message_bytes
        ):
            self._held += size
            self._deliver(data[start + _PREFIX_BYTES : stop])
        else:
            self._assemble(data[start:stop])

    def end(self) -> None:
        """The client has sent everything; raises `StreamFault`."""
        self.half_closed = True
        if self.closed:
            return
        if self._length:
            raise StreamFault(self.id, ErrorCode.PROTOCOL_ERROR, "body: expected as much as content-length says")
        if self._have:
            self.refuse(Status(StatusCode.INVALID_ARGUMENT, "message: the call ended within it"))
        elif self._behind is not None:
            self._behind.append(None)
        else:
            self.receiver.half_closed()

    def lost(self) -> None:
        """The client went away; nothing can be sent."""
        receiver = self.receiver
        self._close()
        receiver.cancelled()

    def look(self, patience_looks: int) -> None:
        """Called now and then: give up a client that has left this call waiting for so many looks in a row."""
        awaited = not self.half_closed and (self._have or not self.streaming)
        if awaited and self._wanted - self._have <= self.window:
            self._looks += 1
            if self._looks > patience_looks:
                text = "message: expected its end within the server's patience"
                self.refuse(Status(StatusCode.DEADLINE_EXCEEDED, text))
                return
        stands = 0 < self._queued_bytes == self._unsent_at_look
        self._unsent_at_look = self._queued_bytes
        self._unread_looks = self._unread_looks + 1 if stands else 0
        if self._unread_looks > patience_looks:
            self.reset(ErrorCode.CANCEL)

    def room_given(self) -> None:
        """The room that this call's message waited for is there."""
        self._room += self.room_wanted
        self.room_wanted = 0
        self._update_window()

    # What its receiver calls

    def linger(self, count: int) -> None:
        """`count` more calls (or less) are being ended, though their streams are gone."""
        self._connection.linger(count)

    def remaining_s(self) -> float | None:
        """Seconds until its deadline; None without one."""
        timeout_s = self.head.timeout_s
        return None if timeout_s is None else timeout_s - (self._connection.loop.time() - self._opened)

    def watch_deadline(self) -> None:
        """End the call with DEADLINE_EXCEEDED when its time is over."""
        remaining_s = self.remaining_s()
        if remaining_s is not None:
            self._timer = self._connection.loop.call_later(max(remaining_s, 0.0), self._expire)

    def widen(self) -> None:
        """Let the client send more messages ahead, where the connection has room."""
        limits = self._connection.limits
        more = limits.stream_window_bytes - limits.window_bytes
        if self._connection.room.take(more):
            self._room = self._widened = more
            self._update_window()

    def consumed(self, size_bytes: int) -> None:
        """A message of so many bytes waits no longer: as many may come again."""
        self._held -= size_bytes + _PREFIX_BYTES
        if self.half_closed or self.closed:
            return
        spare = self._room - self._widened
        if spare and self._wanted <= self._connection.limits.window_bytes:
            self._room -= spare
            self._connection.room.give(spare)
        self._update_window()

    def released(self, size_bytes: int) -> None:
        """A message of so many bytes is in nobody's memory any more."""
        if not self.closed:
            size_bytes = min(size_bytes + _PREFIX_BYTES, self._counted)
            self._counted -= size_bytes
            self._connection.admission.release(size_bytes)

    @property
    def congested(self) -> bool:
        """Whether so much is unsent that no more should be made."""
        return self._queued_bytes > _WAITS_BYTES or self._outbox.paused

    def notify(self) -> None:
        """Call the receiver's `writable` when it is not `congested` any more."""
        self._outbox.wait(self)

    async def drained(self) -> None:
        """Wait until it is not `congested`."""
        while self.congested and not self.closed:
            if self._waiter is None:
                self._waiter = self._connection.loop.create_future()
                self.notify()
            await asyncio.shield(self._waiter)

    def answer(self, pieces: list[bytes], size: int) -> None:
        """Send the only message, `pieces` of `size` bytes together, and end the call well."""
        outbox, total = self._outbox, size + _PREFIX_BYTES
        if (
            total > outbox.frame_bytes
            or total > self.send_window
            or total > outbox.send_window
            or self.head.encoding != "identity"
            or self.closed
            or outbox.paused
        ):
            self.send(pieces, size)
            self.finish(OK)
            return
        outbox.send_window -= total
        number = self.id
        head = (0, len(ANSWER_BLOCK), HEADERS, END_HEADERS, number, ANSWER_BLOCK)
        outbox.write(_ANSWER.pack(*head, total >> 16, total & 0xFFFF, DATA, 0, number, 0, size))
        outbox.pieces.extend(pieces)
        outbox.pieces.append(_TRAILERS.pack(0, len(OK_BLOCK), HEADERS, END_HEADERS | END_STREAM, number, OK_BLOCK))
        self._sent_all()

    def send(self, pieces: list[bytes], size: int) -> None:
        """Send one message, `pieces` of `size` bytes together; what the client does not take yet waits in order."""
        if self.closed or self._ending is not None:
            return
        self._begin_answer()
        compressed = 0
        if self.head.encoding != "identity" and _LEAST_DEFLATED_BYTES <= size <= AT_ONCE_BYTES:
            pieces = [deflated(self.head.encoding, pieces)]
            size, compressed = len(pieces[0]), 1
        outbox, total = self._outbox, size + _PREFIX_BYTES
        if (
            not self._queue
            and total <= outbox.frame_bytes
            and total <= self.send_window
            and total <= outbox.send_window
            and not outbox.paused
        ):
            self.send_window -= total
            outbox.send_window -= total
            outbox.write(_MESSAGE.pack(total >> 16, total & 0xFFFF, DATA, 0, self.id, compressed, size))
            outbox.pieces.extend(pieces)
            return
        if not outbox.enqueue(self, total):
            self.reset(ErrorCode.ENHANCE_YOUR_CALM)
            return
        if self._queue is None:
            self._queue = deque()
        *heads, last = pieces
        self._queue.append(memoryview(b"".join([_PREFIX.pack(compressed, size), *heads])))
        self._queue.append(memoryview(last))  # not copied: it may be long
        self._queued_bytes += total

    def finish(self, status: Status) -> None:
        """End the call once all messages are sent."""
        if self.closed or self._ending is not None:
            return
        if self._queue:
            self._ending = status
            return
        block = trailer_block(status) if self._headers_sent else only_block(status)
        self._outbox.write(frame(HEADERS, END_HEADERS | END_STREAM, self.id, block))
        self._sent_all()

    def refuse(self, status: Status) -> None:
        """End the call at once, without what is unsent, and whatever its receiver is doing."""
        receiver = self.receiver
        self._drop_queue()
        self._ending = None
        self.finish(status)
        receiver.cancelled()

    def reset(self, code: ErrorCode) -> None:
        """End the call without a status."""
        if not self.closed:
            self._outbox.write(rst_stream(self.id, code))
            self._connection.forget(self.id)
            self.lost()

    # Sending

    def pump(self, most_bytes: int) -> int:
        """Send of what waits up to `most_bytes`, as far as the windows allow; returns how much that was."""
        outbox, queue, sent = self._outbox, self._queue, 0
        while queue:
            piece = queue[0]
            size = min(len(piece), outbox.frame_bytes, self.send_window, outbox.send_window, most_bytes - sent)
            if size <= 0:
                break
            outbox.write(HEAD.pack(size >> 16, size & 0xFFFF, DATA, 0, self.id))
            outbox.pieces.append(piece[:size])
            self.send_window -= size
            outbox.send_window -= size
            sent += size
            if size == len(piece):
                queue.popleft()
            else:
                queue[0] = piece[size:]
        self._queued_bytes -= sent
        outbox.unsent_bytes -= sent
        return sent

    def pumped(self) -> bool:
        """Whether nothing waits any more; then the call ends, if that was all."""
        if self._queue:
            return False
        if self._ending is not None:
            status, self._ending = self._ending, None
            self.finish(status)
        return True

    def wake(self) -> None:
        """Let its receiver go on, and whoever waits in `drained`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None
        self.receiver.writable()

    def _begin_answer(self) -> None:
        if not self._headers_sent:
            self._headers_sent = True
            encoding = self.head.encoding
            block = ANSWER_BLOCK if encoding == "identity" else answer_block(encoding)
            self._outbox.write(frame(HEADERS, END_HEADERS, self.id, block))

    def _sent_all(self) -> None:
        if not self.half_closed:
            self._outbox.write(rst_stream(self.id, ErrorCode.NO_ERROR))
            self._connection.forget(self.id)
        self._close()

    def _drop_queue(self) -> None:
        if self._queue:
            self._queue.clear()
            self._outbox.unsent_bytes -= self._queued_bytes
            self._queued_bytes = 0

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.receiver = GONE
        self._chunks = []
        if self._queue is not None:
            self._drop_queue()
        if self._timer is not None:
            self._timer.cancel()
        self._connection.admission.release(self._counted)
        room, self._room, self._counted = self._room, 0, 0
        self.room_wanted = 0  # before the room goes round: this call's message may be the next in turn for it
        self._connection.closed(self, room)
        self.wake()

    def _expire(self) -> None:
        self.refuse(Status(StatusCode.DEADLINE_EXCEEDED, "the time given to the call is over"))

    # Receiving

    def _assemble(self, chunk: bytes) -> None:
        """Put messages together that are not one frame each."""
        add_chunk(self._chunks, chunk)
        self._have += len(chunk)
        if self._have < self._wanted:
            return
        if self._have == self._wanted > _PREFIX_BYTES:  # a long one, and nothing behind it: copied once
            chunks, first = self._chunks, self._chunks[0]
            chunks[0] = first[_PREFIX_BYTES:]
            self._held += self._have
            self._chunks, self._have, self._wanted = [], 0, _PREFIX_BYTES
            self._take(first[0], b"".join(chunks))
            self._update_window()
            return
        data = b"".join(self._chunks)
        at, end, most = 0, len(data), self._connection.limits.max_message_bytes
        while True:
            wanted = _PREFIX_BYTES
            if end - at >= _PREFIX_BYTES:
                flag, length = _PREFIX.unpack_from(data, at)
                if length > most:
                    text = f"message: expected at most {most} bytes, got {length}"
                    self.refuse(Status(StatusCode.RESOURCE_EXHAUSTED, text))
                    return
                wanted += length
            if end - at < wanted:
                break
            self._held += wanted
            self._take(flag, data[at + _PREFIX_BYTES : at + wanted])
            at += wanted
            if self.closed:
                return
        self._have, self._wanted = end - at, wanted
        self._chunks = [data[at:]] if self._have else []
        self._want_room()

    def _take(self, flag: int, message: bytes) -> None:
        """A message with its flag, 1 for compressed."""
        if flag == 0:
            self._deliver(message)
            return
        encoding = self.head.encoding
        if flag != 1 or encoding == "identity":
            text = f"message: expected the flag 0, or 1 beside a grpc-encoding, got {flag} beside {encoding}"
            self.refuse(Status(StatusCode.INVALID_ARGUMENT, text))
            return
        inflation = Inflation(encoding, message, self._connection.limits.max_message_bytes)
        if self._behind is None:
            self._inflate(inflation)
        else:
            self._behind.append(inflation)

    def _deliver(self, message: bytes) -> None:
        if self._behind is None:
            self.receiver.message(message)
        else:
            self._behind.append(message)

    def _inflate(self, inflation: Inflation) -> None:
        """Inflate what is short at once; what is long in a thread, while what comes after it waits."""
        try:
            message = inflation.go_on(AT_ONCE_BYTES)
        except NotInflated as error:
            self.inflated(inflation, error)
            return
        if message is not None:
            self.inflated(inflation, message)
            return
        if self._behind is None:
            self._behind = deque()
        self._connection.inflate(self, inflation)

    def inflated(self, inflation: Inflation, result: bytes | NotInflated) -> None:
        """Take an inflated message, and what came after it."""
        if self.closed:
            return
        if isinstance(result, NotInflated):
            code = StatusCode.RESOURCE_EXHAUSTED if result.too_large else StatusCode.INVALID_ARGUMENT
            self.refuse(Status(code, str(result)))
            return
        more = len(result) - inflation.compressed_bytes
        if not self._connection.admission.hold(more):
            self.refuse(self._connection.body_refused())
            return
        self._counted += more
        self._held += more
        self.receiver.message(result)
        behind, self._behind = self._behind, None
        while behind:
            each = behind.popleft()
            if each is None:
                self.receiver.half_closed()
            elif isinstance(each, bytes):
                self.receiver.message(each)
            else:
                self._inflate(each)
                if self.inflating:
                    self._behind = behind
                    return

    @property
    def inflating(self) -> bool:
        """Whether a message is being inflated in a thread."""
        return self._behind is not None

    def _want_room(self) -> None:
        """Ask for the room of a message that does not fit into the window."""
        missing = self._wanted - self._connection.limits.window_bytes - self._room
        if missing <= 0:
            self._update_window()
        elif not self.room_wanted:
            self.room_wanted = missing
            self._connection.room.want(self)

    def _update_window(self) -> None:
        """Let as much come as there is room for, when that is worth a frame or the message needs it."""
        if self.half_closed or self.closed:
            return
        most = self._connection.limits.window_bytes + self._room
        free = most - self._have - self._held - self.window
        if free >= most >> 1 or (free > 0 and self._wanted - self._have > self.window):
            self.window += free
            self._outbox.write(window_update(self.id, free))
