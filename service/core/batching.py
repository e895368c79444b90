"""Work-conserving batching: threads that share an ordered and bounded queue, answers as slices of one output.

An idle model starts a request at once. While it runs, requests wait in order of priority, then of arrival; the next
batch takes what has come, up to `max_batch_size` rows of one batch key. Everything a caller sees happens on its event
loop: a thread posts one callback per batch, which gives all callers of the batch their answers and counts them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from service.core.batch_buffers import BatchBuffers, cut, single, split
from service.core.callers import Caller
from service.core.errors import DeadlineExceeded, ExecutionFailed, NotReady, ServiceError
from service.core.fair_gate import FairGate, Turn
from service.core.open_sizes import OpenSizes, Sizes
from service.core.ports import Clock, LoadedModel
from service.core.request_queue import PRIORITY_LEVELS, Lane, Pending, RequestQueue, Tensors
from service.core.sleepers import Sleeper, Sleepers
from service.core.statistics import BatchTimes, Statistics
from service.core.types import ServingConfig

_SWEEP_S = 0.001
"""Shortest time between two looks for overdue requests."""

_REMEMBERED = 64
"""Executions at least whose longest is remembered, and at most twice as many."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Done:
    """An execution that succeeded: one answer per request."""

    requests: Sequence[Pending]
    answers: Sequence[Tensors]
    rows: int
    padding: int
    times: BatchTimes


@final
class _Instance:
    """One thread's own: its partition, its turn there, its sleep, its buffers, what it computes and since when."""

    __slots__ = ("buffers", "gate", "partition", "running", "since", "sleeper", "turn")

    def __init__(self, partition: int, gate: FairGate, turn: Turn, buffers: BatchBuffers | None) -> None:
        self.partition = partition
        self.gate = gate
        self.turn = turn
        self.buffers = buffers
        self.running: Sequence[Pending] = ()
        self.since = math.inf
        self.sleeper = Sleeper()


