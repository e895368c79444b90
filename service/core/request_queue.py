"""The requests of one model that wait: bounded in number, bytes and time, ordered by priority and arrival, by key."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import numpy as np

from service.core.callers import Caller
from service.core.errors import Overloaded, TooLarge
from service.core.open_sizes import Sizes
from service.core.ports import Clock
from service.core.statistics import BatchTimes
from service.core.types import ServingConfig

Tensors = dict[str, np.ndarray]

PRIORITY_LEVELS = 3
"""Queues served in turn: priority 1 first, then 2, then everything above."""

CALM_S = 1.0
"""A version is overloaded until it has refused nobody for so long."""

_NEWEST = 1 / 8
"""Weight of the newest full batch in the measured time of one."""

_UNKNOWN_RETRY_S = 1.0


@final
class Pending:
    """One request on its way through a `Batcher`; `caller` is told its own rows or its own error.

    `sizes` are its open sizes, `key` those it is padded to. `received`, `arrived` (in the queue) and `deadline` are
    seconds of the clock. Once `settled` it has its answer or error, or its caller has gone; `times` are then those of
    the batch that answered it, None when none did.
    """

    __slots__ = (
        "arrived", "caller", "deadline", "inputs", "key", "level", "received", "rows", "settled", "size_bytes", "sizes",
        "times",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        inputs: Mapping[str, np.ndarray],
        rows: int,
        sizes: Sizes,
        key: Sizes,
        level: int,
        arrived: float,
        deadline: float,
        received: float,
    ) -> None:
        self.caller = caller
        self.inputs = inputs
        self.rows = rows
        self.sizes = sizes
        self.key = key
        self.level = level
        self.arrived = arrived
        self.deadline = deadline
        self.received = received
        self.size_bytes = sum([array.nbytes for array in inputs.values()])
        self.settled = False
        self.times: BatchTimes | None = None


@final
class Lane:
    """The waiting requests of one key, one ordered queue per priority."""

    __slots__ = ("key", "levels", "rows")

    def __init__(self, key: Sizes) -> None:
        self.key = key
        self.levels: tuple[OrderedDict[Pending, None], ...] = tuple(OrderedDict() for _ in range(PRIORITY_LEVELS))
        self.rows = 0

    def first(self) -> Pending | None:
        """The oldest of the most urgent requests."""
        for waiting in self.levels:
            if waiting:
                return next(iter(waiting))
        return None

    def oldest_s(self) -> float:
        """When the oldest request came."""
        return min([next(iter(waiting)).arrived for waiting in self.levels if waiting])


@final
class RequestQueue:
    """What waits, bounded by `max_queue_requests`, `max_queue_bytes` and in time; its owner's lock guards every method.

    `limit` is the number of rows in a full batch, 0 when every request is a batch of its own; `instances` of them are
    computed at the same time. `requests`, `rows` and `size_bytes` are those waiting now.

    The bound in time. Once a full batch has been measured (`computed`), a request of priority p is expected to wait

        wait_s = rows that wait with priority p or a more urgent one / (limit * instances) * time of a full batch

    and is refused when that is more than `max_queue_wait_us`, or ends after its deadline. From the first refusal the
    version is overloaded, and the bound is `overload_wait_us`, until it has refused nobody for `CALM_S`: a queue is for
    bursts, and under a load that stays above what can be computed it only adds its length to every answer (CoDel, RFC
    8289, tells the two apart by how long the queue stands). One batch per instance may always wait, so that none idles,
    and two while the version is not overloaded, however long a batch takes.
    """

    def __init__(self, config: ServingConfig, limit: int, clock: Clock, label: str, *, instances: int = 1) -> None:
        self._max_requests = config.max_queue_requests
        self._max_bytes = config.max_queue_bytes
        self._max_wait_s = config.max_queue_wait_us * 1e-6
        self._overload_wait_s = min(config.overload_wait_us * 1e-6, self._max_wait_s)
        self._limit = limit
        self._clock = clock
        self._label = label
        self._at_once = max(limit, 1) * instances
        self._batch_s = self._row_s = 0.0
        self._overloaded_until = -math.inf
        self._lanes: dict[Sizes, Lane] = {}
        self._rows = [0] * PRIORITY_LEVELS
        self.requests = self.size_bytes = 0

    @property
    def rows(self) -> int:
        """Rows waiting."""
        return sum(self._rows)

    @property
    def rows_per_s(self) -> float:
        """What full batches get through, as measured; 0 before the first."""
        return 1 / self._row_s if self._row_s else 0.0

    def computed(self, seconds: float) -> None:
        """Note how long a batch that was computed as a full one took, from when it was taken on."""
        self._batch_s += (seconds - self._batch_s) * (_NEWEST if self._batch_s else 1.0)
        self._row_s = self._batch_s / self._at_once

    def computed_partly(self, seconds: float, rows: int) -> None:
        """Note how long a smaller batch took, as for `rows` rows: a full one takes no longer than several of it.

        After one that hung, what has little time is refused, and there might never be a full one to learn from.
        """
        most_s = seconds * self._limit / rows
        if most_s < self._batch_s:
            self.computed(most_s)

    def overloaded(self, now: float) -> bool:
        """Whether somebody was refused for the time it would have waited, within `CALM_S`."""
        return now < self._overloaded_until

    def check_room(self, rows: int, level: int, now: float, deadline: float = math.inf) -> None:
        """Raise `Overloaded` when a request of so many rows is not to be let in, whatever its size in bytes."""
        if self.requests >= self._max_requests:
            self._overloaded_until = now + CALM_S
            raise self._full()
        row_s = self._row_s
        if not row_s or not self.requests:
            return
        ahead = sum(self._rows[: level + 1])
        wait_s = ahead * row_s
        overloaded = now < self._overloaded_until
        most_s = self._overload_wait_s if overloaded else self._max_wait_s
        if wait_s > most_s and ahead + rows > (self._at_once if overloaded else 2 * self._at_once):
            self._overloaded_until = now + CALM_S
            raise Overloaded(
                f"{self._label}: expected at most {most_s:.3g} s of waiting, {ahead} rows ahead take {wait_s:.3g} s",
                retry_after_s=wait_s,
            )
        if now + wait_s > deadline:
            raise Overloaded(
                f"{self._label}: {ahead} rows ahead take {wait_s:.3g} s, the request's time is over before",
                retry_after_s=wait_s,
            )

    def add(self, pending: Pending) -> int:
        """Put a request behind those of its key and priority; returns the rows that wait with its key.

        Raises `Overloaded` when there is no room, `TooLarge` when the request could never fit.
        """
        size = pending.size_bytes
        if size > self._max_bytes:
            raise TooLarge(f"{self._label}: expected at most {self._max_bytes} bytes of inputs, got {size}")
        self.check_room(pending.rows, pending.level, pending.arrived, pending.deadline)
        if self.size_bytes + size > self._max_bytes:
            raise self._full()
        lane = self._lanes.get(pending.key)
        if lane is None:
            lane = self._lanes[pending.key] = Lane(pending.key)
        lane.levels[pending.level][pending] = None
        lane.rows += pending.rows
        self._rows[pending.level] += pending.rows
        self.requests += 1
        self.size_bytes += size
        return lane.rows

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{self._label}: the queue is full: {self.requests} requests (at most {self._max_requests}) "
            f"of {self.size_bytes} bytes (at most {self._max_bytes}) are waiting",
            retry_after_s=self.rows * self._row_s if self._row_s else _UNKNOWN_RETRY_S,
        )

    def remove(self, pending: Pending) -> bool:
        """Take a request out; False when it is no longer there."""
        lane = self._lanes.get(pending.key)
        if lane is None or pending not in lane.levels[pending.level]:
            return False
        del lane.levels[pending.level][pending]
        self._forget(lane, [pending])
        self._drop_empty(lane)
        return True

    def waiting(self) -> Iterator[Pending]:
        """All requests, in no order."""
        return (pending for lane in self._lanes.values() for waiting in lane.levels for pending in waiting)

    def due(self, delay_s: float) -> tuple[Lane | None, float]:
        """The lane to be computed next; or None, and for how long all may still wait for company (infinite: none does).

        A lane is due when it fills a batch or its oldest request has waited for `delay_s`; of those that are, the one
        with the most urgent request goes first, then the one with the oldest: no key waits for another's later ones.
        """
        if not self.requests:
            return None, math.inf
        if len(self._lanes) == 1 and not delay_s:
            return next(iter(self._lanes.values())), 0.0
        now = self._clock.monotonic() if delay_s else 0.0
        chosen: Lane | None = None
        best, wait_s = (math.inf, math.inf), math.inf
        for lane in self._lanes.values():
            first = lane.first()
            if first is None:
                continue
            left_s = lane.oldest_s() + delay_s - now if delay_s and lane.rows < self._limit else 0.0
            if left_s > 0:
                wait_s = min(wait_s, left_s)
            elif (first.level, first.arrived) < best:
                chosen, best = lane, (first.level, first.arrived)
        return chosen, 0.0 if chosen is not None else wait_s

    def take(self, lane: Lane) -> tuple[list[Pending], list[Pending]]:
        """The next batch of a lane, and the requests found too late on the way.

        In order of priority, then of arrival, until one does not fit; those whose callers have gone are left out.
        """
        now = self._clock.monotonic()
        taken: list[Pending] = []
        overdue: list[Pending] = []
        gone: list[Pending] = []
        rows = 0
        full = False
        for waiting in lane.levels:
            while waiting and not full:
                pending, _ = waiting.popitem(last=False)
                if pending.settled:
                    gone.append(pending)
                elif pending.deadline <= now:
                    overdue.append(pending)
                elif taken and rows + pending.rows > self._limit:
                    full = True
                    waiting[pending] = None
                    waiting.move_to_end(pending, last=False)
                else:
                    taken.append(pending)
                    rows += pending.rows
        self._forget(lane, [*taken, *overdue, *gone] if overdue or gone else taken)
        if len(self._lanes) > 1:
            self._drop_empty(lane)
        return taken, overdue

    def _forget(self, lane: Lane, requests: Sequence[Pending]) -> None:
        rows = size_bytes = 0
        for pending in requests:
            rows += pending.rows
            size_bytes += pending.size_bytes
            self._rows[pending.level] -= pending.rows
        lane.rows -= rows
        self.requests -= len(requests)
        self.size_bytes -= size_bytes

    def _drop_empty(self, lane: Lane) -> None:
        # The last one stays: a model without open sizes has no other.
        if len(self._lanes) > 1 and not any(lane.levels):
            del self._lanes[lane.key]
