"""What a job trains: the model of a graph or of a stored version, and the state it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import engine
from engine import bundle
from engine.bundle import Bundle, FunctionProgram
from engine.errors import CheckpointError, DataError
from engine.model.state import flatten, unflatten
from engine.train import checkpoint
from engine.train.freezing import freeze, unfreeze
from service.core.jobs import JobSpec
from service.core.types import Json
from service.worker.preparation import Preparation
from service.worker.protocol import TrainerJob


class Origin:
    """The model of a job, with the job's precision, and what travels with it into the new version."""

    def __init__(self, job: TrainerJob, spec: JobSpec) -> None:
        """Raises `BundleError` for a version that cannot be read, `EngineError` for a graph."""
        self._job = job
        self._spec = spec
        self._bundle: Bundle | None = None
        self._graph: dict[str, Json] = {}
        if job.start_bundle is not None:
            self._bundle = _read(Path(job.start_bundle))
            model = self._bundle.model
        else:
            self._graph = dict(spec.graph if spec.start is None else spec.start.graph or {})  # type: ignore[arg-type]
            model = bundle.graph_from_json(self._graph)
        self.model = model if spec.precision is None else engine.apply_policy(model, spec.precision)

    @property
    def functions(self) -> Sequence[FunctionProgram]:
        """Losses and metrics that travel with the model."""
        return () if self._bundle is None else tuple(self._bundle.functions.values())

    @property
    def preparation(self) -> Preparation:
        """What the version that it starts from does to its inputs and outputs."""
        return Preparation() if self._bundle is None else Preparation(self._bundle.preprocess, self._bundle.postprocess)

    @property
    def serving(self) -> dict[str, Json]:
        """How the new version is served: as the job says, else as the version that it starts from."""
        if self._spec.serving is not None:
            return dict(self._spec.serving)
        return {} if self._bundle is None else dict(self._bundle.serving)

    def state(self) -> engine.ModelState:
        """Parameters of the seed, the version or the other job, with everything frozen that shall be.

        Raises `DataError` for another job's checkpoint that cannot be read, `OptionError` for a pattern that fits
        nothing.
        """
        if self._bundle is not None:
            state = self._bundle.state if self._spec.precision is None else _cast(self._bundle.state, self.model)
        else:
            state = bundle.marked(engine.build(self.model, mode="train")[0](seed=self._spec.seed), self._graph)
        if self._job.start_checkpoint is not None:
            try:
                state = checkpoint.restore_model(self._job.start_checkpoint, state)
            except CheckpointError as error:  # reading it again would not help
                raise DataError(f"start: {error}") from error
        before = () if self._spec.start is None else self._spec.start.marks
        for frozen, unfrozen in (*before, (self._spec.freeze, self._spec.unfreeze)):
            state = freeze(unfreeze(state, unfrozen), frozen)
        return state


def _cast(state: engine.ModelState, model: engine.Model) -> engine.ModelState:
    """The state with its parameters in the types in which a model keeps them: another policy may have others."""
    layers = bundle.check_size(model)
    types = {f"{layer.name}.{name}": leaf.dtype for layer in layers for name, leaf in layer.params.items()}
    cast = {path: np.asarray(leaf).astype(types[path]) for path, leaf in flatten(state.parameters)}
    return dataclasses.replace(state, parameters=unflatten(cast))


def _read(path: Path) -> Bundle:
    """A version of the store, which was checked when it came; so its size is no reason to refuse it."""
    size, limits = path.stat().st_size, bundle.DEFAULT_LIMITS
    roomy = dataclasses.replace(
        limits, bundle_bytes=max(limits.bundle_bytes, size), parameter_bytes=max(limits.parameter_bytes, size)
    )
    return bundle.read(path, limits=roomy, trusted=True)
