"""Open-loop load: requests leave by a schedule made beforehand (Poisson), however long answers take.

    python benchmarks/open_loop.py '{"wire": "http-binary", "address": "127.0.0.1:8000", ...}'

The argument is a `Plan` as JSON; a `Tally` is printed as JSON. Latency counts from when a request was to leave, so what
waits for a free connection or for this process waits on the clock. The event loop's timer is good to a millisecond.
Requests are made beforehand and sockets are raw: one costs this process about 20 us.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import uvloop  # noqa: E402

from benchmarks.open_loop_wires import GrpcClient, HttpClient  # noqa: E402

TICK_S = 0.001


@dataclass(frozen=True)
class Plan:
    """What to send: `rate` requests a second for `seconds`, after `settle_s` of the same that do not count."""

    wire: str
    address: str
    path: str
    body: str
    headers: list[str]
    rate: float
    seconds: float
    settle_s: float
    deadline_s: float
    seed: int


@dataclass(frozen=True)
class Tally:
    """What came of it. `good` were answered within the deadline; p50 and p99 are those of all that were answered.

    `late_p99_ms` is how long after their time requests left: a load maker at its limit shows here.
    """

    offered_per_s: float
    good_per_s: float
    answered: int
    shed: int
    failed: int
    unanswered: int
    p50_ms: float | None
    p99_ms: float | None
    late_p99_ms: float
    client_cpu_share: float


class Client(Protocol):
    """Sends requests, each as soon as a connection is free; `done` is told the index, the time and the outcome."""

    async def connect(self, done: Callable[[int, str], None], left: Callable[[int], None]) -> None:
        """Open the first connections."""

    def send(self, index: int) -> None:
        """Ask once more."""

    def flush(self) -> None:
        """All of this tick were asked."""

    def close(self) -> None:
        """Drop all connections."""


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, client: Client) -> None:
        self._plan, self._client = plan, client
        generator = np.random.default_rng(plan.seed)
        count = int(plan.rate * (plan.settle_s + plan.seconds) * 1.5) + 100
        due = np.cumsum(generator.exponential(1 / plan.rate, count))
        self._due_s: list[float] = due[due < plan.settle_s + plan.seconds].tolist()
        self._left_s = [0.0] * len(self._due_s)
        self._done_s = [0.0] * len(self._due_s)
        self._outcomes = [""] * len(self._due_s)
        self._open = len(self._due_s)
        self._ended = asyncio.Event()

    async def go(self) -> Tally:
        """Send everything, wait for what is still open as long as the deadline and a second more, and count."""
        await self._client.connect(self._done, self._left)
        cpu_s, self._start = time.process_time(), time.perf_counter()
        index = 0
        while index < len(self._due_s):
            now = time.perf_counter() - self._start
            while index < len(self._due_s) and self._due_s[index] <= now:
                self._client.send(index)
                index += 1
            self._client.flush()
            await asyncio.sleep(TICK_S)
        cpu_share = (time.process_time() - cpu_s) / (time.perf_counter() - self._start)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), self._plan.deadline_s + 1)
        tally = self._tally(cpu_share)
        self._client.close()
        return tally

    def _left(self, index: int) -> None:
        self._left_s[index] = time.perf_counter() - self._start

    def _done(self, index: int, outcome: str) -> None:
        self._done_s[index] = time.perf_counter() - self._start
        self._outcomes[index] = outcome
        self._open -= 1
        if not self._open:
            self._ended.set()

    def _tally(self, cpu_share: float) -> Tally:
        first = int(np.searchsorted(self._due_s, self._plan.settle_s))
        due, done, left = (np.array(each[first:]) for each in (self._due_s, self._done_s, self._left_s))
        outcomes = np.array(self._outcomes[first:])
        counts = Counter(outcomes.tolist())
        taken_s = (done - due)[outcomes == "ok"]
        p50, p99 = (np.percentile(taken_s, [50, 99]) * 1e3).tolist() if len(taken_s) else (None, None)
        return Tally(
            offered_per_s=len(due) / self._plan.seconds,
            good_per_s=int((taken_s <= self._plan.deadline_s).sum()) / self._plan.seconds,
            answered=counts["ok"],
            shed=counts["shed"],
            failed=counts["failed"],
            unanswered=counts[""],
            p50_ms=p50,
            p99_ms=p99,
            late_p99_ms=float(np.percentile((left - due)[left > 0], 99)) * 1e3 if (left > 0).any() else 0.0,
            client_cpu_share=cpu_share,
        )


def main() -> None:
    """Read the plan, run it, print the tally."""
    plan = Plan(**json.loads(sys.argv[1]))
    body = Path(plan.body).read_bytes()
    client: Client
    if plan.wire == "grpc":
        client = GrpcClient(plan.address, plan.path, body)
    else:
        client = HttpClient(plan.address, plan.path, body, plan.headers)
    print(json.dumps(asdict(uvloop.run(Run(plan, client).go()))))


if __name__ == "__main__":
    main()
