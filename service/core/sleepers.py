"""Which threads of a `Batcher` sleep, and which of them is called when something comes."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from typing import final


@final
class Sleeper:
    """One thread's place to sleep."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()

    def call(self) -> None:
        """Wake the thread, or spare it its next sleep."""
        self._calls.put(None)

    def sleep(self, timeout_s: float | None) -> bool:
        """Sleep until called, for so long at most; returns whether it was called."""
        try:
            self._calls.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True


@final
class Sleepers:
    """Those that wait for any request, and the one that looks when the next batch is due; their owner's lock guards it.

    One is called at a time, when `wanted_rows` rows of one key wait: 0 for any request, infinite for none. `full` is
    how many make a batch full.
    """

    __slots__ = ("_called", "_full", "_idle", "_watching", "wanted_rows")

    def __init__(self, full: int) -> None:
        self._full = full
        self._idle: list[Sleeper] = []
        self._watching: Sleeper | None = None
        self._called: Sleeper | None = None
        self.wanted_rows: float = math.inf

    def rest(self, sleeper: Sleeper, wait_s: float) -> float | None:
        """Note that one is about to sleep; returns for how long: None until it is called."""
        watches = wait_s < math.inf and self._watching is None
        if watches:
            self._watching = sleeper
        else:
            self._idle.append(sleeper)
        self._listen()
        return wait_s if watches else None

    def woke(self, sleeper: Sleeper) -> None:
        """Note that one sleeps no longer, be it that it was called, or its time is over."""
        if self._called is sleeper:
            self._called = None
        elif self._watching is sleeper:
            self._watching = None
        elif sleeper in self._idle:  # a call that crossed the end of its watch
            self._idle.remove(sleeper)
        self._listen()

    def call_one(self) -> None:
        """Wake one, rather one that does not watch."""
        called = self._idle.pop() if self._idle else self._watching
        if called is None:
            return
        if called is self._watching:
            self._watching = None
        self._called = called
        self.wanted_rows = math.inf
        called.call()

    def pass_on(self, is_due: Callable[[], bool]) -> None:
        """A batch was taken and something is left: call another one for it, or for watching over it."""
        if self._called is None and (self._idle or self._watching is not None) and (self._watching is None or is_due()):
            self.call_one()

    def _listen(self) -> None:
        """While one watches, a full batch is worth a call; without, any request is.

        One that was called looks first, for it takes all that came meanwhile.
        """
        if self._called is not None:
            self.wanted_rows = math.inf
        elif self._watching is not None:
            self.wanted_rows = self._full
        else:
            self.wanted_rows = 0 if self._idle else math.inf
