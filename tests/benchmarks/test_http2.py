"""The load maker's HTTP/2 against the library `h2`."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.settings

from benchmarks.http2 import END_STREAM, Connection, header_block, trailer

MESSAGE = bytes(3000)


class Recorder:
    """Keeps what a connection tells."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.blocks: list[tuple[int, bytes, bool]] = []
        self.lost_streams: list[int] = []

    def data(self, stream: int, payload: bytes) -> None:
        """Keep it."""
        self.pieces.append((stream, payload))

    def headers(self, stream: int, block: bytes, ended: bool) -> None:
        """Keep it."""
        self.blocks.append((stream, block, ended))

    def lost(self, stream: int) -> None:
        """Keep it."""
        self.lost_streams.append(stream)


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += bytes(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self.written = self.written, b""
        return taken


def connected(window: int = 65_535) -> tuple[Connection, Recorder, Wire, h2.connection.H2Connection]:
    """A connection and a server that have agreed; the server's streams take `window` bytes."""
    recorder, wire = Recorder(), Wire()
    connection = Connection(recorder)
    connection.connection_made(wire)
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    for _ in range(2):
        server.receive_data(wire.take())
        connection.data_received(server.data_to_send())
    server.receive_data(wire.take())
    return connection, recorder, wire, server


async def test_a_call_arrives_as_grpc_wants_it() -> None:
    """Headers, the message and the end of the stream; the answer's status is read from its trailers."""
    connection, recorder, wire, server = connected()
    assert connection.ready.is_set()
    stream = connection.open(header_block("host:1", "/service/Method"))
    connection.send(stream, MESSAGE, END_STREAM)
    connection.flush()
    request, data, *rest = server.receive_data(wire.take())
    assert isinstance(request, h2.events.RequestReceived)
    assert isinstance(data, h2.events.DataReceived)
    headers = {bytes(name): bytes(value) for name, value in request.headers or ()}
    assert headers[b":path"] == b"/service/Method"
    assert headers[b"content-type"] == b"application/grpc"
    assert data.data == MESSAGE
    assert any(isinstance(event, h2.events.StreamEnded) for event in rest)
    server.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    server.send_data(stream, b"answer")
    server.send_headers(stream, [("grpc-status", "8")], end_stream=True)
    answer = server.data_to_send()
    for index in range(len(answer)):
        connection.data_received(answer[index : index + 1])
    assert recorder.pieces == [(stream, b"answer")]
    (_, first, open_), (_, last, ended) = recorder.blocks
    assert (open_, ended) == (False, True)
    assert trailer("grpc-status")(last) == "8"
    assert trailer(":status")(first) == "200"


async def test_messages_wait_for_the_servers_windows() -> None:
    """What is sent before is no more than the window; the rest follows when there is room."""
    connection, _, wire, server = connected(window=2 * len(MESSAGE))
    stream = connection.open(header_block("host:1", "/service/Method"))
    for _ in range(3):
        connection.send(stream, MESSAGE)
    connection.flush()
    events = server.receive_data(wire.take())
    assert sum(isinstance(event, h2.events.DataReceived) for event in events) == 2
    server.increment_flow_control_window(len(MESSAGE), stream)
    connection.data_received(server.data_to_send())
    (event,) = server.receive_data(wire.take())
    assert isinstance(event, h2.events.DataReceived)


async def test_resets_and_the_servers_bound_on_streams_are_told() -> None:
    """A reset ends its stream only."""
    connection, recorder, wire, server = connected()
    server.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 7})
    connection.data_received(server.data_to_send())
    assert connection.most == 7
    stream = connection.open(header_block("host:1", "/service/Method"))
    connection.flush()
    server.receive_data(wire.take())
    server.reset_stream(stream)
    connection.data_received(server.data_to_send())
    assert recorder.lost_streams == [stream]
