"""The two wires of `open_loop.py`: HTTP/1.1 over as many connections as it takes, gRPC over a few."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence

from benchmarks.http2 import END_STREAM, Connection, header_block, trailer

OK, SHED, FAILED = "ok", "shed", "failed"
FIRST_HTTP, MOST_HTTP = 64, 2048
GRPC_CONNECTIONS = 16
_HTTP_OUTCOMES = {200: OK, 429: SHED, 503: SHED, 504: SHED}
_GRPC_OUTCOMES = {"0": OK, "1": SHED, "4": SHED, "8": SHED, "14": SHED}
"""OK; CANCELLED (what grpc.aio's server makes of too many), DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and UNAVAILABLE."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

Done = Callable[[int, str], None]


class HttpClient:
    """Requests over HTTP/1.1, one at a time on a connection; more connections while all are busy."""

    def __init__(self, address: str, path: str, body: bytes, headers: Sequence[str]) -> None:
        lines = [f"POST {path} HTTP/1.1", f"Host: {address}", f"Content-Length: {len(body)}"]
        lines += [header.replace("=", ": ", 1) for header in headers]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._idle: list[_HttpConnection] = []
        self._all: set[_HttpConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[int] = deque()

    async def connect(self, done: Done, left: Callable[[int], None]) -> None:
        """As many as a moderate load takes."""
        self._done, self._left = done, left
        for _ in range(FIRST_HTTP):
            await self._open()

    def send(self, index: int) -> None:
        """On an idle connection, the one that was used last; or when one is."""
        if self._idle:
            self._ask(self._idle.pop(), index)
            return
        self._waiting.append(index)
        self._more()

    def flush(self) -> None:
        """Every request was written at once."""

    def close(self) -> None:
        """Drop all connections, and what waits for one."""
        self._waiting.clear()
        for connection in list(self._all):
            connection.transport.abort()

    def _more(self) -> None:
        """One connection more when something waits for it."""
        if len(self._opening) < len(self._waiting) and len(self._all) + len(self._opening) < MOST_HTTP:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _HttpConnection(self), self._host, self._port)
        except OSError:
            if self._waiting:
                self._done(self._waiting.popleft(), FAILED)
            return
        self._all.add(connection)
        self.free(connection)

    def _ask(self, connection: _HttpConnection, index: int) -> None:
        connection.index = index
        self._left(index)
        connection.transport.write(self._request)

    def free(self, connection: _HttpConnection) -> None:
        """A connection has nothing to do."""
        if self._waiting:
            self._ask(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: _HttpConnection, status: int) -> None:
        """An answer is complete."""
        self._done(connection.index, _HTTP_OUTCOMES.get(status, FAILED))
        connection.index = -1
        self.free(connection)

    def lost(self, connection: _HttpConnection) -> None:
        """A connection is gone, and with it the answer to what was asked on it."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.index >= 0:
            self._done(connection.index, FAILED)
        self._more()


class _HttpConnection(asyncio.Protocol):
    """Reads one answer after the other; the server says how long each is."""

    def __init__(self, client: HttpClient) -> None:
        self.index = -1
        self._client = client
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Nothing to say yet."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Tell."""
        self._client.lost(self)

    def data_received(self, data: bytes) -> None:
        """Tell of a whole answer."""
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        if length is None:
            self.transport.abort()
        elif len(self._buffer) >= head + 4 + int(length[1]):
            status = int(self._buffer[9:12])
            self._buffer = b""
            self._client.answered(self, status)


class GrpcClient:
    """Unary calls over a few HTTP/2 connections, as many streams as the server allows."""

    def __init__(self, address: str, path: str, body: bytes) -> None:
        self._address, self._body = address, body
        self._block = header_block(address, path)
        self._status = trailer("grpc-status")
        self._connections: list[_GrpcConnection] = []
        self._waiting: deque[int] = deque()
        self._next = 0

    async def connect(self, done: Done, left: Callable[[int], None]) -> None:
        """All of them."""
        self._done, self._left = done, left
        host, _, port = self._address.rpartition(":")
        for _ in range(GRPC_CONNECTIONS):
            one = _GrpcConnection(self)
            await asyncio.get_running_loop().create_connection(lambda one=one: one.connection, host, int(port))
            self._connections.append(one)
        for one in self._connections:
            await asyncio.wait_for(one.connection.ready.wait(), 10)

    def send(self, index: int) -> None:
        """On the next connection that may take a stream more; or when one may."""
        for _ in self._connections:
            self._next = (self._next + 1) % len(self._connections)
            one = self._connections[self._next]
            if one.room():
                self._ask(one, index)
                return
        self._waiting.append(index)

    def flush(self) -> None:
        """Write what this tick brought."""
        for one in self._connections:
            one.connection.flush()

    def close(self) -> None:
        """Drop all connections."""
        for one in self._connections:
            one.connection.close()

    def _ask(self, one: _GrpcConnection, index: int) -> None:
        self._left(index)
        stream = one.connection.open(self._block)
        one.open[stream] = index
        one.connection.send(stream, self._body, END_STREAM)

    def ended(self, one: _GrpcConnection, index: int, block: bytes | None) -> None:
        """A call has its trailers, or None because it was reset."""
        outcome = FAILED if block is None else _GRPC_OUTCOMES.get(self._status(block) or "", FAILED)
        self._done(index, outcome)
        if self._waiting and one.room():
            self._ask(one, self._waiting.popleft())


class _GrpcConnection:
    """The open calls of one connection."""

    def __init__(self, client: GrpcClient) -> None:
        self.connection = Connection(self)
        self.open: dict[int, int] = {}
        self._client = client

    def room(self) -> bool:
        """Whether the server takes another call."""
        return len(self.open) < self.connection.most

    def data(self, stream: int, payload: bytes) -> None:
        """The trailers tell what it is worth."""

    def headers(self, stream: int, block: bytes, ended: bool) -> None:
        """Trailers end a call."""
        if ended and stream in self.open:
            self._client.ended(self, self.open.pop(stream), block)

    def lost(self, stream: int) -> None:
        """One call, or all of them."""
        if not stream:
            self.connection.most = 0
        for each in [stream] if stream else list(self.open):
            if each in self.open:
                self._client.ended(self, self.open.pop(each), None)
