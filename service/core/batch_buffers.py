"""Host memory that batches are assembled in, and how outputs are split between the requests of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import final

import numpy as np

from service.core.datatypes import datatype
from service.core.errors import ExecutionFailed
from service.core.open_sizes import OpenSizes, Sizes
from service.core.request_queue import Pending, Tensors
from service.core.types import ModelSpec, TensorSpec

ALIGNMENT = 64
"""Bytes; XLA reads host memory in place only when it starts at such an address."""


def aligned_zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros of `shape` whose first byte lies at a multiple of `ALIGNMENT`."""
    if dtype.hasobject:
        return np.full(shape, b"", dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


@final
class BatchBuffers:
    """One aligned stretch of memory per input and mask, as long as its largest bucket.

    Every key and every smaller bucket use its head, so that any number of keys takes the memory of the largest. It
    belongs to one thread: XLA on the CPU reads it in place, and may hand parts of it out again as outputs.
    """

    def __init__(self, spec: ModelSpec, open_sizes: OpenSizes) -> None:
        self._sizes = sorted(spec.buckets)
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._masks = [tensor.name for tensor in spec.masks]
        self._tensors = (*spec.inputs, *spec.masks)
        self._open_sizes = open_sizes
        self._memory = {tensor.name: self._allocate(tensor) for tensor in self._tensors}
        self._views: dict[Sizes, list[Tensors]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum([memory.nbytes for memory in self._memory.values()])

    def concatenate(self, requests: Sequence[Pending], rows: int) -> tuple[int, Tensors]:
        """Join the rows of requests of one key, padded to the key's sizes, and pad them with rows of zeros.

        Returns the smallest bucket that holds `rows`, and inputs and masks of so many rows; the next call overwrites
        them.
        """
        key = requests[0].key
        index = next(i for i, size in enumerate(self._sizes) if size >= rows)
        views = (self._views.get(key) or self._views_of(key))[index]
        plain = not key
        for name in self._inputs:
            buffer = views[name]
            if plain:
                np.concatenate([pending.inputs[name] for pending in requests], out=buffer[:rows])
            else:
                self._pad(name, buffer, requests)
            if rows < len(buffer):
                buffer[rows:] = b"" if buffer.dtype.hasobject else 0
        if self._masks:
            self._mask(requests, views)
        return self._sizes[index], views

    def owns(self, array: np.ndarray) -> bool:
        """Whether `array` may lie in memory that the next batch overwrites."""
        return any(np.may_share_memory(array, memory) for memory in self._memory.values())

    def _pad(self, name: str, buffer: np.ndarray, requests: Sequence[Pending]) -> None:
        start = 0
        for pending in requests:
            stop = start + pending.rows
            if pending.sizes == pending.key:
                buffer[start:stop] = pending.inputs[name]
            else:
                self._open_sizes.pad(name, buffer[start:stop], pending.inputs[name], pending.sizes)
            start = stop

    def _mask(self, requests: Sequence[Pending], views: Tensors) -> None:
        for name in self._masks:
            buffer = views[name]
            start = 0
            for pending in requests:
                stop = start + pending.rows
                self._open_sizes.pad(name, buffer[start:stop], 1, pending.sizes)
                start = stop
            buffer[start:] = 0

    def _allocate(self, tensor: TensorSpec) -> np.ndarray:
        shape = self._open_sizes.padded(tensor.name, tensor.shape, self._open_sizes.largest)
        elements = self._sizes[-1] * math.prod(shape[1:])
        return aligned_zeros((elements,), datatype(tensor.datatype).dtype)

    def _views_of(self, key: Sizes) -> list[Tensors]:
        shapes = {tensor.name: self._open_sizes.padded(tensor.name, tensor.shape, key)[1:] for tensor in self._tensors}
        made = [
            {
                name: self._memory[name][: rows * math.prod(shape)].reshape(rows, *shape)
                for name, shape in shapes.items()
            }
            for rows in self._sizes
        ]
        self._views[key] = made
        return made


def single(spec: ModelSpec, open_sizes: OpenSizes, request: Pending) -> Tensors:
    """Inputs and masks of a request that is computed alone: padded in memory of its own, else as they are."""
    inputs = request.inputs
    if request.sizes == request.key and not spec.masks:
        return {name: np.require(array, requirements=["C", "A"]) for name, array in inputs.items()}
    made: Tensors = {}
    for name, array in inputs.items():
        made[name] = aligned_zeros(open_sizes.padded(name, array.shape, request.key), array.dtype)
        open_sizes.pad(name, made[name], array, request.sizes)
    for tensor in spec.masks:
        shape = open_sizes.mask_shape(tensor.name, inputs, request.key)
        made[tensor.name] = aligned_zeros(shape, datatype(tensor.datatype).dtype)
        open_sizes.pad(tensor.name, made[tensor.name], 1, request.sizes)
    return made


def split(
    requests: Sequence[Pending],
    outputs: Mapping[str, np.ndarray],
    bucket: int,
    buffers: BatchBuffers,
    open_sizes: OpenSizes,
    label: str,
) -> list[Tensors]:
    """Give each request of a batch its own rows of the outputs, in order, cut back to its own sizes.

    Raises `ExecutionFailed` when an output is not of the `bucket` and the key that were computed.
    """
    safe: Tensors = {}
    for name, array in outputs.items():
        if array.shape[:1] != (bucket,):
            raise ExecutionFailed(f"{label}: output {name!r}: expected {bucket} rows, got shape {array.shape}")
        # A model may hand an input through; the memory under it is about to be filled again.
        safe[name] = array.copy() if buffers.owns(array) else array
    answers = _slices(requests, safe)
    if not open_sizes:
        return answers
    open_sizes.check_outputs(safe, requests[0].key, label)
    return [cut(answer, pending, open_sizes) for answer, pending in zip(answers, requests, strict=True)]


def _slices(requests: Sequence[Pending], outputs: Tensors) -> list[Tensors]:
    """Each request's rows. Those of requests of one row, as most are, are walked through: slicing costs thrice that."""
    if outputs and all(pending.rows == 1 for pending in requests):
        walks = [islice(array[:, None], len(requests)) for array in outputs.values()]
        return [dict(zip(outputs, rows, strict=True)) for rows in zip(*walks, strict=True)]
    answers = []
    start = 0
    for pending in requests:
        stop = start + pending.rows
        answers.append({name: array[start:stop] for name, array in outputs.items()})
        start = stop
    return answers


def cut(answer: Tensors, request: Pending, open_sizes: OpenSizes) -> Tensors:
    """A request's answer without what stands for its padding."""
    return {name: open_sizes.cut(name, array, request.sizes) for name, array in answer.items()}
