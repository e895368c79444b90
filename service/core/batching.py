"""Work-conserving batching: one thread per model, an ordered and bounded queue, answers as slices of one output.

An idle model starts a request at once. While it runs, requests wait in order of priority, then of arrival; the next
batch takes what has come, up to `max_batch_size` rows. Everything a caller sees happens on its event loop: the thread
posts one callback per batch, which resolves all futures of the batch and counts them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from service.core.datatypes import datatype
from service.core.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    NotReady,
    Overloaded,
    ServiceError,
    TooLarge,
)
from service.core.ports import Clock, LoadedModel
from service.core.statistics import BatchTimes, Statistics
from service.core.types import ModelSpec, ServingConfig

Tensors = dict[str, np.ndarray]

ALIGNMENT = 64
"""Bytes; XLA reads host memory in place only when it starts at such an address."""

PRIORITY_LEVELS = 3
"""Queues served in turn: priority 1 first, then 0 (the default) and 2, then everything above."""

_SWEEP_S = 0.001
"""Shortest time between two looks for overdue requests."""

_log = logging.getLogger(__name__)


@final
class Pending:
    """One request on its way through a `Batcher`; `future` resolves to its own rows or to its own error."""

    __slots__ = ("arrived", "deadline", "future", "inputs", "level", "rows", "size_bytes")

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        rows: int,
        level: int,
        arrived: float,
        deadline: float,
        future: asyncio.Future[Tensors],
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.level = level
        self.arrived = arrived
        self.deadline = deadline
        self.future = future
        self.size_bytes = sum([array.nbytes for array in inputs.values()])


@dataclass(frozen=True, slots=True)
class _Done:
    """An execution that succeeded: one answer per request."""

    requests: Sequence[Pending]
    answers: Sequence[Tensors]
    rows: int
    padding: int
    times: BatchTimes


class _Buffers:
    """One aligned host buffer per input, as long as the largest bucket; smaller buckets use its head."""

    def __init__(self, spec: ModelSpec) -> None:
        self._sizes = sorted(spec.buckets)
        largest = {
            tensor.name: aligned_zeros((self._sizes[-1], *tensor.shape[1:]), datatype(tensor.datatype).dtype)
            for tensor in spec.inputs
        }
        self._views = [{name: buffer[:size] for name, buffer in largest.items()} for size in self._sizes]
        self._largest = list(largest.values())

    def fill(self, requests: Sequence[Pending], rows: int) -> tuple[int, Tensors]:
        """The smallest bucket that holds `rows`, and its buffers holding the requests' rows, then zeros."""
        index = next(i for i, size in enumerate(self._sizes) if size >= rows)
        views = self._views[index]
        for name, buffer in views.items():
            start = 0
            for pending in requests:
                stop = start + pending.rows
                buffer[start:stop] = pending.inputs[name]
                start = stop
            buffer[start:] = b"" if buffer.dtype.hasobject else 0
        return self._sizes[index], views

    def owns(self, array: np.ndarray) -> bool:
        """Whether `array` may lie in a buffer that the next batch overwrites."""
        return any(np.may_share_memory(array, buffer) for buffer in self._largest)


