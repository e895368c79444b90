"""HTTP/1.1 as uvicorn speaks it, with a reply's headers and body in one write.

uvicorn writes the headers when it gets them and the body when it gets that: two system calls, two segments, and a
client that is woken twice. Here what is written waits for the rest of the same turn of the event loop.

Between two requests a `FastLane` is asked first: what it takes never sees uvicorn's parser.
"""

from __future__ import annotations

import asyncio
from typing import Any, final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.admission import Admission
from service.api.rest.fast_lane import FastConnection, FastLane
from service.api.rest.http_head import without_upgrade

JOIN_BYTES = 2**16
"""Longer bodies are written by themselves: copying them would cost more than a second system call."""


@final
class JoinedWrites(asyncio.Transport):
    """A transport that holds the first write of a turn of the event loop and sends it with the second.

    Everything else passes through. A write without a second one goes out at the end of the turn.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        self._flush_later: asyncio.Handle | None = None

    def write(self, data: Any) -> None:
        """Send `data`, after what was held and with it; nothing to a connection that is closing, as asyncio does."""
        if self._transport.is_closing():
            return
        held = self._held
        if held is None:
            self._held = data
            self._flush_later = self._loop.call_soon(self._flush)
            return
        self._forget()
        if len(data) <= JOIN_BYTES:
            self._transport.write(b"".join((held, data)))
        else:
            self._transport.write(held)
            self._transport.write(data)

    def reply(self, head: bytes, body: bytes) -> None:
        """Send one answer in one write, after what was held."""
        if self._held is not None:
            self._flush()
        if len(body) <= JOIN_BYTES:
            self._transport.write(b"".join((head, body)))
        else:
            self._transport.writelines((head, body))

    def close(self) -> None:
        """Send what was held and close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what was held is lost."""
        self._forget()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed or will be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's own answer."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection to another protocol."""
        self._transport.set_protocol(protocol)

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        held = self._held
        self._forget()
        if held is not None and not self._transport.is_closing():
            self._transport.write(held)

    def _forget(self) -> None:
        self._held = None
        if self._flush_later is not None:
            self._flush_later.cancel()
            self._flush_later = None


MAX_HEADER_BYTES = 2**17
"""How much of a request's head may come before its end; uvicorn sets no bound with this parser."""


