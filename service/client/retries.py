"""Trying again: pauses that grow and are drawn by chance, so that many clients do not come back at once."""

from __future__ import annotations

import random
import time

from service.client.errors import ClientError

RETRIED = frozenset({0, 429, 502, 503, 504})
"""Statuses after which another try may go well; 0: there was no reply."""

_BASE_S = 0.1
_CAP_S = 10.0


class Patience:
    """How long to try again without anything going well.

    The pause after the n-th failure in a row is drawn evenly from 0 to min(10, 0.1 * 2^n) seconds ("full jitter").
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.went_well()

    def went_well(self) -> None:
        """Begin anew."""
        self._failures = 0
        self._since = time.monotonic()

    def after(self, error: ClientError, also: frozenset[int] = frozenset()) -> None:
        """Pause before another try; raises `error` when its status is not in `RETRIED` or `also`, or it is too late."""
        if error.status not in RETRIED | also or time.monotonic() - self._since > self._seconds:
            raise error
        self._failures += 1
        self.pause()

    def pause(self) -> None:
        """Wait as after a failure."""
        time.sleep(random.uniform(0.0, min(_CAP_S, _BASE_S * 2.0 ** min(self._failures, 30))))
