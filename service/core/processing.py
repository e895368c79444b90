"""What a served version does around its model: what clients send becomes the model's inputs, its outputs the answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar, final

import numpy as np

from service.core.datatypes import datatype, name_of
from service.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, TooLarge
from service.core.ports import Clock, InputStep, Processing
from service.core.types import ModelSpec, TensorSpec

MAX_TEXT_BYTES = 2**20
"""Of one text: splitting it into tokens holds up everything else for a moment."""

_AT_ONCE_BYTES = 16_384
"""Inputs of this size, also after their steps, are worked on in the event loop: a thread takes as long to be called."""

_THREADS = 2
"""Requests of one model that are worked on at the same time; the others wait."""

Tensors = dict[str, np.ndarray]
_Result = TypeVar("_Result")


def on_wire(
    processing: Processing | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What clients send and get, of what a model takes and gives."""
    if processing is None:
        return tuple(inputs), tuple(outputs)
    before, after = processing.inputs, processing.outputs
    sent = tuple(before[tensor.name].spec if tensor.name in before else tensor for tensor in inputs)
    return sent, tuple(
        given for tensor in outputs for given in (after[tensor.name].specs if tensor.name in after else (tensor,))
    )


def sent(tensor: TensorSpec, kind: str, shape: Sequence[int | None]) -> TensorSpec:
    """What clients are told to send in place of a model's input `tensor`, whose steps take such a kind and shape."""
    told = {"whole numbers": "INT64", "texts": "BYTES"}.get(kind, tensor.datatype)
    return TensorSpec(tensor.name, told, tuple(-1 if size is None else size for size in shape))


def answered(tensor: TensorSpec, names: Sequence[str], top_k: int | None) -> tuple[TensorSpec, ...]:
    """What clients get in place of a model's output `tensor`: itself, or its `top_k` largest with their labels."""
    if top_k is None:
        return (tensor,)
    scores, labels = names
    shape = (tensor.shape[0], top_k)
    return TensorSpec(scores, tensor.datatype, shape), TensorSpec(labels, "BYTES", shape)


