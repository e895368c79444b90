"""The inference service: one object under both wires.

Routes and servicers convert, await a method of it, and convert back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, final

import numpy as np

from service.core.classification import largest
from service.core.errors import NotFound, NotReady
from service.core.health import Health, Part
from service.core.ports import Clock
from service.core.serving import ServedModel
from service.core.types import InferRequest, InferResult, TensorSpec

PLATFORM = "jax_graph"
BACKEND = "jax"

_SORTED_AT_ONCE = 10_000
"""Values that are sorted on the event loop, in less time than a thread takes to be called for."""

EXTENSIONS: tuple[str, ...] = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""The protocol's extensions that are served, by their names in it."""


class ServedModels(Protocol):
    """What the inference service needs of the registry: look-ups that never block."""

    def resolve(self, name: str, version: str | None) -> ServedModel:
        """The version that answers the next request; None: the server's choice. Raises `NotFound` or `NotReady`."""

    def heaviest(self, name: str, version: str | None) -> ServedModel:
        """The version that answers most requests; raises like `resolve`."""

    def names(self) -> list[str]:
        """All models, sorted."""

    def versions(self, name: str) -> list[int]:
        """The ready versions of a model in ascending order; raises `NotFound`."""

    def ready(self) -> bool:
        """Whether everything that shall be loaded is."""

    def degraded(self) -> dict[str, list[str]]:
        """What shall be loaded and failed, by model."""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who serves, and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives; `versions` are the ready ones."""

    name: str
    versions: tuple[int, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@final
class InferenceService:
    """Health, metadata and inference of everything that `registry` serves. Belongs to one event loop.

    `health` tells of what else the server stands on (None: nothing else is watched).
    """

    def __init__(
        self, registry: ServedModels, server_name: str, version: str, clock: Clock, health: Health | None = None
    ) -> None:
        self._registry = registry
        self._metadata = ServerMetadata(server_name, version, EXTENSIONS)
        self._clock = clock
        self._health = health

    def live(self) -> bool:
        """Whether the process answers."""
        return True

    def ready(self) -> bool:
        """Whether it can take traffic."""
        return not self.unready()

    def unready(self) -> list[str]:
        """Why it cannot take traffic; empty when it can."""
        reasons = [] if self._registry.ready() else ["models are loading, or it is draining"]
        return reasons + [f"{part.part}: {part.reason}" for part in self.parts() if part.required and part.reason]

    def parts(self) -> list[Part]:
        """What the server stands on, as it is now."""
        return [] if self._health is None else self._health.parts()

    def degraded(self) -> dict[str, list[str]]:
        """By model what is wanted and failed; it is ready nevertheless: what served before does so still."""
        return self._registry.degraded()

    def server_metadata(self) -> ServerMetadata:
        """Name, version, extensions."""
        return self._metadata

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return self._registry.names()

    def model_metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """Metadata of one version (None: the server's choice); raises `NotFound` or `NotReady`."""
        served = self._registry.heaviest(name, version)
        return ModelMetadata(
            served.name,
            tuple(self._registry.versions(name)),
            PLATFORM,
            served.spec.inputs,
            served.spec.outputs,
        )

    def model_ready(self, name: str, version: str | None = None) -> bool:
        """Whether a version (None: the server's choice) answers; raises `NotFound` when there is no such one."""
        try:
            self._registry.heaviest(name, version)
        except NotReady:
            return False
        return True

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """The version that would answer, of several the heaviest; raises `NotFound` or `NotReady`."""
        return self._registry.heaviest(name, version)

    def check_model(self, name: str) -> None:
        """Raise `NotFound` for a name that is not known."""
        self._registry.versions(name)

    def served(self, name: str | None = None) -> list[ServedModel]:
        """Every ready version of one model, or of all; raises `NotFound` for a name that is not known."""
        if name is not None:
            return [self._registry.resolve(name, str(version)) for version in self._registry.versions(name)]
        served = []
        for each in self._registry.names():
            try:
                served += self.served(each)
            except (NotFound, NotReady):
                # It was unloaded between two look-ups.
                continue
        return served

    def deadline(self, timeout_s: float) -> float:
        """The moment `timeout_s` from now, as `InferRequest.deadline` wants it."""
        return self._clock.monotonic() + timeout_s

    def route(self, name: str, version: str | None) -> ServedModel:
        """The version that answers the next request; raises `NotFound` or `NotReady`."""
        return self._registry.resolve(name, version)

    async def infer(self, request: InferRequest) -> InferResult:
        """Answer `request`; raises `NotFound`, `NotReady` and what `ServedModel.infer` raises."""
        return await self.infer_by(self._registry.resolve(request.model, request.version), request)

    async def infer_by(self, served: ServedModel, request: InferRequest) -> InferResult:
        """Answer `request` by the version that `route` gave; raises what `ServedModel.infer` raises."""
        outputs = await served.infer(
            request.inputs, request.outputs, request.deadline, request.priority, request.received, request.started
        )
        if request.classes:
            outputs = await _classified(served, outputs, request.classes)
        return InferResult(served.name, served.version, outputs, request.id)


async def _classified(
    served: ServedModel, outputs: Mapping[str, np.ndarray], classes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """`outputs`, of which those in `classes` are texts of their largest values; long ones are sorted in a thread."""
    batched = served.spec.max_batch_size > 0
    answer = dict(outputs)
    for name, count in classes.items():
        array = answer[name]
        labels = served.labels.get(name, ())
        sort = partial(largest, array, count, f"{served.label}: output {name!r}", batched=batched, labels=labels)
        answer[name] = sort() if array.size <= _SORTED_AT_ONCE else await asyncio.to_thread(sort)
    return answer
