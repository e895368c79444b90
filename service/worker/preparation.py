"""What a job does to its columns before the model sees them, and what its version does to requests and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine import runtime
from engine.errors import DataError, OptionError
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import Preprocess, Standardize, apply_to_column, column_shape, fit_asked, fit_standardize
from engine.preprocess.specs import Step
from engine.train import ArrayData
from service.core.jobs import JobSpec
from service.core.processing import answered, sent
from service.core.types import TensorSpec

ROWS = 4096
MEMORY_BYTES = 256 * 2**20
"""A column that gets larger than this is written to a file."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A data set's columns as stored, inputs of one number per row as `[rows, 1]` where the model wants that."""

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray


@dataclass(frozen=True, slots=True)
class Preparation:
    """Steps of inputs, and what is done to the output; `target` is the standardisation of its targets."""

    inputs: Preprocess = field(default_factory=Preprocess)
    outputs: Postprocess = field(default_factory=Postprocess)
    target: Standardize | None = None

    def apply(self, columns: Columns, signatures: Sequence[runtime.Signature], work: Path, part: str) -> Columns:
        """The columns as the model takes them; what gets long is written to files in `work`, named after `part`."""
        wanted = {tensor.name: tensor for tensor in signatures}
        changed = dict(columns.inputs)
        for name, steps in self.inputs.inputs.items():
            if steps and name in changed:
                file = work / f"{part}-{name}.npy"
                changed[name] = _prepared(steps, changed[name], np.dtype(wanted[name].dtype), file, f"input {name!r}")
        target = columns.target
        if self.target is not None:
            target = _prepared((self.target,), target, np.dtype(np.float32), work / f"{part}.npy", "target")
        return Columns(changed, target)

    def shapes(self, signatures: Sequence[runtime.Signature]) -> dict[str, tuple[int | None, ...]]:
        """The shape of the numbers that each input takes from its column."""
        return {t.name: column_shape(self.inputs.inputs.get(t.name, ()), t.name, t.shape) for t in signatures}

    def on_wire(
        self, inputs: Sequence[TensorSpec], output: TensorSpec
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What clients of the version send and get, where the model takes `inputs` and gives `output`."""
        taken = []
        for tensor in inputs:
            if self.inputs.inputs.get(tensor.name):
                kind, shape = self.inputs.taken(tensor.name, tuple(None if n == -1 else n for n in tensor.shape))
                taken.append(sent(tensor, kind, shape))
            else:
                taken.append(tensor)
        steps = self.outputs.outputs.get(output.name, OutputSteps())
        return tuple(taken), answered(output, steps.given(output.name), steps.top_k)


def fitted(
    spec: JobSpec,
    before: Preparation,
    columns: Columns,
    signatures: Sequence[runtime.Signature],
    output: runtime.Signature,
) -> Preparation:
    """The steps that a job asks for, fitted on its training rows; else those of the version that it starts from.

    Raises `DataError` for columns that cannot be standardised, `OptionError` for an output whose targets cannot be.
    """
    inputs = before.inputs
    if spec.preprocess is not None:
        wanted = {tensor.name: tensor for tensor in signatures}
        found: dict[str, tuple[Step, ...]] = {}
        for name, asked in spec.preprocess.items():
            chunks = _Chunks(spec, columns.inputs[name])
            found[name] = (_named(name, asked.to_json(), wanted[name], chunks),)
        inputs = Preprocess(found)
    start = before.outputs.outputs.get(output.name, OutputSteps())
    target = start.unstandardize
    if spec.standardize_target:
        target = fit_standardize(_Chunks(spec, columns.target)())
    steps = replace(start, unstandardize=target)
    steps.check(output.shape, output.dtype)
    return Preparation(inputs, _with(before.outputs, output.name, steps), target)


def labelled(preparation: Preparation, name: str, classes: int, labels: Sequence[str]) -> Preparation:
    """With the labels of a target's classes for the output `name`; raises `OptionError` for labels it cannot have."""
    if len(labels) > classes:
        raise OptionError(f"labels: expected at most {classes}, the output's classes; got {len(labels)}")
    steps = replace(preparation.outputs.outputs.get(name, OutputSteps()), labels=tuple(labels))
    return replace(preparation, outputs=_with(preparation.outputs, name, steps))


def _with(outputs: Postprocess, name: str, steps: OutputSteps) -> Postprocess:
    others = {key: value for key, value in outputs.outputs.items() if key != name}
    return Postprocess(others if steps == OutputSteps() else {**others, name: steps})


def _named(name: str, asked: Mapping[str, object], tensor: runtime.Signature, chunks: _Chunks) -> Step:
    try:
        return fit_asked(asked, tensor.shape, chunks)
    except DataError as error:
        raise DataError(f"input {name!r}: {error}") from None


class _Chunks:
    """The training rows of a column, some at a time; the same rows as those that are trained on."""

    def __init__(self, spec: JobSpec, values: np.ndarray) -> None:
        data = ArrayData({"": values}, batch_size=spec.batch_size, seed=spec.seed)
        if spec.validation_fraction > 0:
            data, _ = data.split(spec.validation_fraction, seed=spec.seed)
        self._data = data

    def __call__(self) -> Iterator[np.ndarray]:
        for chunk in self._data.chunks(ROWS):
            yield chunk[""]


def _prepared(steps: tuple[Step, ...], values: np.ndarray, dtype: np.dtype, file: Path, what: str) -> np.ndarray:
    """What steps make of a column, a piece at a time."""

    def piece(start: int) -> np.ndarray:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                made = apply_to_column(steps, np.asarray(values[start : start + ROWS]))
                cast = made.astype(dtype, copy=False)
        except DataError as error:
            raise DataError(f"{what}: rows from {start} on: {error}") from None
        if cast.dtype.kind in "iu" and not np.array_equal(cast, made):
            raise DataError(f"{what}: expected whole numbers that fit {dtype}, got {made.min()} to {made.max()}")
        return cast

    first = piece(0)
    shape = (len(values), *first.shape[1:])
    large = int(np.prod(shape)) * dtype.itemsize > MEMORY_BYTES
    out: np.ndarray = np.lib.format.open_memmap(file, "w+", dtype, shape) if large else np.empty(shape, dtype)
    out[: len(first)] = first
    for start in range(ROWS, len(values), ROWS):
        out[start : start + ROWS] = piece(start)
    if isinstance(out, np.memmap):
        out.flush()
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    return out
