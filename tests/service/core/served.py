"""Fakes of what the inference path stands on: a model that threads can be held in, a clock, a registry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from service.core.errors import NotFound, NotReady
from service.core.ports import Processing
from service.core.serving import ServedModel
from service.core.types import ModelSpec, ServingConfig, TensorSpec

WAIT_S = 120.0
"""Longest a test waits for an event that must come."""


class RealClock:
    """The machine's time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


class HeldClock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


def spec(
    *,
    max_batch_size: int = 8,
    width: int = 3,
    datatype: str = "FP32",
    buckets: Sequence[int] | None = None,
) -> ModelSpec:
    """One input `x` [-1, width]; outputs `doubled` (as `x`) and `total` FP64 [-1]."""
    sizes = [1]
    while sizes[-1] < max_batch_size:
        sizes.append(min(sizes[-1] * 2, max_batch_size))
    return ModelSpec(
        inputs=(TensorSpec("x", datatype, (-1, width)),),
        outputs=(TensorSpec("doubled", datatype, (-1, width)), TensorSpec("total", "FP64", (-1,))),
        max_batch_size=max_batch_size,
        buckets=tuple(buckets or sizes) if max_batch_size else (),
    )


def double(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the fake model computes, row by row."""
    x = inputs["x"]
    return {"doubled": x + x, "total": x.astype(np.float64).sum(axis=1)}


class HeldModel:
    """A `LoadedModel` that reports each run and waits at `gate`; `compute` may raise.

    `started` counts the runs that have begun; `batches` has a copy of every batch as it came, padding included.
    """

    def __init__(
        self,
        spec: ModelSpec,
        compute: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = double,
        *,
        held: bool = False,
        processing: Processing | None = None,
        warm_up_s: float = 0.0,
    ) -> None:
        self._spec = spec
        self.warm_up_s = warm_up_s
        self.processing = processing
        self._compute = compute
        self.gate = threading.Event()
        if not held:
            self.gate.set()
        self.started = threading.Semaphore(0)
        self.batches: list[dict[str, np.ndarray]] = []
        self.addresses: list[int] = []
        self.closed = threading.Event()

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def partitions(self) -> int:
        """One device."""
        return 1

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        assert not self.closed.is_set(), "run after close"
        self.batches.append({name: array.copy() for name, array in inputs.items()})
        self.addresses.extend(array.ctypes.data for array in inputs.values())
        self.started.release()
        assert self.gate.wait(WAIT_S), "the test never opened the gate"
        return self._compute(inputs)

    def close(self) -> None:
        self.closed.set()


class FakeRegistry:
    """Serves the given versions; names in `loading` exist without a ready version."""

    def __init__(self, *served: ServedModel, loading: Sequence[str] = ()) -> None:
        self._served = {(model.name, model.version): model for model in served}
        self._loading = set(loading)
        self.is_ready = True

    def add(self, model: ServedModel) -> None:
        """Serve one more."""
        self._served[model.name, model.version] = model

    def resolve(self, name: str, version: str | None) -> ServedModel:
        if name in self._loading:
            raise NotReady(f"model {name!r} is loading")
        numbers = self.versions(name)
        if version is None:
            return self._served[name, max(numbers)]
        if not version.isdecimal() or int(version) not in numbers:
            raise NotFound(f"model {name!r} has no version {version!r}")
        return self._served[name, int(version)]

    def heaviest(self, name: str, version: str | None) -> ServedModel:
        return self.resolve(name, version)

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._served} | self._loading)

    def versions(self, name: str) -> list[int]:
        numbers = sorted(number for known, number in self._served if known == name)
        if not numbers and name not in self._loading:
            raise NotFound(f"no model {name!r}")
        return numbers

    def ready(self) -> bool:
        return self.is_ready

    def degraded(self) -> dict[str, list[str]]:
        return {}


def serve(
    model: HeldModel, *, name: str = "fake", version: int = 1, clock: RealClock | HeldClock | None = None, **config: int
) -> ServedModel:
    """`model` as a served version."""
    return ServedModel(name, version, model, ServingConfig(**config), clock or RealClock())