@final
class Processor:
    """The steps of one served version. Belongs to one event loop.

    `spec` is what clients are told: the model's, with inputs and outputs as they are on the wire. `max_bytes` bounds
    the inputs that wait to be worked on together.
    """

    def __init__(self, processing: Processing, spec: ModelSpec, clock: Clock, *, label: str, max_bytes: int) -> None:
        self._clock = clock
        self._inputs = processing.inputs
        self._outputs = processing.outputs
        self._label = label
        self._max_bytes = max_bytes
        self._max_rows = max(spec.max_batch_size, *spec.buckets, 0)
        # Its threads end with it. One that a caller no longer waits for still counts, so callers cannot get more.
        self._threads = ThreadPoolExecutor(_THREADS, f"processing {label}")
        self._idle = asyncio.Event()
        self._idle.set()
        self.running = 0
        self._bytes = 0
        self._row_bytes = {tensor.name: _row_bytes(tensor, spec) for tensor in spec.inputs}
        inputs, outputs = on_wire(processing, spec.inputs, spec.outputs)
        self.spec = replace(spec, inputs=inputs, outputs=outputs)
        self._declared = [tensor.name for tensor in outputs]
        self._source = {tensor.name: tensor.name for tensor in (*spec.outputs, *spec.intermediates)}
        self._source |= {given.name: name for name, step in self._outputs.items() for given in step.specs}

    async def before(self, inputs: Mapping[str, np.ndarray], deadline: float = math.inf) -> Mapping[str, np.ndarray]:
        """The model's own inputs; what is wrong with others than those that have steps is left to its own check.

        Long ones are worked on in a thread. Raises `InvalidRequest`, `TooLarge`, `Overloaded` when much waits already,
        `DeadlineExceeded` at `deadline` (seconds of the clock); what has not begun by then is not begun.
        """
        if not all(name in inputs for name in self._inputs):
            return inputs
        size = sum(self._check(step, inputs[name]) for name, step in self._inputs.items())
        work = partial(self._prepared, inputs)
        if size <= _AT_ONCE_BYTES:
            return work()
        if size > self._max_bytes:
            raise TooLarge(f"{self._label}: expected at most {self._max_bytes} bytes of inputs, got {size}")
        if self._bytes + size > self._max_bytes:
            raise Overloaded(
                f"{self._label}: {self._bytes} bytes of inputs wait to be preprocessed (at most {self._max_bytes})"
            )
        self.running += 1
        self._bytes += size
        self._idle.clear()
        try:
            return await self._in_thread(work, deadline)
        finally:
            self.running -= 1
            self._bytes -= size
            if self.running == 0:
                self._idle.set()

    async def after(
        self, outputs: Mapping[str, np.ndarray], names: Sequence[str] | None, deadline: float = math.inf
    ) -> Tensors:
        """The outputs that clients get in place of the model's: `names` in that order, None for the declared ones.

        Raises `DeadlineExceeded` as `before`.
        """
        wanted = self._declared if names is None else names
        steps = {source for name in wanted if (source := self._source[name]) in self._outputs}
        work = partial(self._finished, outputs, wanted, steps)
        if sum(outputs[name].nbytes for name in steps) <= _AT_ONCE_BYTES:
            return work()
        return await self._in_thread(work, deadline)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is worked on before the model, for so long at most."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return

    async def _in_thread(self, work: Callable[[], _Result], deadline: float) -> _Result:
        began = self._clock.monotonic()
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        if deadline == math.inf:
            return await done
        try:
            return await asyncio.wait_for(done, max(deadline - began, 0.0))
        except TimeoutError:
            waited_s = self._clock.monotonic() - began
            raise DeadlineExceeded(
                f"{self._label}: the time given to the request was over after {waited_s:.3f} s around the model"
            ) from None

    def _prepared(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        prepared = dict(inputs)
        for name, step in self._inputs.items():
            prepared[name] = step.apply(inputs[name], f"{self._label}: input {name!r}")
        return prepared

    def _finished(self, outputs: Mapping[str, np.ndarray], names: Sequence[str], steps: set[str]) -> Tensors:
        finished = dict(outputs)
        for name in steps:
            finished |= self._outputs[name].apply(outputs[name])
        return {name: finished[name] for name in names}

    def _check(self, step: InputStep, array: np.ndarray) -> int:
        """Bytes of an input or, if more, of what becomes of it; checks datatype, shape and the length of its texts."""
        spec = step.spec
        where = f"{self._label}: input {spec.name!r}"
        if (got := name_of(array.dtype)) not in step.datatypes:
            known = [spec.datatype, *sorted(step.datatypes - {spec.datatype})]
            raise InvalidRequest(f"{where}: expected datatype {' or '.join(known)}, got {got}")
        fits = array.ndim == len(spec.shape) and all(
            expected in (-1, size) for expected, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise InvalidRequest(f"{where}: expected shape {list(spec.shape)}, got {list(array.shape)}")
        if array.ndim and array.shape[0] > self._max_rows > 0:
            raise InvalidRequest(f"{where}: expected at most {self._max_rows} rows in one request, got {len(array)}")
        made = self._row_bytes[spec.name] * (len(array) if array.ndim else 1)
        if not array.dtype.hasobject:
            return max(array.nbytes, made)
        lengths = [len(text) for text in array.ravel().tolist()]
        if lengths and (longest := max(lengths)) > MAX_TEXT_BYTES:
            row = lengths.index(longest)
            raise InvalidRequest(f"{where}: expected at most {MAX_TEXT_BYTES} bytes in a text, got {longest} in {row=}")
        return max(sum(lengths), made)


def _row_bytes(tensor: TensorSpec, spec: ModelSpec) -> int:
    """The most bytes of one row of a model's own input."""
    sizes = list(tensor.shape[1:])
    for each in spec.open_sizes:
        for axis in each.axes.get(tensor.name, ()):
            sizes[axis - 1] = each.sizes[-1]
    return math.prod(sizes) * datatype(tensor.datatype).itemsize if -1 not in sizes else 0
