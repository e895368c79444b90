"""A job's events for a wire: followed until the job ends or the server stops, with a sign of life in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from service.core.types import JobEvent


async def follow(
    events: AsyncIterator[JobEvent], stopping: asyncio.Event, *, silence_s: float, first_s: float | None = None
) -> AsyncGenerator[JobEvent | None, None]:
    """Yield `events`, and None whenever `silence_s` (before the first one: `first_s`) pass without one.

    Ends with them, or when `stopping` is set. Errors of `events` are raised. Closing it closes `events`.
    """
    stopped = asyncio.ensure_future(stopping.wait())
    following = asyncio.ensure_future(_next(events))
    wait_s = silence_s if first_s is None else first_s
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {following, stopped}
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            wait_s = silence_s
            if following.done():
                event = following.result()
                if event is None:
                    return
                following = asyncio.ensure_future(_next(events))
                yield event
            elif stopped.done():
                return
            else:
                yield None
    finally:
        stopped.cancel()
        following.cancel()
        await asyncio.gather(stopped, following, return_exceptions=True)
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _next(events: AsyncIterator[JobEvent]) -> JobEvent | None:
    """The next event, None at the end: a task cannot carry StopAsyncIteration."""
    return await anext(events, None)
