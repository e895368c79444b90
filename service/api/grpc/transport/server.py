"""A gRPC server on this process's event loop: it takes generated handlers, and openers of calls that need no task."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, final

from grpc import StatusCode

from service.api.admission import Admission
from service.api.grpc.transport.calls import Explain, TaskCall
from service.api.grpc.transport.compression import Inflation, NotInflated
from service.api.grpc.transport.connection import Connection
from service.api.grpc.transport.limits import TransportLimits
from service.api.grpc.transport.metadata import Status
from service.api.grpc.transport.stream import Opener, Stream

_CLOSE_S: Final = 0.5
"""How long connections have to close that were told to."""
_INFLATING: Final = 2
"""Messages inflated at the same time: each may take as much memory as the largest message."""


@dataclass(frozen=True, slots=True)
class Method:
    """How calls of a method are taken up; `streaming` says that they have any number of messages."""

    opener: Opener
    streaming: bool


@final
class GrpcServer:
    """Serves the methods that were added before `start`, until `stop`. Belongs to one event loop.

    `explain` gives the status of what methods raise; `admission` counts connections and bodies.
    """

    def __init__(self, limits: TransportLimits, admission: Admission, explain: Explain) -> None:
        self.limits = limits
        self.admission = admission
        self.explain = explain
        self.loop: asyncio.AbstractEventLoop
        self._methods: dict[str, Method] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._threads = ThreadPoolExecutor(_INFLATING, "grpc inflate")
        self._looking: asyncio.TimerHandle | None = None
        self._stopping = False
        self._empty = asyncio.Event()

    # Methods

    def add_method(self, path: str, opener: Opener, *, streaming: bool) -> None:
        """Serve `/service/method` with `opener`."""
        self._methods[path] = Method(opener, streaming)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code adds the same ones with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """What generated `add_..._to_server` calls: serve the methods of a service; those added already stay."""
        for name, handler in handlers.items():
            self._methods.setdefault(f"/{service}/{name}", Method(self._opener(handler), handler.request_streaming))

    def _opener(self, handler: Any) -> Opener:
        return lambda stream: TaskCall(stream, handler, self.explain, stream.linger)

    # Running

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take connections from a bound socket; with `tls` (whose ALPN must offer h2) encrypted ones."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(lambda: Connection(self), sock=listener, ssl=tls)
        self._look()

    async def stop(self, drain_s: float) -> None:
        """Take nothing more, answer for up to `drain_s` seconds what clients have begun, end the rest."""
        if self._server is None:
            return
        self._server.close()
        self._stopping = True
        for connection in list(self._connections):
            connection.drain()
        if drain_s > 0:
            await self._emptied(drain_s)
        ended = Status(StatusCode.UNAVAILABLE, "the server stops")
        for connection in list(self._connections):
            connection.stop(ended)
        await self._emptied(_CLOSE_S)
        for connection in list(self._connections):
            connection.abort()
        await self._emptied(_CLOSE_S)
        if self._looking is not None:
            self._looking.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _emptied(self, within_s: float) -> None:
        self._empty.clear()
        if self._connections:
            try:
                await asyncio.wait_for(self._empty.wait(), within_s)
            except TimeoutError:
                return

    def _look(self) -> None:
        limits = self.limits
        waits_s = (limits.patience_s, limits.keepalive_s, limits.keepalive_timeout_s)
        looks = [math.ceil(wait_s / limits.look_s) for wait_s in waits_s]
        for connection in list(self._connections):
            connection.look(*looks)
        self._looking = self.loop.call_later(limits.look_s, self._look)

    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    # What connections call

    def method(self, path: str) -> Method | None:
        """The method of a path; None: there is none."""
        return self._methods.get(path)

    def unknown(self, path: str) -> Status:
        """What a call of a path gets that is no method's."""
        return Status(StatusCode.UNIMPLEMENTED, f"method: there is none at {path[:200]!r}")

    def opened(self, connection: Connection, transport: asyncio.Transport) -> None:
        """A client has connected."""
        taken = transport.get_extra_info("socket")
        if taken.family != socket.AF_UNIX:
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        if self._stopping:
            connection.drain()

    def lost(self, connection: Connection) -> None:
        """A client has gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def inflate(self, stream: Stream, inflation: Inflation) -> None:
        """Inflate a message in a thread."""

        def done(future: Future[bytes]) -> None:
            error = future.exception()
            if error is not None and not isinstance(error, NotInflated):
                error = NotInflated("message: it could not be inflated")
            result = future.result() if error is None else error
            try:
                self.loop.call_soon_threadsafe(stream.inflated, inflation, result)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise

        self._threads.submit(inflation.finish).add_done_callback(done)
