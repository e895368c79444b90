"""The queue by itself: what is due, what a batch takes, what the bounds count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.core.callers import AwaitingCaller
from service.core.errors import Overloaded, TooLarge
from service.core.request_queue import Pending, RequestQueue
from service.core.types import ServingConfig
from tests.service.core.served import HeldClock

DELAY_S = 10.0


class Filled:
    """A queue of batches of up to 4 rows; time passes only when told."""

    def __init__(self, **config: int) -> None:
        self.clock = HeldClock()
        self.queue = RequestQueue(ServingConfig(**config), 4, self.clock, "model")

    def add(self, key: int, *, rows: int = 1, level: int = 1, deadline: float = math.inf) -> Pending:
        """A request of 8 bytes per row that comes now."""
        inputs = {"x": np.zeros((rows, 1))}
        pending = Pending(
            AwaitingCaller(), inputs, rows, (key,), (key,), level, self.clock.now, deadline, self.clock.now
        )
        self.queue.add(pending)
        return pending

    def due(self, delay_s: float = DELAY_S) -> int | float:
        """The key that is due, or how long until one is."""
        lane, wait_s = self.queue.due(delay_s)
        return wait_s if lane is None else lane.key[0]

    def take(self) -> list[Pending]:
        """The next batch without a delay."""
        lane, _ = self.queue.due(0.0)
        assert lane is not None
        return self.queue.take(lane)[0]


async def test_nothing_is_due_in_an_empty_queue() -> None:
    """There is nothing to wait for, before and after."""
    filled = Filled()
    assert filled.due() == filled.due(0.0) == math.inf
    filled.add(8)
    filled.take()
    assert filled.due() == filled.due(0.0) == math.inf


async def test_key_is_due_when_its_oldest_request_has_waited_long_enough() -> None:
    """The oldest counts whatever its priority; another key's waits on its own."""
    filled = Filled()
    filled.add(8, level=2)
    filled.clock.now += 4
    filled.add(8, level=0)
    filled.add(16, level=0)
    assert filled.due() == 6
    filled.clock.now += 6
    assert filled.due() == 8
    filled.take()
    assert filled.due() == 4


async def test_full_key_is_due_at_once_but_behind_an_older_one_that_is_due() -> None:
    """A batch's worth of rows needs no company; nor does it overtake."""
    filled = Filled()
    filled.add(8)
    filled.clock.now += 1
    filled.add(16, rows=2)
    filled.add(16, rows=2)
    assert filled.due() == 16
    filled.clock.now += 9
    assert filled.due() == 8


async def test_bounds_count_every_key_and_what_leaves_in_any_way() -> None:
    """Requests and bytes of all keys together; taken, removed, overdue and abandoned ones count no longer."""
    filled = Filled(max_queue_requests=4, max_queue_bytes=64)
    with pytest.raises(TooLarge):
        filled.add(8, rows=9)
    removed, gone = filled.add(8), filled.add(16)
    late, kept = filled.add(16, deadline=filled.clock.now), filled.add(16, rows=3)
    with pytest.raises(Overloaded, match="4 requests"):
        filled.add(32)
    assert filled.queue.remove(removed)
    assert not filled.queue.remove(removed)
    with pytest.raises(Overloaded, match="40 bytes"):
        filled.add(32, rows=4)
    gone.settled = True
    lane, _ = filled.queue.due(0.0)
    assert lane is not None
    assert filled.queue.take(lane) == ([kept], [late])
    assert (filled.queue.requests, filled.queue.size_bytes, lane.rows) == (0, 0, 0)
    assert not filled.queue.remove(kept)
    assert list(filled.queue.waiting()) == []


async def test_keys_that_nobody_waits_for_are_forgotten() -> None:
    """However many keys have been asked for, the queue remembers those that wait."""
    filled = Filled()
    for key in range(100):
        filled.add(key)
    for key in range(100):
        assert [pending.key for pending in filled.take()] == [(key,)]
    assert len(filled.queue._lanes) == 1
