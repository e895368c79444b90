"""Plays scripts over raw sockets, several at a time, and judges what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct

from tests.hostile.findings import Findings
from tests.hostile.findings import fuzz as findings_of
from tests.hostile.http_cases import Script, script
from tests.hostile.server import PATIENCE_S, Target

AT_ONCE = 32
MORE_S = 0.1
"""How long a further answer may take to begin where nobody knows how many there are."""
BOUND_S = PATIENCE_S + 18
"""Longest until an answer or the connection's end, on a machine that has other things to do."""
LOOK_EVERY = 400
SPARE = 4
"""Descriptors that may be open still when all is over."""
ALLOWED_5XX = {501, 503}


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
            statuses, problem = await _converse(target, case)
    except TimeoutError:
        findings.answers["hang"] += 1
        findings.bad.append(f"{where}: neither an answer nor an end within {BOUND_S} s")
        return
    for status in statuses or ["closed"]:
        findings.answers[str(status)] += 1
    if problem:
        findings.bad.append(f"{where}: {problem}")
    wrong = [status for status in statuses if status >= 500 and status not in ALLOWED_5XX]
    if wrong:
        findings.bad.append(f"{where}: answered {wrong}")
    if case.answers is not None and statuses != [200] * case.answers:
        findings.bad.append(f"{where}: expected {case.answers} answers with 200, got {statuses}")


async def _converse(target: Target, case: Script) -> tuple[list[int], str]:
    """Send a script and read every answer; a connection that ends is an answer too."""
    reader, writer = await asyncio.open_connection(target.host, target.http_port)
    try:
        with contextlib.suppress(OSError):  # the server may have ended it already
            for step in case.steps:
                if isinstance(step, bytes):
                    writer.write(step)
                    await writer.drain()
                else:
                    await asyncio.sleep(step)
            if case.end == "half":
                writer.write_eof()
        if case.end in ("wait", "half"):
            return await _replies(reader, case.answers)
        if case.end == "reset":
            taken = writer.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return [], ""
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)


async def _replies(reader: asyncio.StreamReader, wanted: int | None) -> tuple[list[int], str]:
    """The statuses of all replies until the connection ends, and what is wrong with one of them."""
    statuses: list[int] = []
    try:
        while wanted is None or len(statuses) < wanted:
            patience_s = MORE_S if statuses and wanted is None else BOUND_S * 2
            try:
                start = await asyncio.wait_for(reader.read(1), patience_s)
            except TimeoutError:
                return statuses, ""
            if not start:
                return statuses, ""
            first = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *lines = first.removesuffix("\r\n\r\n").split("\r\n")
            version, status, *_ = line.split(" ")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            if version != "HTTP/1.1" or not status.isdigit():
                return statuses, f"no HTTP: {line[:80]}"
            if status == "100":
                continue
            statuses.append(int(status))
            content = await reader.readexactly(int(headers.get("content-length", 0)))
            if problem := _wrong(int(status), headers, content):
                return statuses, problem
    except asyncio.IncompleteReadError as error:
        return statuses, f"an answer broke off: {error.partial[:80]!r}"
    except ConnectionError:
        return statuses, ""
    return statuses, ""


def _wrong(status: int, headers: dict[str, str], content: bytes) -> str:
    if status < 400 or not content:
        return ""
    try:
        said = json.loads(content)
    except ValueError:
        return f"{status} without JSON: {content[:80]!r}"
    if headers.get("content-type") != "application/json" or not isinstance(said.get("error"), str):
        return f"{status} without an error in the protocol's form: {content[:80]!r}"
    return "" if len(content) < 10_000 else f"{status} with {len(content)} bytes"