def aligned_zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros of `shape` whose first byte lies at a multiple of `ALIGNMENT`."""
    if dtype.hasobject:
        return np.full(shape, b"", dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


@final
class Batcher:
    """The queue and the thread of one loaded model.

    The thread owns `loaded` and closes it when it ends. `submit` and `discard` belong to one event loop, the first
    that submits; `close` may be called from anywhere. `label` names the model in messages. `loaded.spec` declares
    fixed sizes except for the leading one; inputs are expected to be validated against it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: ServingConfig,
        clock: Clock,
        *,
        label: str,
        statistics: Statistics,
    ) -> None:
        spec = loaded.spec
        self._loaded = loaded
        self._config = config
        self._clock = clock
        self._label = label
        self._statistics = statistics
        self._limit = spec.max_batch_size
        self._buffers = _Buffers(spec) if spec.max_batch_size else None
        self._delay_s = config.max_queue_delay_us * 1e-6 if spec.max_batch_size else 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        # Below: shared with the thread, under the lock.
        self._lock = threading.Lock()
        self._queues: tuple[OrderedDict[Pending, None], ...] = tuple(OrderedDict() for _ in range(PRIORITY_LEVELS))
        self._waiting = self._waiting_rows = self._waiting_bytes = 0
        self._wanted_rows: float = math.inf
        self._closing = False
        self._running: Sequence[Pending] = ()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"batcher {label}", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests waiting, those being computed not counted."""
        return self._waiting

    @property
    def running(self) -> int:
        """Requests being computed."""
        return len(self._running)

    # On the event loop

    def submit(
        self, inputs: Mapping[str, np.ndarray], rows: int, *, deadline: float = math.inf, priority: int = 0
    ) -> Pending:
        """Queue one validated request of at most `max_batch_size` rows.

        `deadline` is in seconds of the clock. Raises `Overloaded` when the queue is full, `TooLarge` when it could
        never fit, `NotReady` while closing, `DeadlineExceeded` when the time is over already.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        level = 1 if priority == 0 else min(priority, PRIORITY_LEVELS) - 1
        pending = Pending(inputs, rows, level, self._clock.monotonic(), deadline, loop.create_future())
        if pending.arrived >= deadline:
            raise self._late(pending)
        with self._lock:
            self._admit(pending)
            self._queues[level][pending] = None
            if self._waiting_rows >= self._wanted_rows:
                self._wanted_rows = math.inf
                self._wake.put(None)
        if deadline < self._timer_at:
            self._watch(loop, deadline, pending.arrived)
        return pending

    def discard(self, pending: Pending) -> None:
        """Forget a request whose caller went away; one that is being computed runs on for nothing."""
        with self._lock:
            self._remove(pending)
        if pending.future.cancelled():
            self._count("cancelled", pending)

    def _admit(self, pending: Pending) -> None:
        size, config = pending.size_bytes, self._config
        if self._closing:
            raise NotReady(f"{self._label}: it is being unloaded")
        if size > config.max_queue_bytes:
            raise TooLarge(f"{self._label}: expected at most {config.max_queue_bytes} bytes of inputs, got {size}")
        if self._waiting >= config.max_queue_requests or self._waiting_bytes + size > config.max_queue_bytes:
            raise Overloaded(
                f"{self._label}: the queue is full: {self._waiting} requests (at most {config.max_queue_requests}) "
                f"of {self._waiting_bytes} bytes (at most {config.max_queue_bytes}) are waiting"
            )
        self._waiting += 1
        self._waiting_rows += pending.rows
        self._waiting_bytes += size

    def _remove(self, pending: Pending) -> bool:
        """Take a request out of its queue, under the lock; False when it is no longer there."""
        waiting = self._queues[pending.level]
        if pending not in waiting:
            return False
        del waiting[pending]
        self._forget(pending)
        return True

    def _forget(self, pending: Pending) -> None:
        self._waiting -= 1
        self._waiting_rows -= pending.rows
        self._waiting_bytes -= pending.size_bytes

    def _late(self, pending: Pending) -> DeadlineExceeded:
        waited_s = self._clock.monotonic() - pending.arrived
        return DeadlineExceeded(f"{self._label}: the time given to the request was over after {waited_s:.3f} s")

    def _watch(self, loop: asyncio.AbstractEventLoop, deadline: float, now: float) -> None:
        """Look for overdue requests at `deadline`, so that callers get their answer even while the model hangs."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = loop.call_later(max(deadline - now, _SWEEP_S), self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock.monotonic()
        with self._lock:
            known = [*self._running, *(pending for waiting in self._queues for pending in waiting)]
            overdue = [pending for pending in known if pending.deadline <= now]
            for pending in overdue:
                self._remove(pending)
        self._expire(overdue)
        self._timer, self._timer_at = None, math.inf
        earliest = min((pending.deadline for pending in known if pending.deadline > now), default=math.inf)
        if earliest < math.inf:
            self._watch(loop, earliest, now)

    def _expire(self, overdue: Sequence[Pending]) -> None:
        for pending in overdue:
            self._fail(pending, self._late(pending), "deadline")

    def _fail(self, pending: Pending, error: ServiceError, reason: str) -> None:
        """Give a caller its error, unless it has gone or has its answer."""
        if not pending.future.done():
            pending.future.set_exception(error)
            self._count(reason, pending)

    def _count(self, reason: str, pending: Pending) -> None:
        self._statistics.record_failure(reason, self._clock.monotonic() - pending.arrived)

    def _deliver(self, done: _Done) -> None:
        arrivals = []
        for pending, answer in zip(done.requests, done.answers, strict=True):
            if not pending.future.done():
                pending.future.set_result(answer)
                arrivals.append(pending.arrived)
        self._statistics.record_batch(arrivals, done.rows, done.padding, done.times, self._clock.time())

    # On the thread

    def _run(self) -> None:
        try:
            while (requests := self._next()) is not None:
                if requests:
                    self._execute(requests)
                self._running = ()
        finally:
            self._loaded.close()

    def _next(self) -> list[Pending] | None:
        """Wait for the next batch; None when closed and drained."""
        while True:
            with self._lock:
                wait_s = self._patience_s()
                if wait_s <= 0:
                    taken, overdue = self._take()
                    self._running = taken
                    break
                if self._closing:
                    return None
                # Nothing waits: any request wakes the thread. Else it waits for company, up to a full batch.
                self._wanted_rows = 0 if wait_s == math.inf else self._limit
            self._sleep(wait_s)
        if overdue:
            self._post(self._expire, overdue)
        return taken

    def _sleep(self, wait_s: float) -> None:
        try:
            self._wake.get(timeout=None if wait_s == math.inf else wait_s)
        except queue.Empty:
            return

    def _patience_s(self) -> float:
        """How long the next batch may still wait for company: infinite when nothing waits."""
        if not self._waiting:
            return math.inf
        if self._delay_s == 0 or self._closing or self._waiting_rows >= self._limit:
            return 0.0
        oldest = min(next(iter(waiting)).arrived for waiting in self._queues if waiting)
        return oldest + self._delay_s - self._clock.monotonic()

    def _take(self) -> tuple[list[Pending], list[Pending]]:
        """The next batch, and the requests found too late on the way, under the lock."""
        now = self._clock.monotonic()
        taken: list[Pending] = []
        overdue: list[Pending] = []
        rows = 0
        for waiting in self._queues:
            while waiting:
                pending, _ = waiting.popitem(last=False)
                if pending.future.done():
                    self._forget(pending)
                elif pending.deadline <= now:
                    self._forget(pending)
                    overdue.append(pending)
                elif taken and rows + pending.rows > self._limit:
                    waiting[pending] = None
                    waiting.move_to_end(pending, last=False)
                    return taken, overdue
                else:
                    self._forget(pending)
                    taken.append(pending)
                    rows += pending.rows
        return taken, overdue

    def _execute(self, requests: Sequence[Pending]) -> None:
        """Run a batch; when it fails, run its requests one by one, so that a poisoned one fails alone."""
        try:
            self._post(self._deliver, self._compute(requests))
        except Exception as error:
            if len(requests) == 1:
                self._post(self._fail, requests[0], self._failure(error), "execution")
                return
            for pending in requests:
                if not pending.future.done():
                    self._execute([pending])

    def _failure(self, error: Exception) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        _log.error("%s: unplanned failure while computing", self._label, exc_info=error)
        failed = ExecutionFailed(f"{self._label}: the model failed while computing")
        failed.__cause__ = error
        return failed

    def _compute(self, requests: Sequence[Pending]) -> _Done:
        taken = self._clock.monotonic()
        if self._buffers is None:
            inputs = {name: np.require(array, requirements=["C", "A"]) for name, array in requests[0].inputs.items()}
            assembled = self._clock.monotonic()
            answers: list[Tensors] = [self._loaded.run(inputs)]
            computed = self._clock.monotonic()
            return _Done(requests, answers, 1, 0, BatchTimes(taken, assembled, computed, computed))
        rows = sum([pending.rows for pending in requests])
        bucket, inputs = self._buffers.fill(requests, rows)
        assembled = self._clock.monotonic()
        outputs = self._loaded.run(inputs)
        computed = self._clock.monotonic()
        answers = self._split(requests, outputs, bucket, self._buffers)
        return _Done(
            requests, answers, rows, bucket - rows, BatchTimes(taken, assembled, computed, self._clock.monotonic())
        )

    def _split(self, requests: Sequence[Pending], outputs: Tensors, bucket: int, buffers: _Buffers) -> list[Tensors]:
        for name, array in outputs.items():
            if array.shape[:1] != (bucket,):
                raise ExecutionFailed(
                    f"{self._label}: output {name!r}: expected {bucket} rows, got shape {array.shape}"
                )
            if buffers.owns(array):
                # A model may hand an input through; the buffer under it is about to be filled again.
                outputs = {**outputs, name: array.copy()}
        answers = []
        start = 0
        for pending in requests:
            stop = start + pending.rows
            answers.append({name: array[start:stop] for name, array in outputs.items()})
            start = stop
        return answers

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """Run `callback` on the callers' event loop; a loop that is gone has no callers left."""
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not loop.is_closed():
                raise

    # From anywhere

    def close(self, drain_s: float) -> bool:
        """Refuse new requests, compute the waiting ones for up to `drain_s` seconds, fail the rest with `NotReady`.

        Blocks. Returns whether the thread has ended; if not, it ends after the batch it is computing.
        """
        with self._lock:
            self._closing = True
            self._wake.put(None)
        self._thread.join(drain_s)
        with self._lock:
            rest = [pending for waiting in self._queues for pending in waiting]
            for pending in rest:
                self._remove(pending)
        for pending in rest:
            self._post(self._fail, pending, NotReady(f"{self._label}: it was unloaded"), "not_ready")
        return not self._thread.is_alive()