@final
class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol over `JoinedWrites`, with bounds on headers and on silence, and JSON for what is no HTTP.

    `lane` answers what it can (None: everything goes the long way), `admission` counts connections (None: nobody does);
    the other arguments are uvicorn's.
    """

    _head_bytes = 0
    _head_looks = _silent_looks = _unread_looks = 0
    _unread = 0
    _in_message = False
    _idle = False
    """Whether the fast lane has answered and nothing came since; what came before may be under way yet."""
    _joined: JoinedWrites

    def __init__(
        self, *arguments: Any, lane: FastLane | None = None, admission: Admission | None = None, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._admission = admission
        self._counted = False
        self._fast = None if lane is None else FastConnection(lane, self)

    def data_received(self, data: bytes) -> None:
        """Give what has come to the lane whose it is."""
        self._silent_looks = 0
        self._idle = False
        fast = self._fast
        if fast is not None and (fast.busy or self._between()):
            if self.timeout_keep_alive_task is not None:
                self._unset_keepalive_if_required()
            data = fast.take(data)
            if not data:
                return
        self.long_way(data)

    def long_way(self, data: bytes) -> None:
        """Parse what has come; refuse a head that does not end."""
        super().data_received(data if self._in_message else without_upgrade(data))
        if self._in_head():
            if not self._head_bytes:
                self._head_looks = 0
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"headers: expected at most {MAX_HEADER_BYTES} bytes, got more")
        elif self._head_bytes:
            self._head_bytes = 0

    def on_message_begin(self) -> None:
        """The parser has seen a request's first byte."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """The parser has seen a request's last byte."""
        self._in_message = False
        super().on_message_complete()

    def _between(self) -> bool:
        """Whether all requests of the long way are over."""
        return not self._in_message and (self.cycle is None or self.cycle.response_complete)

    def send_400_response(self, msg: str) -> None:
        """Say in the protocol's form that this is no request, and close."""
        self._refuse(b"400 Bad Request", msg)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection."""
        self._joined = JoinedWrites(transport, self.loop)
        super().connection_made(self._joined)
        if self._admission is not None:
            self._counted = self._admission.connection_opened()
            if not self._counted:
                refusal = str(self._admission.connection_refused())
                self._refuse(b"503 Service Unavailable", refusal, b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._fast is not None:
            self._fast.lost()
        super().connection_lost(exc)
        if self._counted and self._admission is not None:
            self._counted = False
            self._admission.connection_closed()

    def shutdown(self) -> None:
        """Close, once the request that has begun has its answer."""
        fast = self._fast
        if fast is None or not (fast.waiting or fast.reading):
            super().shutdown()
        else:
            fast.close_soon()

    def resume_writing(self) -> None:
        """The client has read enough of its answers."""
        super().resume_writing()
        if self._fast is not None:
            self._fast.resume()

    # What the fast lane needs

    @property
    def full(self) -> bool:
        """Whether the client does not read its answers."""
        return self.flow.write_paused

    @property
    def closing(self) -> bool:
        """Whether nothing can be answered any more."""
        return self.transport.is_closing()

    def reply(self, head: bytes, body: bytes) -> None:
        """Write one answer."""
        self._silent_looks = 0
        self._idle = True
        self._joined.reply(head, body)

    def end(self) -> None:
        """Close once everything is written."""
        self._joined.close()

    def read_on(self, on: bool) -> None:
        """Read from the client, or let it wait."""
        if on:
            self.flow.resume_reading()
        else:
            self.flow.pause_reading()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Let a stopping server wait for `task`, and cancel it when its time is over."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # Patience

    def end_silence(self, patience_looks: int, keep_alive_looks: int) -> None:
        """Give up a client that has kept this connection waiting at more than `patience_looks` calls of this in a row.

        It may so long be silent before its first request or in mid-request, take for a head, or leave an answer unread;
        after an answer of the fast lane `keep_alive_looks` are enough. Looks are counted, not seconds: when the server
        itself stood still, what clients sent meanwhile is yet unread.
        """
        if self.transport.is_closing():
            return
        unread = self.transport.get_write_buffer_size()
        self._unread_looks = self._unread_looks + 1 if 0 < self._unread <= unread else 0
        self._unread = unread
        self._head_looks += 1
        self._silent_looks += 1
        if unread:
            self._silent_looks = 0
            if self._unread_looks > patience_looks:
                self.transport.abort()
        elif self._head_bytes:
            if self._head_looks > patience_looks:
                self._refuse(b"408 Request Timeout", "headers: expected their end within the server's patience")
        elif self._idle and not (self._fast is not None and self._fast.busy) and self._between():
            if self._silent_looks > keep_alive_looks:
                self.transport.close()
        elif self._silent_looks > patience_looks:
            self._end_silent()

    def _end_silent(self) -> None:
        fast = self._fast
        if fast is not None and fast.busy:
            if fast.reading:
                self._refuse(b"408 Request Timeout", "body: expected more of it within the server's patience")
            return
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and self.timeout_keep_alive_task is None):
            self.transport.close()
        elif cycle.more_body and not cycle.response_started and not self.flow.read_paused:
            self._refuse(b"408 Request Timeout", "body: expected more of it within the server's patience")

    def _in_head(self) -> bool:
        cycle = self.cycle
        return self.scope is not None and (cycle is None or cycle.scope is not self.scope)

    def _refuse(self, status: bytes, message: str, headers: bytes = b"") -> None:
        body = orjson.dumps({"error": message})
        self.transport.write(
            b"HTTP/1.1 %b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, headers, len(body), body)
        )
        self.transport.close()
