"""Job events as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import orjson

from service.api.following import follow
from service.api.status import failure_of
from service.core.types import JobEvent

_FIRST_S = 0.2
_HEARTBEAT = b": heartbeat\n\n"


async def event_stream(
    events: AsyncIterator[JobEvent], stopping: asyncio.Event, *, heartbeat_s: float
) -> AsyncGenerator[bytes, None]:
    """Encode `events`; a comment goes out after `heartbeat_s` of silence, so that a dead connection is noticed.

    An error that comes at once (an impossible id) is raised here, before a reply has begun; a later one becomes an
    event of type `error`. The stream ends with the job's, or when the server stops; the client may then resume.
    """
    following = follow(events, stopping, silence_s=heartbeat_s, first_s=_FIRST_S)
    try:
        first = await anext(following)
    except StopAsyncIteration:
        return _encoded((), following)
    return _encoded((first,), following)


async def _encoded(
    first: tuple[JobEvent | None, ...], following: AsyncGenerator[JobEvent | None, None]
) -> AsyncGenerator[bytes, None]:
    try:
        for event in first:
            yield encode(event)
        async for event in following:
            yield encode(event)
    except Exception as error:
        yield b"event: error\ndata: " + orjson.dumps({"error": failure_of(error).message}) + b"\n\n"
    finally:
        await following.aclose()


def encode(event: JobEvent | None) -> bytes:
    """One event: its id, its kind, and `{"time", ...}` on one line; None is a comment."""
    if event is None:
        return _HEARTBEAT
    data = orjson.dumps({"time": event.time, **event.data})
    return f"id: {event.id}\nevent: {event.kind}\ndata: ".encode() + data + b"\n\n"
