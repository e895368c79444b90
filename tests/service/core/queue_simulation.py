"""One version under a load that comes by chance, in simulated time: the queue is real, the model is its cost."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from service.core.errors import Overloaded
from service.core.request_queue import Pending, RequestQueue
from service.core.types import ServingConfig
from tests.service.core.served import HeldClock

LIMIT = 64


@dataclass
class Outcome:
    """How long the answered ones took, and how many came when."""

    latencies_s: list[float] = field(default_factory=list)
    offered: int = 0
    refused: int = 0

    @property
    def p99_s(self) -> float:
        """Of those answered."""
        return float(np.quantile(self.latencies_s, 0.99))


class Nobody:
    """A caller that is told nothing."""

    def answered(self, outputs: object) -> None:
        raise AssertionError

    def failed(self, error: object) -> None:
        raise AssertionError


def bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def simulate(
    batch_s: Callable[[int], float],
    per_s: float,
    *,
    seconds: float,
    warm_s: float = 1.0,
    instances: int = 1,
    timeout_s: float = 30.0,
    seed: int = 1,
    **config: int,
) -> Outcome:
    """Requests of one row arrive at random, `per_s` on average, for `seconds` after `warm_s` that are not counted.

    A batch padded to n rows takes `batch_s(n)`.
    """
    clock, chance, outcome = HeldClock(), random.Random(seed), Outcome()
    queue = RequestQueue(ServingConfig(**config), LIMIT, clock, "model", instances=instances)
    order = itertools.count()
    start = clock.now
    end = start + warm_s + seconds
    arrival = start + chance.expovariate(per_s)
    running: list[tuple[float, int, float, list[Pending]]] = []
    idle = instances
    while arrival < end or running:
        if running and running[0][0] <= arrival:
            clock.now, _, began, done = heapq.heappop(running)
            idle += 1
            if bucket(len(done)) >= LIMIT:
                queue.computed(clock.now - began)
            outcome.latencies_s += [clock.now - each.arrived for each in done if each.arrived >= start + warm_s]
        else:
            clock.now = arrival
            counted = arrival >= start + warm_s
            outcome.offered += counted
            pending = Pending(Nobody(), {}, 1, (), (), 1, clock.now, clock.now + timeout_s, clock.now)
            try:
                queue.add(pending)
            except Overloaded:
                outcome.refused += counted
            arrival = clock.now + chance.expovariate(per_s)
            if arrival >= end:
                arrival = math.inf
        while idle and queue.requests:
            lane, _ = queue.due(0.0)
            assert lane is not None
            taken, _ = queue.take(lane)
            if taken:
                idle -= 1
                heapq.heappush(running, (clock.now + batch_s(bucket(len(taken))), next(order), clock.now, taken))
    return outcome
