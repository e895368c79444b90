"""A loaded version as the service serves it: validation against its spec, batching, statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

from service.core.batching import Batcher
from service.core.callers import AwaitingCaller, Caller
from service.core.datatypes import datatype, name_of
from service.core.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, ServiceError
from service.core.fair_gate import FairGate
from service.core.open_sizes import OpenSizes, Sizes
from service.core.ports import Clock, LoadedModel
from service.core.processing import Processor
from service.core.request_queue import Pending
from service.core.statistics import Statistics
from service.core.types import ModelSpec, ServingConfig, TensorSpec

_REASONS: tuple[tuple[type[ServiceError], str], ...] = (
    (InvalidRequest, "invalid"),
    (Overloaded, "overloaded"),
    (DeadlineExceeded, "deadline"),
    (NotReady, "not_ready"),
)


@final
class ServedModel:
    """One version of one model, ready to answer.

    Owns `loaded`: it is closed once the last batch has run. Belongs to one event loop. `statistics` are those to count
    on, `gates` (one for each device) say when it may compute; `load_s` is how long loading took, in seconds. `spec` is
    what clients send and get, `labels` are the texts of an output's classes.
    """

    def __init__(
        self,
        name: str,
        version: int,
        loaded: LoadedModel,
        config: ServingConfig,
        clock: Clock,
        statistics: Statistics | None = None,
        gates: Sequence[FairGate] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.config = config
        self.statistics = Statistics() if statistics is None else statistics
        self.load_s = 0.0
        self.label = f"model {name!r} version {version}"
        own, around = loaded.spec, loaded.processing
        self._processor: Processor | None = None
        if around is not None:
            self._processor = Processor(around, own, clock, label=self.label, max_bytes=config.max_queue_bytes)
        self.labels: Mapping[str, Sequence[str]] = {} if around is None else around.labels
        self.spec: ModelSpec = self._processor.spec if self._processor else own
        self._clock = clock
        self._timeout_s = config.default_timeout_us * 1e-6
        self._outputs = frozenset(tensor.name for tensor in (*self.spec.outputs, *self.spec.intermediates))
        # Without intermediates an answer goes out as the batch gave it.
        self._declared = [tensor.name for tensor in self.spec.outputs] if self.spec.intermediates else None
        self._batched = own.max_batch_size > 0
        self._inputs = own.inputs
        self._buckets = own.buckets
        self._with_rows = [tensor.name for tensor in own.inputs if tensor.shape[:1] == (-1,)]
        self._expected = {tensor.name: (datatype(tensor.datatype).dtype, tensor.shape) for tensor in own.inputs}
        self._rows_of = {
            tensor.name: (datatype(tensor.datatype).dtype, len(tensor.shape), tensor.shape[1:]) for tensor in own.inputs
        }
        self._open_sizes = OpenSizes(own) if own.open_sizes else None
        self._masks = {tensor.name for tensor in own.masks}
        self._batcher = Batcher(loaded, config, clock, label=self.label, statistics=self.statistics, gates=gates)

    @property
    def queue_depth(self) -> int:
        """Requests waiting for a batch."""
        return self._batcher.depth

    @property
    def in_flight(self) -> int:
        """Requests waiting or being computed."""
        preparing = 0 if self._processor is None else self._processor.running
        return self._batcher.depth + self._batcher.running + preparing

    @property
    def computing_s(self) -> float:
        """For how many seconds the oldest running batch has been computing; 0 when none is."""
        return self._batcher.computing_s

    @property
    def longest_s(self) -> float:
        """How long the longest of the last executions took, in seconds; at first that of the warm-up."""
        return self._batcher.longest_s

    @property
    def buffer_bytes(self) -> int:
        """Host memory that batches are assembled in, all instances together."""
        return self._batcher.buffer_bytes

    @property
    def direct(self) -> bool:
        """Whether a request needs nothing around the model, so that `start` can answer it; else use `infer`."""
        return self._processor is None

    @property
    def rows_per_s(self) -> float:
        """What full batches get through, as measured; 0 before the first."""
        return self._batcher.rows_per_s

    @property
    def queue_wait_s(self) -> float:
        """How long what waits will take, as measured, in seconds; 0 before the first measurement."""
        return self._batcher.wait_s

    @property
    def queue_bytes(self) -> int:
        """Bytes of inputs that wait for a batch."""
        return self._batcher.queue_bytes

    @property
    def overloaded(self) -> bool:
        """Whether somebody was refused lately because of how long it would have waited."""
        return self._batcher.overloaded

    def check_room(self) -> None:
        """Raise `Overloaded` when a request of one row and no priority would be refused now; counts the refusal.

        For wires: what is refused need not be decoded. A request that names a priority goes to `start` in any case.
        """
        try:
            self._batcher.check_room()
        except ServiceError as error:
            self._refused(error)
            raise

    def start(
        self,
        caller: Caller,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
        priority: int = 0,
        received: float | None = None,
    ) -> Pending:
        """Queue one request of the model's own inputs; `caller` is told all its outputs, to be `chosen` from.

        `deadline` and `received` (when the request was there; None: now) are in seconds of the clock; the deadline can
        only shorten the model's default. Raises `InvalidRequest`, `Overloaded`, `TooLarge`, `NotReady`,
        `DeadlineExceeded`, and then `caller` is told nothing; later it is told one of the last two or
        `ExecutionFailed`. To free its place when the caller goes away, call `cancel` with what this returns.
        """
        latest = self._clock.monotonic() + self._timeout_s
        try:
            rows, sizes = self.validate(inputs)
            if outputs is not None:
                self._check_outputs(outputs)
            return self._batcher.submit(
                caller,
                inputs,
                rows,
                sizes,
                deadline=latest if deadline is None or deadline > latest else deadline,
                priority=priority,
                received=received,
            )
        except ServiceError as error:
            self._refused(error)
            raise

    def cancel(self, pending: Pending) -> None:
        """Forget a request whose caller went away; nothing happens to one that is settled."""
        self._batcher.discard(pending)

    def chosen(self, answer: Mapping[str, np.ndarray], outputs: Sequence[str] | None) -> Mapping[str, np.ndarray]:
        """Of an answer the `outputs` asked for, in that order (None: all declared ones, in the model's order)."""
        names = self._declared if outputs is None else outputs
        return answer if names is None else {name: answer[name] for name in names}

    async def infer(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
        priority: int = 0,
        received: float | None = None,
        started: Callable[[Pending], None] | None = None,
    ) -> Mapping[str, np.ndarray]:
        """Answer one request as clients send it: the `outputs` asked for, after what is done around the model.

        Takes and raises what `start` does; `started` is told what that returned. Cancelling it frees its place.
        """
        if received is None:
            received = self._clock.monotonic()
        latest = received + self._timeout_s
        if deadline is None or deadline > latest:
            deadline = latest
        own_outputs = outputs
        if self._processor is not None:
            try:
                inputs = await self._processor.before(inputs, deadline)
                if outputs is not None:
                    self._check_outputs(outputs)
            except ServiceError as error:
                self._refused(error)
                raise
            own_outputs = None
        caller = AwaitingCaller()
        pending = self.start(caller, inputs, own_outputs, deadline=deadline, priority=priority, received=received)
        if started is not None:
            started(pending)
        try:
            answer = await caller.future
        except asyncio.CancelledError:
            self.cancel(pending)
            raise
        if self._processor is None:
            return self.chosen(answer, outputs)
        try:
            return await self._processor.after(answer, outputs, deadline)
        except ServiceError as error:
            self._refused(error)
            raise

    def _refused(self, error: ServiceError) -> None:
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "other")
        self.statistics.record_failure(reason, 0.0)

    def validate(self, inputs: Mapping[str, np.ndarray]) -> tuple[int, Sizes]:
        """Check the model's own `inputs`; returns the number of rows (1 for a model not batched) and the open sizes.

        Raises `InvalidRequest` that names the model, the input, and the expected and given datatype or shape.
        """
        rows = -1
        if self._batched and len(inputs) == len(self._rows_of):
            for name, (dtype, rank, row_shape) in self._rows_of.items():
                array = inputs.get(name)
                if array is None or array.dtype != dtype or array.ndim != rank:
                    break
                if array.shape[1:] != row_shape and not _fits(row_shape, array.shape[1:]):
                    break
                if rows < 0:
                    rows = array.shape[0]
                elif array.shape[0] != rows:
                    break
            else:
                if rows <= self.spec.max_batch_size:
                    return rows, () if self._open_sizes is None else self._open_sizes.sizes_of(inputs, self.label)
        self._check_inputs(inputs)
        rows = self._check_rows(inputs)
        return rows, () if self._open_sizes is None else self._open_sizes.sizes_of(inputs, self.label)

    async def close(self, drain_s: float = 30.0) -> bool:
        """Refuse new requests, answer the waiting ones for up to `drain_s` seconds, fail the rest, free the model.

        Returns whether everything has ended; if not, the model is freed after the batch it is computing.
        """
        if self._processor is not None:
            began = self._clock.monotonic()
            await self._processor.drain(drain_s)
            drain_s -= self._clock.monotonic() - began
        return await asyncio.to_thread(self._batcher.close, max(drain_s, 0.0))

    def _check_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name in self._masks.intersection(inputs):
            raise InvalidRequest(f"{self.label}: input {name!r} is filled by the server: expected none, got one")
        unknown = [name for name in inputs if name not in self._expected]
        missing = [name for name in self._expected if name not in inputs]
        if unknown or missing:
            expected = ", ".join(map(repr, self._expected))
            got = ", ".join(repr(name[:128]) for name in inputs) or "none"
            raise InvalidRequest(f"{self.label}: expected the inputs {expected}, got {got}"[:2000])
        for tensor in self._inputs:
            self._check_tensor(tensor, inputs[tensor.name])

    def _check_tensor(self, tensor: TensorSpec, array: np.ndarray) -> None:
        where = f"{self.label}: input {tensor.name!r}"
        if array.dtype != self._expected[tensor.name][0]:
            raise InvalidRequest(f"{where}: expected datatype {tensor.datatype}, got {name_of(array.dtype)}")
        if not _fits(tensor.shape, array.shape):
            raise InvalidRequest(f"{where}: expected shape {list(tensor.shape)}, got {list(array.shape)}")

    def _check_rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        rows = {name: inputs[name].shape[0] for name in self._with_rows}
        if len(set(rows.values())) > 1:
            raise InvalidRequest(f"{self.label}: expected one leading size for all inputs, got {rows}")
        count: int = next(iter(rows.values()), 1)
        if not self._batched:
            # Before it is padded: padding may make a thousand bytes of one.
            if rows and self._buckets and count not in self._buckets:
                known = ", ".join(map(str, self._buckets))
                raise InvalidRequest(f"{self.label}: expected a batch size out of {known}, got {count}")
            return 1
        if count > self.spec.max_batch_size:
            raise InvalidRequest(
                f"{self.label}: expected at most {self.spec.max_batch_size} rows in one request, got {count}"
            )
        return count

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        for name in outputs:
            if name not in self._outputs:
                known = ", ".join(repr(t.name) for t in (*self.spec.outputs, *self.spec.intermediates))
                raise InvalidRequest(f"{self.label}: expected outputs among {known[:1500]}, got {name[:128]!r}")
        if len(set(outputs)) != len(outputs):
            raise InvalidRequest(f"{self.label}: expected each output once, got {list(outputs)}"[:2000])


def _fits(declared: Sequence[int], shape: Sequence[int]) -> bool:
    return len(shape) == len(declared) and all(
        expected in (-1, size) for expected, size in zip(declared, shape, strict=True)
    )
