"""A loaded version: the port `LoadedModel` over the engine's `Executable`, its signatures as specifications."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

import engine
from engine.bundle import Bundle
from engine.errors import EngineError, ShapeError
from engine.runtime import Executable, Signature
from service.adapters.processing import processing_of
from service.core import datatypes
from service.core.errors import ExecutionFailed, InvalidRequest
from service.core.ports import Processing
from service.core.types import ModelSpec, OpenSize, TensorSpec


def engine_sizes(open_sizes: Sequence[OpenSize]) -> tuple[engine.runtime.OpenSize, ...]:
    """Open sizes as the engine knows them: how values are padded is not its affair, only whether."""
    return tuple(
        engine.runtime.OpenSize(each.axes, each.sizes, padded=bool(each.pad_values), mask=each.mask)
        for each in open_sizes
    )


def tensor_spec(s: Signature) -> TensorSpec:
    """A named array with the protocol's datatype, -1 for open sizes."""
    shape = tuple(-1 if size is None else size for size in s.shape)
    return TensorSpec(s.name, datatypes.name_of(np.dtype(s.dtype)), shape)


@final
class LoadedExecutable:
    """The `LoadedModel` port over an `Executable`; `open_sizes` are those that it was compiled for."""

    def __init__(
        self, executable: Executable, bundle: Bundle, *, open_sizes: Sequence[OpenSize], parameter_bytes: int
    ) -> None:
        self._run: Callable[[Mapping[str, np.ndarray], int], dict[str, np.ndarray]] = executable
        self._close = executable.close
        self._partitions = executable.partitions
        self._warm_up_s = executable.warm_up_s
        reason = executable.mixes_rows
        results = (*executable.outputs, *executable.intermediates)
        self._spec = ModelSpec(
            inputs=tuple(map(tensor_spec, executable.inputs)),
            outputs=tuple(map(tensor_spec, executable.outputs)),
            max_batch_size=0 if reason else executable.buckets[-1],
            buckets=executable.buckets,
            batching_reason=reason or "",
            parameter_bytes=parameter_bytes,
            intermediates=tuple(map(tensor_spec, executable.intermediates)),
            open_sizes=tuple(open_sizes),
            masks=tuple(map(tensor_spec, executable.masks)),
            open_axes={s.name: dict(s.open_axes) for s in results if s.open_axes},
        )
        self._processing = processing_of(bundle, self._spec.inputs, self._spec.outputs, self._spec.open_sizes)

    @property
    def spec(self) -> ModelSpec:
        """What it takes and gives."""
        return self._spec

    @property
    def processing(self) -> Processing | None:
        """What is done around `run`."""
        return self._processing

    @property
    def partitions(self) -> int:
        """How many devices hold it."""
        return self._partitions

    @property
    def warm_up_s(self) -> float:
        """How long its longest first run took, in seconds."""
        return self._warm_up_s

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        """Compute one batch on a device and wait for it; raises `InvalidRequest` for a size that was not compiled."""
        try:
            return self._run(inputs, partition)
        except ShapeError as error:
            raise InvalidRequest(f"inputs: {error}") from None
        except (EngineError, RuntimeError, ValueError, TypeError) as error:
            raise ExecutionFailed("the model failed while computing") from error

    def close(self) -> None:
        """Free the device memory."""
        self._close()
