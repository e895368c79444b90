"""A server of echoes over the transport, and clients that speak HTTP/2 by the h2 library or by hand."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from hpack import Decoder

from service.api.admission import Admission
from service.api.grpc.transport.limits import TransportLimits
from service.api.grpc.transport.metadata import Status
from service.api.grpc.transport.server import GrpcServer
from service.api.grpc.transport.stream import Stream
from tests.hostile.grpc_cases import GOAWAY, RST_STREAM, SETTINGS, frame
from tests.hostile.grpc_cases import HEADERS as HEADERS_FRAME
from tests.service.api.grpc.listening import started
from tests.service.core.served import WAIT_S

MAX_MESSAGE = 200_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UNARY, STREAM, COUNT, HELD, METADATA, MANY, QUICK = (
    f"/t.Echo/{name}" for name in ("Unary", "Stream", "Count", "Held", "Metadata", "Many", "Quick")
)
HEADERS = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]


def limits(**changes: Any) -> TransportLimits:
    """Small ones, with `changes`."""
    small = {"max_message_bytes": MAX_MESSAGE, "max_room_bytes": 2 * MAX_MESSAGE, "max_unread_bytes": 10 * MAX_MESSAGE}
    return TransportLimits(**{**small, "look_s": 0.01, **changes})


class Echo:
    """Methods of all four kinds; `gate` holds `Held` and `Count`, `cancelled` counts calls that were."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = 0
        self.seen: list[Any] = []

    async def unary(self, request: bytes, context: Any) -> bytes:
        return request

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def count(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.entered.set()
        await self.gate.wait()
        return b"%d" % sum([len(request) async for request in requests])

    async def held(self, request: bytes, context: Any) -> bytes:
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return request

    async def metadata(self, request: bytes, context: Any) -> bytes:
        self.seen.append((context.invocation_metadata(), context.time_remaining()))
        await context.abort(grpc.StatusCode.DATA_LOSS, request.decode(), (("x-more", "1"),))
        return b""

    async def many(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            self.seen.append(number)
            yield bytes(10_000)

    def add_to(self, server: GrpcServer) -> None:
        codec = {"request_deserializer": bytes, "response_serializer": bytes}
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary, **codec),
            "Stream": grpc.stream_stream_rpc_method_handler(self.stream, **codec),
            "Count": grpc.stream_unary_rpc_method_handler(self.count, **codec),
            "Held": grpc.unary_unary_rpc_method_handler(self.held, **codec),
            "Metadata": grpc.unary_unary_rpc_method_handler(self.metadata, **codec),
            "Many": grpc.unary_stream_rpc_method_handler(self.many, **codec),
        }
        server.add_registered_method_handlers("t.Echo", handlers)
        server.add_method(QUICK, Quick, streaming=False)


class Quick:
    """A call that is answered without a task."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._message = b""

    def message(self, message: bytes) -> None:
        self._message = message

    def half_closed(self) -> None:
        self._stream.answer([self._message[:1], self._message[1:]], len(self._message))

    def writable(self) -> None:
        pass

    def cancelled(self) -> None:
        pass


def explain(error: BaseException) -> Status:
    """As the service would, without its table."""
    return Status(grpc.StatusCode.ABORTED, str(error))


@asynccontextmanager
async def echoing(
    admission: Admission | None = None, *, tls: ssl.SSLContext | None = None, **changes: Any
) -> AsyncIterator[tuple[int, Echo, GrpcServer]]:
    """A server: its port, its methods, itself."""
    server = GrpcServer(limits(**changes), admission or Admission(max_connections=9, max_bodies_bytes=2**30), explain)
    echo = Echo()
    echo.add_to(server)
    port = await started(server, tls)
    try:
        yield port, echo, server
    finally:
        await asyncio.wait_for(server.stop(0), WAIT_S)


def framed(message: bytes, flag: int = 0) -> bytes:
    """A message with gRPC's prefix."""
    return struct.pack(">BI", flag, len(message)) + message


