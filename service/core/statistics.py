"""What a served version has done since it was loaded: counts and times per stage.

Written only on the event loop, one call per batch or failure, so that it needs no lock and costs no microseconds of a
request; metrics and the statistics extension read it when asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

LATENCY_BOUNDS_S: tuple[float, ...] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0
)  # fmt: skip
"""Upper bounds of the histograms in seconds."""


@dataclass(slots=True)
class Duration:
    """How often something happened and how long all of it took together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count `count` occurrences that took `seconds` together."""
        self.count += count
        self.ns += round(seconds * 1e9)


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size (rows asked for, without padding)."""

    assemble: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class BatchTimes:
    """When a batch was taken from the queue, assembled, computed and split; seconds of the monotonic clock.

    `delivering` is when its answers came to the event loop, `delivered` when the last of them was encoded and written.
    `rows` are those of its `requests`, padding not counted.
    """

    taken: float
    assembled: float
    computed: float
    split: float
    delivering: float = 0.0
    delivered: float = 0.0
    rows: int = 0
    requests: int = 0


@dataclass(slots=True)
class Statistics:
    """Totals of one served version.

    `success` and `failure` span a request from when it was received to its answer or error. The stages between:
    `decode` until it is in the queue, `queue` until its batch is taken, `assemble`, `compute` and `split` of that
    batch, `hop` until the event loop has its answers, `encode` of its own answer, written included. All but `encode`,
    which is its share, count what every request of a batch waits for, as the statistics extension wants. `failures`
    counts by reason: `invalid`, `overloaded`, `deadline`, `cancelled`, `execution`, `not_ready`. `padding` counts
    rows added. By `LATENCY_BOUNDS_S`: `latency` counts requests by `success`, `waiting` by `queue`, `computing`
    batches.
    """

    success: Duration = field(default_factory=Duration)
    failure: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    assemble: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)
    hop: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    failures: dict[str, int] = field(default_factory=dict)
    inferences: int = 0
    executions: int = 0
    padding: int = 0
    last_inference: float = 0.0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    waiting: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    computing: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def record_batch(
        self, came: Sequence[tuple[float, float]], rows: int, padding: int, times: BatchTimes, now: float
    ) -> None:
        """Count one execution that answered the requests that `came`: when each was received, and was in the queue.

        `now` is seconds since the epoch.
        """
        count = len(came)
        decoding = waited = served = 0.0
        taken, delivered = times.taken, times.delivered
        latencies, waits, bounds = self.latency, self.waiting, LATENCY_BOUNDS_S
        for received, arrived in came:
            latency = delivered - received
            wait = taken - arrived
            decoding += arrived - received
            waited += wait
            served += latency
            latencies[bisect_left(bounds, latency)] += 1
            waits[bisect_left(bounds, wait)] += 1
        self.success.add(served, count)
        self.decode.add(decoding, count)
        self.queue.add(waited, count)
        self.hop.add((times.delivering - times.split) * count, count)
        self.encode.add(times.delivered - times.delivering, count)
        assemble, compute, split = (
            times.assembled - times.taken,
            times.computed - times.assembled,
            times.split - times.computed,
        )
        self.assemble.add(assemble * count, count)
        self.compute.add(compute * count, count)
        self.split.add(split * count, count)
        self.computing[bisect_left(LATENCY_BOUNDS_S, compute)] += 1
        self.inferences += rows
        self.executions += 1
        self.padding += padding
        self.last_inference = now
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        batch.assemble.add(assemble)
        batch.compute.add(compute)
        batch.split.add(split)

    def stages(self) -> tuple[tuple[str, Duration], ...]:
        """What answered requests went through, by name and in order."""
        return (
            ("decode", self.decode),
            ("queue", self.queue),
            ("assemble", self.assemble),
            ("compute", self.compute),
            ("split", self.split),
            ("hop", self.hop),
            ("encode", self.encode),
        )

    def record_failure(self, reason: str, seconds: float) -> None:
        """Count one request that got no answer after `seconds`."""
        self.failures[reason] = self.failures.get(reason, 0) + 1
        self.failure.add(seconds)
