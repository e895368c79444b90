"""Whose turn it is on a device: a few executions at a time, and of the versions that wait the one that had least of it.

Start-time fair queueing (Goyal, Vin, Cheng 1996) with costs that are known afterwards: each version has attained some
compute time, divided by its weight; a device that becomes free goes to whoever waits with the least. A version that
was idle starts at most `CREDIT_S` behind the others: it overtakes a busy one, but cannot save time up. Without a gate a
version with many requests, or many instances, fills the device's own queue, which is first come, first served.
"""

from __future__ import annotations

import math
import queue
import threading
from typing import final

from service.core.ports import Clock

RECENT_S = 1.0
"""A version counts as active for so long after its last execution."""

CREDIT_S = 0.25
"""How far a version that returns may be behind; one that computes batch after batch is away between them, too."""


@final
class Share:
    """What one version has had of a device; `attained_s` is compute time divided by its weight."""

    __slots__ = ("attained_s", "last", "running", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.attained_s = 0.0
        self.last = -math.inf
        self.running = self.waiting = 0


@final
class Turn:
    """One thread's place at the gate; `held` while it may compute. `wake` gets an item when its turn has come."""

    __slots__ = ("held", "share", "since", "wake")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.held = False
        self.since = 0.0
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()


@final
class FairGate:
    """Lets `slots` executions of one device run at the same time. Safe to call from any thread; nothing here blocks.

    While other versions are active, one that computes already leaves the last free slot to them: an execution cannot be
    interrupted, so a version with as many instances as there are slots would have all others wait for its batches.
    """

    def __init__(self, slots: int, clock: Clock) -> None:
        self._now = clock.monotonic
        self._lock = threading.Lock()
        self._free = self._slots = slots
        self._shares: list[Share] = []
        self._waiting: list[Turn] = []
        self._level_s = 0.0

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        return len(self._waiting)

    def join(self, weight: float = 1.0) -> Share:
        """A version's share, to be given back with `part`; of two that both wait, `weight` 2 gets twice the time."""
        share = Share(weight)
        with self._lock:
            self._shares.append(share)
        return share

    def part(self, share: Share) -> None:
        """Forget a version none of whose turns is held or waits."""
        with self._lock:
            self._shares.remove(share)

    def enter(self, turn: Turn) -> bool:
        """Whether `turn` may compute at once; if not it waits: `wake` gets an item when it may, and it is held then."""
        now = self._now()
        share = turn.share
        with self._lock:
            if share.attained_s < self._level_s - CREDIT_S and not (share.running or share.waiting):
                share.attained_s = self._level_s - CREDIT_S
            if self._free and not self._waiting and (not share.running or self._lets(share, now)):
                self._start(turn, now)
                return True
            return self._wait(turn, now)

    def again(self, turn: Turn) -> bool:
        """As `leave` and `enter` in one: who has more to compute is among those that are chosen from."""
        now = self._now()
        share = turn.share
        with self._lock:
            share.attained_s += (now - turn.since) / share.weight
            share.last = turn.since = now
            if not self._waiting:
                self._raise_level(share)
                return True
            turn.held = False
            share.running -= 1
            self._free += 1
            return self._wait(turn, now)

    def leave(self, turn: Turn) -> None:
        """The execution has ended; who is next goes on."""
        now = self._now()
        share = turn.share
        with self._lock:
            turn.held = False
            share.attained_s += (now - turn.since) / share.weight
            share.running -= 1
            share.last = now
            self._free += 1
            if self._waiting:
                self._go_on(now)

    def _wait(self, turn: Turn, now: float) -> bool:
        turn.share.waiting += 1
        self._waiting.append(turn)
        self._go_on(now)
        if turn.held:
            turn.wake.get_nowait()
        return turn.held

    def _start(self, turn: Turn, now: float) -> None:
        share = turn.share
        self._free -= 1
        share.running += 1
        turn.held = True
        turn.since = now
        self._raise_level(share)

    def _raise_level(self, share: Share) -> None:
        if share.attained_s > self._level_s:
            self._level_s = share.attained_s

    def _go_on(self, now: float) -> None:
        while self._free:
            able = [turn for turn in self._waiting if self._lets(turn.share, now)]
            if not able:
                return
            turn = min(able, key=_attained)  # of equals the one that came first
            self._waiting.remove(turn)
            turn.share.waiting -= 1
            self._start(turn, now)
            turn.wake.put(None)

    def _lets(self, share: Share, now: float) -> bool:
        if self._free > 1 or not share.running or self._slots == 1:
            return True
        return not any(
            each is not share and (each.running or each.waiting or now - each.last < RECENT_S) for each in self._shares
        )


def _attained(turn: Turn) -> float:
    return turn.share.attained_s
