"""What the families' scripts share: cases are collected, run one after the other and told as a line of JSON each.

Standard library only: it runs in every family's environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

CASE_S = 60


class NotRun(Exception):
    """Why a case cannot be run by this client, on this machine, or against this server on purpose."""


@dataclass(frozen=True)
class Server:
    """Where the server listens, as `host:port`."""

    http: str
    grpc: str


Body = Callable[[Any], Awaitable[None] | None]
Connect = Callable[[Server], Any]


@dataclass(frozen=True)
class Case:
    """`body` gets what the client's `Connect` has made, is awaited if need be, and raises when the case fails."""

    client: str
    name: str
    body: Body


class Cases:
    """The cases of one family, in the order in which they were written."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def case(self, name: str, *clients: str) -> Callable[[Body], Body]:
        """Add the decorated function for each of `clients`."""

        def add(body: Body) -> Body:
            self.cases += [Case(client, name, body) for client in clients]
            return body

        return add

    def main(self, connect: dict[str, Callable[[Server], Any]]) -> None:
        """Run them against the server on the command line; `connect` makes each client's connection."""
        parser = argparse.ArgumentParser()
        parser.add_argument("http")
        parser.add_argument("grpc")
        options = parser.parse_args()
        server = Server(options.http, options.grpc)
        signal.signal(signal.SIGALRM, _too_long)
        for case in self.cases:
            line = {"client": case.client, "case": case.name, **_run(case, connect[case.client], server)}
            print(json.dumps(line), flush=True)


def _run(case: Case, connect: Connect, server: Server) -> dict[str, Any]:
    signal.alarm(CASE_S)
    try:
        asyncio.run(_call(case.body, connect, server))
    except NotRun as reason:
        return {"ok": None, "reason": str(reason)}
    except Exception as error:
        return {"ok": False, "reason": _told(error)}
    finally:
        signal.alarm(0)
    return {"ok": True, "reason": ""}


async def _call(body: Body, connect: Connect, server: Server) -> None:
    async with connect(server) as connection:
        running = body(connection)
        if running is not None:
            await running


def _told(error: Exception) -> str:
    """The error, and the innermost line of a script here that led to it."""
    here = Path(__file__).parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == here]
    frames = [frame for frame in frames if Path(frame.filename).name != "harness.py"] or frames
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}{where}"


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"expected an end within {CASE_S} s")


def same(got: object, expected: object, what: str) -> None:
    """Fail unless both are equal."""
    if got != expected:
        raise AssertionError(f"{what}: expected {expected!r}, got {got!r}")


def contains(text: object, *parts: str) -> None:
    """Fail unless `text` has all `parts`, whatever their case."""
    missing = [part for part in parts if part.lower() not in str(text).lower()]
    if missing:
        raise AssertionError(f"expected a text with {missing}, got {str(text)[:400]!r}")


if __name__ == "__main__":
    sys.exit("run python -m tests.conformance")