@final
class Batcher:
    """The queue and the threads of one loaded model: `config.instances` for each of its partitions.

    The threads own `loaded`; the last of them to end closes it. `submit` and `discard` belong to one event loop, the
    first that submits; `close` may be called from anywhere. `label` names the model in messages. Inputs are expected
    to be validated against `loaded.spec`. `gates`, one for each of the devices, say when it may compute (None: always).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: ServingConfig,
        clock: Clock,
        *,
        label: str,
        statistics: Statistics,
        gates: Sequence[FairGate] | None = None,
    ) -> None:
        spec = loaded.spec
        self._loaded = loaded
        self._spec = spec
        self._clock = clock
        self._label = label
        self._statistics = statistics
        self._limit = spec.max_batch_size
        self._open_sizes = OpenSizes(spec)
        self._delay_s = config.max_queue_delay_us * 1e-6 if spec.max_batch_size else 0.0
        self._default_level = min(config.default_priority, PRIORITY_LEVELS) - 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._calling = False
        self._ended = threading.Event()
        # Below: shared with the threads, under the lock.
        self._lock = threading.Lock()
        workers = config.instances * loaded.partitions
        self._queue = RequestQueue(config, self._limit, clock, label, instances=workers)
        self._closing = False
        self._sleepers = Sleepers(self._limit)
        own = [FairGate(config.instances, clock) for _ in range(loaded.partitions)]
        self._gates = own if gates is None else gates[: loaded.partitions]
        self._shares = [gate.join(config.compute_weight) for gate in self._gates]
        self._instances = [self._instance(number % loaded.partitions) for number in range(workers)]
        self._alive = len(self._instances)
        self._longest_s, self._longest_before_s, self._executions = loaded.warm_up_s, 0.0, 0
        self._threads = [
            threading.Thread(target=self._run, args=(instance,), name=f"batcher {label} {number}", daemon=True)
            for number, instance in enumerate(self._instances)
        ]
        self._start()

    def _instance(self, partition: int) -> _Instance:
        buffers = BatchBuffers(self._spec, self._open_sizes) if self._limit else None
        return _Instance(partition, self._gates[partition], Turn(self._shares[partition]), buffers)

    def _start(self) -> None:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # the system has no more of them: those that run end, `loaded` stays the caller's
            with self._lock:
                self._closing = True
                for instance in self._instances:
                    instance.sleeper.call()
            raise

    @property
    def depth(self) -> int:
        """Requests waiting, those being computed not counted."""
        return self._queue.requests

    @property
    def running(self) -> int:
        """Requests being computed."""
        return sum([len(instance.running) for instance in self._instances])

    @property
    def computing_s(self) -> float:
        """For how many seconds the oldest running batch has been computing; 0 when none is."""
        since = min([instance.since for instance in self._instances])
        return 0.0 if since == math.inf else max(self._clock.monotonic() - since, 0.0)

    @property
    def longest_s(self) -> float:
        """How long the longest of the last executions took, in seconds; at first that of the warm-up."""
        return max(self._longest_s, self._longest_before_s)

    @property
    def rows_per_s(self) -> float:
        """What full batches get through, as measured; 0 before the first."""
        return self._queue.rows_per_s

    @property
    def wait_s(self) -> float:
        """How long the rows that wait will take, as measured, in seconds; 0 before the first measurement."""
        rate = self._queue.rows_per_s
        return self._queue.rows / rate if rate else 0.0

    @property
    def queue_bytes(self) -> int:
        """Bytes of inputs that wait."""
        return self._queue.size_bytes

    @property
    def overloaded(self) -> bool:
        """Whether somebody was refused lately because of how long it would have waited."""
        return self._queue.overloaded(self._clock.monotonic())

    @property
    def buffer_bytes(self) -> int:
        """Host memory that batches are assembled in."""
        return sum([instance.buffers.size_bytes for instance in self._instances if instance.buffers is not None])

    # On the event loop

    def check_room(self) -> None:
        """Raise `Overloaded` when a request of one row and no priority would be refused now, before it is decoded."""
        if self._queue.requests:  # read without the lock: at worst one request is decoded for nothing
            self._queue.check_room(1, self._default_level, self._clock.monotonic())

    def submit(
        self,
        caller: Caller,
        inputs: Mapping[str, np.ndarray],
        rows: int,
        sizes: Sizes = (),
        *,
        deadline: float = math.inf,
        priority: int = 0,
        received: float | None = None,
    ) -> Pending:
        """Queue one validated request of at most `max_batch_size` rows and of open `sizes`; `caller` is told the rest.

        `deadline` and `received` (the moment when the request was there, None: now) are in seconds of the clock. Raises
        `Overloaded` when the queue is full, `TooLarge` when it could never fit, `NotReady` while closing,
        `DeadlineExceeded` when the time is over already; the caller is then told nothing.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        level = self._default_level if priority == 0 else min(priority, PRIORITY_LEVELS) - 1
        key = self._open_sizes.batch_key(sizes) if sizes else sizes
        now = self._clock.monotonic()
        pending = Pending(caller, inputs, rows, sizes, key, level, now, deadline, now if received is None else received)
        if now >= deadline:
            raise self._late(pending)
        with self._lock:
            if self._closing:
                raise NotReady(f"{self._label}: it is being unloaded")
            if self._queue.add(pending) >= self._sleepers.wanted_rows and not self._calling:
                self._calling = True
                loop.call_soon(self._call)
        if deadline < self._timer_at:
            self._watch(loop, deadline, now)
        return pending

    def _call(self) -> None:
        """Wake an instance, once all that came in one turn of the event loop is in the queue.

        Called at the first of them it would take that one alone, and compete with the others' decoding.
        """
        self._calling = False
        with self._lock:
            if self._queue.requests and self._sleepers.wanted_rows < math.inf:
                self._sleepers.call_one()

    def discard(self, pending: Pending) -> None:
        """Forget a request whose caller went away; one that is being computed runs on for nothing."""
        if not pending.settled:
            pending.settled = True
            with self._lock:
                self._queue.remove(pending)
            self._count("cancelled", pending)

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
            known = [pending for instance in self._instances for pending in instance.running]
            known += self._queue.waiting()
            overdue = [pending for pending in known if pending.deadline <= now]
            for pending in overdue:
                self._queue.remove(pending)
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
        if not pending.settled:
            pending.settled = True
            try:
                pending.caller.failed(error)
            except Exception:
                _log.exception("%s: a caller could not take its error", self._label)
            self._count(reason, pending)

    def _count(self, reason: str, pending: Pending) -> None:
        self._statistics.record_failure(reason, self._clock.monotonic() - pending.received)

    def _deliver(self, done: _Done) -> None:
        times = done.times
        times.delivering = self._clock.monotonic()
        answered = []
        for pending, answer in zip(done.requests, done.answers, strict=True):
            if not pending.settled:
                pending.times = times
                try:
                    pending.caller.answered(answer)
                except Exception:
                    _log.exception("%s: a caller could not take its answer", self._label)
                    self._fail(pending, ExecutionFailed(f"{self._label}: the answer could not be given"), "execution")
                else:
                    pending.settled = True
                    answered.append(pending)
        times.delivered = self._clock.monotonic()
        came = [(pending.received, pending.arrived) for pending in answered]
        self._statistics.record_batch(came, done.rows, done.padding, times, self._clock.time())

    # On the threads

    def _run(self, instance: _Instance) -> None:
        try:
            while (requests := self._next(instance)) is not None:
                if requests:
                    self._execute(instance, requests)
                instance.running, instance.since = (), math.inf
        finally:
            self._end(instance)

    def _end(self, instance: _Instance) -> None:
        instance.running, instance.since = (), math.inf
        if instance.turn.held:
            instance.gate.leave(instance.turn)
        with self._lock:
            self._alive -= 1
            last = not self._alive
        if last:
            for gate, share in zip(self._gates, self._shares, strict=True):
                gate.part(share)
            try:
                self._loaded.close()
            finally:
                self._ended.set()

    def _next(self, instance: _Instance) -> list[Pending] | None:
        """Wait for the next batch and for the turn to compute it, which is then held; None when closed and drained.

        What is in it is settled last, so whoever waits for a turn gathers company.
        """
        slept = granted = False
        while True:
            with self._lock:
                if slept:
                    self._sleepers.woke(instance.sleeper)
                    slept = False
                lane, wait_s = self._due()
                granted = lane is not None and (granted or self._enter(instance))
                if lane is not None and granted:
                    taken, overdue = self._queue.take(lane)
                    instance.running = taken
                    if self._queue.requests:
                        self._sleepers.pass_on(lambda: self._due()[0] is not None)
                    break
                if lane is None and instance.turn.held:
                    instance.gate.leave(instance.turn)
                if lane is None and self._closing:
                    return None
                timeout_s = self._sleepers.rest(instance.sleeper, wait_s) if lane is None else None
            if lane is not None:
                instance.turn.wake.get()
                granted = True
                continue
            slept = True
            instance.sleeper.sleep(timeout_s)
        if overdue:
            self._post(self._expire, overdue)
        return taken

    def _enter(self, instance: _Instance) -> bool:
        """Whether the device is this instance's now; it may have been so for the batch before."""
        turn = instance.turn
        return instance.gate.again(turn) if turn.held else instance.gate.enter(turn)

    def _due(self) -> tuple[Lane | None, float]:
        return self._queue.due(0.0 if self._closing else self._delay_s)

    # Computing

    def _execute(self, instance: _Instance, requests: Sequence[Pending]) -> None:
        """Run a batch; when it fails, run its requests one by one, so that a poisoned one fails alone."""
        try:
            done = self._compute(instance, requests)
            self._measure(done)
            self._post(self._deliver, done)
        except Exception as error:
            if len(requests) == 1:
                self._post(self._fail, requests[0], self._failure(error), "execution")
                return
            for pending in requests:
                if not pending.settled:
                    self._execute(instance, [pending])

    def _measure(self, done: _Done) -> None:
        seconds = done.times.split - done.times.taken
        with self._lock:
            computed_rows = done.rows + done.padding
            if computed_rows >= self._limit:
                self._queue.computed(seconds)
            else:
                self._queue.computed_partly(seconds, computed_rows)
            self._executions += 1
            if self._executions % _REMEMBERED == 0:  # one that hung for a minute shall not excuse the next for ever
                self._longest_before_s, self._longest_s = self._longest_s, seconds
            elif seconds > self._longest_s:
                self._longest_s = seconds

    def _failure(self, error: Exception) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        _log.error("%s: unplanned failure while computing", self._label, exc_info=error)
        failed = ExecutionFailed(f"{self._label}: the model failed while computing")
        failed.__cause__ = error
        return failed

    def _compute(self, instance: _Instance, requests: Sequence[Pending]) -> _Done:
        taken = instance.since = self._clock.monotonic()
        buffers = instance.buffers
        if buffers is None:
            return self._compute_alone(instance, requests[0], taken)
        rows = sum([pending.rows for pending in requests])
        bucket, inputs = buffers.concatenate(requests, rows)
        assembled = self._clock.monotonic()
        outputs = self._loaded.run(inputs, instance.partition)
        computed = self._clock.monotonic()
        answers = split(requests, outputs, bucket, buffers, self._open_sizes, self._label)
        times = BatchTimes(taken, assembled, computed, self._clock.monotonic(), rows=rows, requests=len(requests))
        return _Done(requests, answers, rows, bucket - rows, times)

    def _compute_alone(self, instance: _Instance, request: Pending, taken: float) -> _Done:
        inputs = single(self._spec, self._open_sizes, request)
        assembled = self._clock.monotonic()
        answer = self._loaded.run(inputs, instance.partition)
        computed = self._clock.monotonic()
        if self._open_sizes:
            self._open_sizes.check_outputs(answer, request.key, self._label)
            answer = cut(answer, request, self._open_sizes)
        times = BatchTimes(taken, assembled, computed, self._clock.monotonic(), rows=1, requests=1)
        return _Done([request], [answer], 1, 0, times)

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

        Blocks. Returns whether all threads have ended; if not, each ends after the batch it is computing.
        """
        with self._lock:
            self._closing = True
            for instance in self._instances:
                instance.sleeper.call()
        ended = self._ended.wait(drain_s)
        with self._lock:
            rest = list(self._queue.waiting())
            for pending in rest:
                self._queue.remove(pending)
        for pending in rest:
            self._post(self._fail, pending, NotReady(f"{self._label}: it was unloaded"), "not_ready")
        for thread in self._threads if ended else ():
            thread.join()
        return ended
