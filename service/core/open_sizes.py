"""Sizes besides the batch that requests choose: which a request has, which it is padded to, how it is cut back.

A request's batch key is the tuple of the sizes it is padded to, one per `OpenSize` of the model, () where there is
none. Only requests of one key share a batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from service.core.datatypes import datatype
from service.core.errors import ExecutionFailed, InvalidRequest
from service.core.types import ModelSpec, OpenSize, TensorSpec

Sizes = tuple[int, ...]
"""One size per `OpenSize`, in their order."""

_MASK_AXIS = 1  # masks are (batch, size)


@dataclass(frozen=True, slots=True)
class _OpenAxis:
    """An axis of a tensor: the index of its `OpenSize`, and what is written behind the real values."""

    axis: int
    index: int
    pad_value: np.ndarray


@final
class OpenSizes:
    """The open sizes of one model; false for a model without."""

    def __init__(self, spec: ModelSpec) -> None:
        self._declared = spec.open_sizes
        self._asked = [
            [(name, axis) for name, axes in declared.axes.items() for axis in axes] for declared in spec.open_sizes
        ]
        self._axes = {tensor.name: self._open_axes(tensor) for tensor in (*spec.inputs, *spec.masks)}
        self._cuts = {name: tuple(axes.items()) for name, axes in spec.open_axes.items()}

    def __bool__(self) -> bool:
        return bool(self._declared)

    @property
    def largest(self) -> Sizes:
        """The key of the largest requests."""
        return tuple([declared.sizes[-1] for declared in self._declared])

    def sizes_of(self, inputs: Mapping[str, np.ndarray], label: str) -> Sizes:
        """The sizes that a request has chosen; `inputs` have the ranks declared.

        Raises `InvalidRequest`, which starts with `label`, when its axes disagree or the size cannot be answered.
        """
        found = []
        for declared, places in zip(self._declared, self._asked, strict=True):
            first, axis = places[0]
            size = inputs[first].shape[axis]
            for name, other in places[1:]:
                if inputs[name].shape[other] != size:
                    raise InvalidRequest(
                        f"{label}: expected one size for axis {axis} of input {first!r} and axis {other} of input "
                        f"{name!r}, got {size} and {inputs[name].shape[other]}"
                    )
            if size > declared.sizes[-1] if declared.pad_values else size not in declared.sizes:
                raise InvalidRequest(f"{label}: input {first!r}: expected axis {axis} {_known(declared)}, got {size}")
            found.append(size)
        return tuple(found)

    def batch_key(self, sizes: Sizes) -> Sizes:
        """What a request of `sizes` is padded to: of each open size the next that is compiled."""
        return tuple(
            [
                declared.sizes[bisect_left(declared.sizes, size)]
                for declared, size in zip(self._declared, sizes, strict=True)
            ]
        )

    def padded(self, name: str, shape: Sequence[int], key: Sizes) -> tuple[int, ...]:
        """The shape of an input or a mask for a key, other axes as in `shape`."""
        sizes = list(shape)
        for place in self._axes[name]:
            sizes[place.axis] = key[place.index]
        return tuple(sizes)

    def mask_shape(self, name: str, inputs: Mapping[str, np.ndarray], key: Sizes) -> tuple[int, ...]:
        """The shape of the mask for a request of a model that is not batched."""
        index = next(index for index, declared in enumerate(self._declared) if declared.mask == name)
        masked, _ = self._asked[index][0]
        return inputs[masked].shape[0], key[index]

    def pad(self, name: str, buffer: np.ndarray, values: np.ndarray | int, sizes: Sizes) -> None:
        """Put `values` of `sizes` at the front of `buffer` and the pad value behind them.

        `values` are an input's array, or 1 for a mask.
        """
        front: list[slice] = [slice(None)] * buffer.ndim
        for place in self._axes[name]:
            size = sizes[place.index]
            front[place.axis] = slice(size)
            if size < buffer.shape[place.axis]:
                buffer[(slice(None),) * place.axis + (slice(size, None),)] = place.pad_value
        buffer[tuple(front)] = values

    def cut(self, name: str, array: np.ndarray, sizes: Sizes) -> np.ndarray:
        """An output without what stands for padding; contiguous, so a copy where anything is cut off."""
        axes = self._cuts.get(name)
        if axes is None:
            return array
        front: list[slice] = [slice(None)] * array.ndim
        for axis, index in axes:
            front[axis] = slice(sizes[index])
        return np.ascontiguousarray(array[tuple(front)])

    def check_outputs(self, outputs: Mapping[str, np.ndarray], key: Sizes, label: str) -> None:
        """Raise `ExecutionFailed` when an output is not of the key's sizes, where it has open axes."""
        for name, axes in self._cuts.items():
            array = outputs.get(name)
            for axis, index in axes if array is not None else ():
                if array.ndim <= axis or array.shape[axis] != key[index]:  # type: ignore[union-attr]
                    raise ExecutionFailed(
                        f"{label}: output {name!r}: expected size {key[index]} on axis {axis}, got shape {array.shape}"  # type: ignore[union-attr]
                    )

    def _open_axes(self, tensor: TensorSpec) -> tuple[_OpenAxis, ...]:
        dtype = datatype(tensor.datatype).dtype
        found = []
        for index, declared in enumerate(self._declared):
            axes = (_MASK_AXIS,) if declared.mask == tensor.name else declared.axes.get(tensor.name, ())
            value = np.array(declared.pad_values.get(tensor.name, 0), dtype)
            found += [_OpenAxis(axis, index, value) for axis in axes]
        return tuple(found)


def _known(declared: OpenSize) -> str:
    sizes = ", ".join(map(str, declared.sizes))
    return f"of at most {declared.sizes[-1]}" if declared.pad_values else f"to be one of {sizes}"
