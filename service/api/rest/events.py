"""Job events as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson

from service.api.status import failure_of
from service.core.errors import ServiceError
from service.core.types import JobEvent

_FIRST_S = 0.2
_HEARTBEAT = b": heartbeat\n\n"


async def event_stream(
    events: AsyncIterator[JobEvent], stopping: asyncio.Event, *, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Encode `events`; a comment goes out after `heartbeat_s` of silence, so that a dead connection is noticed.

    An error that comes at once (an impossible id) is raised here, before a reply has begun; a later one becomes an
    event of type `error`. The stream ends with the job's, or when the server stops; the client may then resume.
    """
    following: asyncio.Future[JobEvent] = asyncio.ensure_future(_next(events))
    await asyncio.wait({following}, timeout=_FIRST_S)
    if following.done() and isinstance(error := following.exception(), ServiceError):
        raise error
    return _encoded(events, following, stopping, heartbeat_s)


async def _encoded(
    events: AsyncIterator[JobEvent],
    following: asyncio.Future[JobEvent],
    stopping: asyncio.Event,
    heartbeat_s: float,
) -> AsyncIterator[bytes]:
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {following, stopped}
            await asyncio.wait(waiting, timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                event = following.result()
                following = asyncio.ensure_future(_next(events))
                yield encode(event)
            elif stopped.done():
                return
            else:
                yield _HEARTBEAT
    except _End:
        return
    except Exception as error:
        yield b"event: error\ndata: " + orjson.dumps({"error": failure_of(error).message}) + b"\n\n"
    finally:
        stopped.cancel()
        following.cancel()
        await asyncio.gather(stopped, following, return_exceptions=True)
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class _End(Exception):
    """The job has ended; a future cannot carry StopAsyncIteration out of a coroutine cleanly."""


async def _next(events: AsyncIterator[JobEvent]) -> JobEvent:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _End from None


def encode(event: JobEvent) -> bytes:
    """One event: its id, its kind, and `{"time", ...}` on one line."""
    data = orjson.dumps({"time": event.time, **event.data})
    return f"id: {event.id}\nevent: {event.kind}\ndata: ".encode() + data + b"\n\n"
