"""How late the event loop is: what every request pays besides its own work."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import final

LAG_BOUNDS_S: Sequence[float] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_EVERY_S = 0.25


@final
class LoopLag:
    """Looks four times a second how much later than asked a timer of the loop came; `total_s` is all of it."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LAG_BOUNDS_S) + 1)
        self.total_s = 0.0

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds in seconds and how many looks were not later."""
        bounds = [*map(str, LAG_BOUNDS_S), "+Inf"]
        return list(zip(bounds, accumulate(map(float, self._counts)), strict=True))

    def record(self, lag_s: float) -> None:
        """Count one look."""
        self._counts[bisect_left(LAG_BOUNDS_S, lag_s)] += 1
        self.total_s += lag_s

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.record(max(loop.time() - due, 0.0))
