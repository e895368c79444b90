"""How long to wait before another try: exponential back-off, spread by jitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """After the n-th failure between one half and the whole of $\\min(cap, base \\cdot 2^{n-1})$ seconds.

    `chance` draws from [0, 1).
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    chance: Callable[[], float] = random.random

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after so many failures, of which there is at least one."""
        doublings = min(max(failures, 1) - 1, 60)
        return min(self.cap_s, self.base_s * 2.0**doublings) * (0.5 + 0.5 * self.chance())


DEFAULT_BACKOFF = Backoff()
"""Between a job's crashes."""

AWAY = Backoff(base_s=0.2, cap_s=2.0)
"""Between calls to a server that is away: quick at first, and never all clients at once."""