class Answer:
    """What came on one stream."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.data = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> str:
        return self.headers.get("grpc-status", "")

    @property
    def messages(self) -> list[bytes]:
        rest, found = self.data, []
        while rest:
            size = struct.unpack(">I", rest[1:5])[0]
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found


class Peer:
    """A client; `goaway` is the code with which the server sent it away, `closed` that the connection ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.http = H2Connection(config)
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.goaways: list[int] = []
        self.closed = False
        self.acknowledge = True

    def flush(self) -> None:
        self.writer.write(self.http.data_to_send())

    def head(self, path: str, *, end: bool = False, headers: Iterable[tuple[str, str]] = ()) -> int:
        """Begin a call."""
        number = self.http.get_next_available_stream_id()
        own = dict(headers)
        plain = [(name, own.pop(name, value)) for name, value in HEADERS]
        plain.insert(2, (":path", path))
        self.http.send_headers(number, [*plain, *own.items()], end_stream=end)
        self.answers[number] = Answer()
        self.flush()
        return number

    async def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send as the windows allow."""
        while data:
            room = min(self.http.local_flow_control_window(number), self.http.max_outbound_frame_size, len(data))
            if room <= 0:
                await self.hear()
                continue
            self.http.send_data(number, data[:room], end_stream=end and room == len(data))
            data = data[room:]
            self.flush()

    async def call(self, path: str, message: bytes = b"x", **options: Any) -> Answer:
        """A whole call of one message."""
        number = self.head(path, **options)
        await self.send(number, framed(message), end=True)
        return await self.answer(number)

    async def answer(self, number: int) -> Answer:
        """Until a call has ended."""
        answer = self.answers[number]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def until(self, done: Callable[[], bool]) -> None:
        """Listen until `done`, or the connection has ended."""
        async with asyncio.timeout(WAIT_S):
            while not done() and not self.closed:
                await self.hear()

    async def end(self) -> int | None:
        """Listen until the connection has ended; the server's code."""
        await self.until(lambda: False)
        return self.goaway

    async def hear(self) -> None:
        """Take what comes next."""
        try:
            data = await asyncio.wait_for(self.reader.read(65_536), WAIT_S)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.http.receive_data(data):
            self.take(event)
        self.flush()

    def take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = int(event.error_code)
            self.goaways.append(event.last_stream_id or 0)
            return
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if answer is None:
            return
        if isinstance(event, ResponseReceived | TrailersReceived):
            answer.headers |= {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, DataReceived):
            answer.data += event.data
            if self.acknowledge:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code)


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Raw:
    """A client that sends whatever it is told, and keeps every frame that comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames: list[Frame] = []
        self.closed = False
        self._rest = b""

    def write(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def until(self, done: Callable[[], bool]) -> None:
        """Listen until `done`, or the connection has ended."""
        async with asyncio.timeout(WAIT_S):
            while not done() and not self.closed:
                try:
                    data = await self.reader.read(65_536)
                except ConnectionError:
                    data = b""
                self.closed = not data
                self._rest += data
                while len(self._rest) >= 9 and len(self._rest) >= 9 + int.from_bytes(self._rest[:3]):
                    size = int.from_bytes(self._rest[:3])
                    number = int.from_bytes(self._rest[5:9])
                    self.frames.append(Frame(self._rest[3], self._rest[4], number, self._rest[9 : 9 + size]))
                    self._rest = self._rest[9 + size :]

    def of(self, kind: int) -> list[Frame]:
        """All frames of a kind."""
        return [frame for frame in self.frames if frame.kind == kind]

    async def code(self) -> int | None:
        """The code of the GOAWAY with which the connection ends; None without."""
        await self.until(lambda: False)
        codes = [int.from_bytes(frame.payload[4:8]) for frame in self.of(GOAWAY)]
        return codes[-1] if codes else None

    async def reset(self, number: int) -> int:
        """The code of a stream's RST_STREAM."""
        await self.until(lambda: any(frame.stream == number for frame in self.of(RST_STREAM)))
        return next(int.from_bytes(each.payload) for each in self.of(RST_STREAM) if each.stream == number)

    async def trailers(self, number: int) -> dict[str, str]:
        """The headers with which a stream ends."""

        def last() -> list[Frame]:
            return [each for each in self.of(HEADERS_FRAME) if each.stream == number and each.flags & 1]

        await self.until(lambda: bool(last()))
        return {str(name): str(value) for name, value in Decoder().decode(last()[0].payload)}


@asynccontextmanager
async def raw(port: int, *, hello: bool = True) -> AsyncIterator[Raw]:
    """A client by hand, which has said hello."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        client = Raw(reader, writer)
        if hello:
            client.write(PREFACE, frame(SETTINGS, 0, 0, b""))
        yield client
    finally:
        writer.transport.abort()


def block(path: str, *more: tuple[str, str]) -> bytes:
    """A call's header block without a table."""
    fields = [*HEADERS[:2], (":path", path), *HEADERS[2:], *more]
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields
    )


@asynccontextmanager
async def connected(port: int, *, hello: bool = True, settings: dict[Any, int] | None = None) -> AsyncIterator[Peer]:
    """A client, which has said hello."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Peer(reader, writer)
    try:
        if hello:
            peer.http.initiate_connection()
            if settings:
                peer.http.update_settings(settings)
            peer.flush()
        yield peer
    finally:
        writer.transport.abort()
