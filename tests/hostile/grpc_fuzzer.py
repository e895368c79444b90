"""Plays scripts of HTTP/2 frames over raw sockets, several at a time, and judges the statuses that come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable

from grpc import StatusCode
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
from h2.exceptions import ProtocolError

from tests.hostile.findings import Findings
from tests.hostile.findings import fuzz as findings_of
from tests.hostile.grpc_cases import Call, Script, script
from tests.hostile.server import Target

AT_ONCE = 8
BOUND_S = 20.0
QUIET_S = 0.3
"""How long to listen where no answer need come."""
LOOK_EVERY = 300
SPARE = 8
"""Descriptors that may be open still when all is over."""
NEVER = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS}
_CODES = {code.value[0]: code for code in StatusCode}


def fuzz(target: Target, seconds: float, seed: int = 0) -> Findings:
    """Play the scripts of `seed` and on, until the time is over."""

    async def one(number: int, findings: Findings) -> None:
        await play(target, script(number), findings, number)

    return findings_of(target, one, seconds, seed, at_once=AT_ONCE, look_every=LOOK_EVERY, spare=SPARE)


async def play(target: Target, case: Script, findings: Findings, number: int = -1) -> None:
    """One script; what must not happen is noted under `number`."""
    findings.cases[case.family] += 1
    where = f"seed {number} ({case.family}, {case.end})"
    try:
        async with asyncio.timeout(BOUND_S):
            statuses = await _converse(target, case)
    except TimeoutError:
        findings.answers["hang"] += 1
        findings.bad.append(f"{where}: neither answers nor an end within {BOUND_S} s")
        return
    for code, said in statuses.values() or [(None, "")]:
        findings.answers["closed" if code is None else code.name] += 1
        if code in NEVER:
            findings.bad.append(f"{where}: {code.name} {said[:200]}")
    if case.end == "wait" and all(call.ok for call in case.calls):
        wrong = [found for found in statuses.values() if found[0] is not StatusCode.OK]
        if wrong or len(statuses) < len(case.calls):
            findings.bad.append(f"{where}: expected {len(case.calls)} times OK, got {statuses}"[:400])


class _Client:
    """Enough of a client to send calls and to read their statuses."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._http = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        )
        self._http.initiate_connection()
        self.statuses: dict[int, tuple[StatusCode | None, str]] = {}
        self.open: set[int] = set()
        self._unsent: dict[int, tuple[bytes, bool]] = {}
        self.ended = False
        self.flush()

    def flush(self) -> None:
        """Send what is ready."""
        self._writer.write(self._http.data_to_send())

    def call(self, call: Call) -> None:
        """Begin a call and send what the windows allow."""
        number = self._http.get_next_available_stream_id()
        plain = {"content-type": "application/grpc", "te": "trailers"} | dict(call.headers)
        head = [(":method", "POST"), (":scheme", "http"), (":path", call.path), (":authority", "x"), *plain.items()]
        self._http.send_headers(number, head)
        self._unsent[number] = (call.data, call.whole)
        if call.whole:
            self.open.add(number)
        self._send_on()

    def take(self, data: bytes) -> None:
        """Read frames; a connection that broke the protocol towards us has ended too."""
        try:
            for event in self._http.receive_data(data):
                self._event(event)
            self._send_on()
        except ProtocolError:
            self.ended = True

    def _event(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            self._read(event.stream_id, event.headers)
        elif isinstance(event, StreamEnded | StreamReset):
            self.statuses.setdefault(event.stream_id, (None, ""))
            self.open.discard(event.stream_id)
            self._unsent.pop(event.stream_id, None)
        elif isinstance(event, ConnectionTerminated):
            self.ended = True

    def _read(self, number: int, headers: Iterable[tuple[str, str]]) -> None:
        found = {str(name): str(value) for name, value in headers}
        if "grpc-status" in found:
            self.statuses[number] = (_CODES[int(found["grpc-status"])], found.get("grpc-message", ""))

    def _send_on(self) -> None:
        for number, (data, whole) in list(self._unsent.items()):
            while data:
                room = min(self._http.local_flow_control_window(number), self._http.max_outbound_frame_size)
                if room <= 0:
                    break
                self._http.send_data(number, data[:room])
                data = data[room:]
            self._unsent[number] = (data, whole)
            if not data:
                del self._unsent[number]
                if whole:
                    self._http.end_stream(number)
        self.flush()


async def _converse(target: Target, case: Script) -> dict[int, tuple[StatusCode | None, str]]:
    """Send a script and read the status of every call, or the connection's end."""
    reader, writer = await asyncio.open_connection(target.host, target.grpc_port)
    client = None
    try:
        with contextlib.suppress(OSError):  # the server may have ended it already
            if not case.bare:
                client = _Client(writer)
                for call in case.calls:
                    client.call(call)
            writer.write(case.raw)
            await writer.drain()
            if case.end == "half":
                writer.write_eof()
            if case.end == "wait" and client is not None:
                await _listen(reader, client, QUIET_S if case.raw or not client.open else BOUND_S * 2)
            elif case.end == "half":
                await reader.read()
        if case.end == "reset":
            taken = writer.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return {} if client is None else client.statuses
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)


async def _listen(reader: asyncio.StreamReader, client: _Client, patience_s: float) -> None:
    while not client.ended and (client.open or patience_s < BOUND_S):
        try:
            data = await asyncio.wait_for(reader.read(65_536), patience_s)
        except TimeoutError:
            return
        if not data:
            return
        client.take(data)
