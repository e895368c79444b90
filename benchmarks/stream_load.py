"""Load on one gRPC method with streams both ways: every stream sends its next message when the last was answered.

    python benchmarks/stream_load.py ADDRESS FILE STREAMS SECONDS

FILE holds one message with its gRPC prefix. Up to 8 connections share the streams. The figures are one line of JSON.
It costs this process about a third of what the cheapest Python server needs for a message.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import uvloop  # noqa: E402

from benchmarks.http2 import LARGEST_FRAME, Connection, header_block  # noqa: E402

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
CONNECTIONS = 8
PREFIX = 5
ERROR_TAG = 0x0A
"""The first byte of a `ModelStreamInferResponse` that has an error message: field 1, a string."""


class Streams:
    """The streams of one connection."""

    def __init__(self, message: bytes, taken_s: list[float]) -> None:
        self.connection = Connection(self)
        self.problem: str | None = None
        self._message = message
        self._taken_s = taken_s
        self._sent: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self._stopped = False

    def start(self, block: bytes, count: int) -> None:
        """Open the streams and send a message on each."""
        for _ in range(count):
            stream = self.connection.open(block)
            self._sent[stream] = time.perf_counter()
            self.connection.send(stream, self._message)
        self.connection.flush()

    def stop(self) -> None:
        """No more; what ends from now on ends rightly."""
        self._stopped = True
        self.connection.close()

    def data(self, stream: int, payload: bytes) -> None:
        """Answer every whole message with the next one."""
        held = self._partial.pop(stream, b"") + payload
        while len(held) >= PREFIX and len(held) >= (end := PREFIX + int.from_bytes(held[1:PREFIX])):
            if held[PREFIX] == ERROR_TAG:
                self.problem = held[PREFIX:end].decode(errors="replace")
            now = time.perf_counter()
            self._taken_s.append(now - self._sent[stream])
            self._sent[stream] = now
            self.connection.send(stream, self._message)
            held = held[end:]
        if held:
            self._partial[stream] = held

    def headers(self, stream: int, block: bytes, ended: bool) -> None:
        """A stream must not end by itself."""
        if ended:
            self.lost(stream)

    def lost(self, stream: int) -> None:
        """Nor be reset."""
        if not self._stopped:
            self.problem = self.problem or f"stream {stream} ended early {self.connection.goodbye!r}"


async def run(address: str, message: bytes, streams: int, seconds: float) -> dict[str, float]:
    """The figures."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    taken_s: list[float] = []
    connections = [Streams(message, taken_s) for _ in range(min(streams, CONNECTIONS))]
    for each in connections:
        await loop.create_connection(lambda each=each: each.connection, host, int(port))
    for each in connections:
        await asyncio.wait_for(each.connection.ready.wait(), 10)
    started = time.perf_counter()
    for index, each in enumerate(connections):
        each.start(header_block(address, METHOD), len(range(index, streams, len(connections))))
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - started
    for each in connections:
        each.stop()
    problems = [each.problem for each in connections if each.problem]
    if problems or not taken_s:
        raise SystemExit(f"{address}: {problems[0] if problems else 'no message was answered'}")
    p50, p99 = np.percentile(taken_s, [50, 99]) * 1e3
    return {"requests": len(taken_s), "seconds": elapsed, "p50_ms": p50, "p99_ms": p99}


if __name__ == "__main__":
    body = Path(sys.argv[2]).read_bytes()
    if len(body) > LARGEST_FRAME:
        raise SystemExit(f"{sys.argv[2]}: expected at most {LARGEST_FRAME} bytes, got {len(body)}")
    print(json.dumps(uvloop.run(run(sys.argv[1], body, int(sys.argv[3]), float(sys.argv[4])))))
