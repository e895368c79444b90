"""Some seconds of both fuzzers against one real server, and a test for each thing that they have found."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator

import pytest

from tests.hostile import described, grpc_fuzzer, http_fuzzer
from tests.hostile.findings import GROWTH_BYTES, Findings
from tests.hostile.grpc_cases import END_HEADERS, HEADERS, INFER, RST_STREAM, Call, Script, frame, framed, head, request
from tests.hostile.http_cases import Script as HttpScript
from tests.hostile.http_cases import body, posted
from tests.hostile.server import Target, queue, serving

SECONDS = 10.0
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """One server for all of them."""
    with queue() as settings, serving(settings) as started:
        yield started


def test_http(target: Target):
    """No 5xx, no hang, the server right and as small as before."""
    findings = http_fuzzer.fuzz(target, SECONDS, seed=0)
    assert findings.bad == []
    assert findings.cases.total() > 100


def test_grpc(target: Target):
    """No INTERNAL or UNKNOWN of ours, no hang, the server right and as small as before."""
    findings = grpc_fuzzer.fuzz(target, SECONDS, seed=0)
    assert findings.bad == []
    assert findings.cases.total() > 50


def test_description(target: Target):
    """What OpenAPI allows and forbids, sent by schemathesis: no 5xx, answers as they are described."""
    findings = described.sweep(target, examples=2)
    assert findings.bad == []
    assert findings.cases.total() > 100


def test_reset_flood_cancels_nobody_else(target: Target):
    """Found by the fuzzer: beyond 1000 calls that are opened and reset at once, gRPC cancelled others' calls."""
    reset = struct.pack(">I", 8)
    raw = b"".join(
        frame(HEADERS, END_HEADERS, number, head()) + frame(RST_STREAM, 0, number, reset)
        for number in range(1, 6001, 2)
    )
    flood = Script("resets", raw=raw)
    calls = Script("streams", (Call(INFER, framed(request().SerializeToString()), ok=True),) * 90)
    findings, before = Findings(), target.footprint()

    async def all_at_once() -> None:
        scripts = [flood, calls, flood, calls, calls, flood, calls]
        await asyncio.gather(*(grpc_fuzzer.play(target, each, findings) for each in scripts))

    asyncio.run(all_at_once())
    assert findings.bad == []
    assert findings.answers["OK"] == 4 * 90
    assert target.footprint().rss_bytes - before.rss_bytes < GROWTH_BYTES


def test_refused_request_is_answered_once(target: Target):
    """Found by the fuzzer: a pipelined request behind a broken one wrote to a closed connection, into a traceback."""
    findings = Findings()
    broken = HttpScript("pipelined", (posted(body()) * 3 + b"\0\r\n\r\n" + posted(body()),))

    async def often() -> None:
        await asyncio.gather(*(http_fuzzer.play(target, broken, findings) for _ in range(20)))

    asyncio.run(often())
    assert findings.bad + target.tracebacks() == []
    assert target.right()


@pytest.mark.parametrize("header", [b"Inference-Header-Content-Length: 10", b"Content-Encoding: gzip"])
def test_repeated_header_is_refused(target: Target, header: bytes):
    """A proxy and this server must not read two bodies out of one."""

    async def send() -> bytes:
        reader, writer = await asyncio.open_connection(target.host, target.http_port)
        writer.write(posted(body(), header, header, b"Connection: close"))
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    answer = asyncio.run(send())
    assert answer.startswith(b"HTTP/1.1 400")
    assert header.split(b":")[0].lower() + b" once, got it 2 times" in answer
