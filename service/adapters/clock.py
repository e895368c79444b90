"""The real clock."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's own time; the `Clock` of every process but a test."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()
