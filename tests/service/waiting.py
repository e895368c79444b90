"""Bounded polling and a clock that tests hold."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

WAIT_S = 120.0
"""How long tests wait for what must come: never reached, so long enough for a slow machine with much else to do."""


async def wait_until(
    condition: Callable[[], Any | Awaitable[Any]], *, within_s: float = WAIT_S, every_s: float = 0.01
) -> Any:
    """Ask until the answer is true and return it; fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(every_s)


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self.now = start

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
