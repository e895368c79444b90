"""The engine's preprocessing and postprocessing behind the ports `InputStep` and `OutputStep`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from engine.bundle import Bundle
from engine.errors import DataError, OptionError
from engine.model.model import Model
from engine.postprocess import OutputSteps, largest
from engine.precision import dtype_of
from engine.preprocess import OneHot, Preprocess, Vocabulary, check_asked
from service.core.datatypes import DATATYPES, datatype
from service.core.errors import InvalidModel, InvalidRequest, Problem
from service.core.ports import InputStep, OutputStep, Processing
from service.core.processing import answered, sent
from service.core.types import Json, OpenSize, TensorSpec

_NUMBERS = frozenset(DATATYPES) - {"BYTES"}
_WHOLE = frozenset(name for name in _NUMBERS if DATATYPES[name].dtype.kind in "iu")
_TAKEN = {"numbers": _NUMBERS, "whole numbers": _WHOLE, "texts": frozenset({"BYTES"})}


def processing_of(
    bundle: Bundle,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    open_sizes: Sequence[OpenSize] = (),
) -> Processing | None:
    """What a bundle says of a model's inputs and outputs, None for nothing.

    `open_sizes` are those the model is compiled for. Raises `InvalidModel` for steps that cannot give what the model
    takes, `OptionError` for those that do not fit each other or its shapes.
    """
    before: dict[str, InputStep] = {}
    after: dict[str, OutputStep] = {}
    for tensor in inputs:
        if bundle.preprocess.inputs.get(tensor.name):
            opened = next((each for each in open_sizes if 1 in each.axes.get(tensor.name, ())), None)
            before[tensor.name] = EngineInputStep(bundle.preprocess, tensor, opened)
    for tensor in outputs:
        steps = bundle.postprocess.outputs.get(tensor.name)
        if steps is not None and (steps.top_k or steps.unstandardize):
            after[tensor.name] = EngineOutputStep(steps, tensor)
    labels = {name: steps.labels for name, steps in bundle.postprocess.outputs.items() if steps.labels}
    return Processing(before, after, labels) if before or after or labels else None


def check_step(model: Model, name: str, asked: Mapping[str, Json]) -> None:
    """Check the step that a job asks for; raises `OptionError` for one of no input, or that does not fit it."""
    inputs = model.inputs()
    if name not in inputs:
        raise OptionError(f"preprocess: expected inputs out of {', '.join(inputs)}, got {name!r}")
    options = inputs[name].options
    check_asked(name, asked, tuple(options["shape"] or ()))
    if asked["name"] == "standardize" and np.dtype(dtype_of(options["dtype"])).kind not in "fV":
        raise OptionError(f"standardize: expected an input of floating-point numbers, got {options['dtype']}")


@final
class EngineInputStep:
    """The steps of one input. Numbers that do not fit the input's datatype become infinite, as in training."""

    def __init__(self, preprocess: Preprocess, tensor: TensorSpec, opened: OpenSize | None) -> None:
        """`tensor` is the model's own input, `opened` its second axis where that is open."""
        name = tensor.name
        kind, shape = preprocess.taken(name, tuple(None if size == -1 else size for size in tensor.shape))
        self._steps = list(preprocess.inputs[name])
        self._dtype = datatype(tensor.datatype).dtype
        self._text: Vocabulary | None = None
        self._sizes: tuple[int, ...] = ()
        self.datatypes: frozenset[str] = _TAKEN[kind]
        self.spec = sent(tensor, kind, shape)
        _check_type(self._steps[-1], tensor)
        if isinstance(first := self._steps[0], Vocabulary):
            del self._steps[0]
            if tensor.shape[1] != -1:
                first = dataclasses.replace(first, length=tensor.shape[1])
            elif opened is not None:
                _check_open(name, first, opened)
                self._sizes = opened.sizes
            self._text = first
            self._exact = opened is not None and name not in opened.pad_values

    def apply(self, values: np.ndarray, where: str) -> np.ndarray:
        """The model's own input; raises `InvalidRequest`."""
        try:
            with np.errstate(all="ignore"):
                if self._text is not None:
                    values = self._numbers(self._text, values)
                for step in self._steps:
                    values = step.apply(values)
                return values.astype(self._dtype, copy=False)
        except DataError as error:
            raise InvalidRequest(f"{where}: {error}") from None

    def _numbers(self, text: Vocabulary, values: np.ndarray) -> np.ndarray:
        """Token numbers as long as the longest text, or brought to an exact size where the batcher does not pad."""
        if not self._sizes:
            return text.apply(values)
        numbers = text.apply(values, at_most=self._sizes[-1])
        size = next((size for size in self._sizes if size >= numbers.shape[1]), 0)
        missing = size - numbers.shape[1]
        if missing <= 0 or not self._exact or text.length is not None or text.padding is None:
            return numbers
        return np.pad(numbers, ((0, 0), (0, missing)), constant_values=text.padding)


@final
class EngineOutputStep:
    """The steps of one output."""

    def __init__(self, steps: OutputSteps, tensor: TensorSpec) -> None:
        """`tensor` is the model's output; raises `InvalidModel` for steps that do not fit every size it may have."""
        _check_every_size(steps, tensor)
        self._name = tensor.name
        self._scale = steps.unstandardize
        self._top_k = steps.top_k
        self.specs = answered(tensor, steps.given(tensor.name), steps.top_k)
        if steps.top_k is not None:
            self._texts = np.empty(tensor.shape[-1], object)
            self._texts[:] = [steps.label(index).encode() for index in range(tensor.shape[-1])]

    def apply(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """What clients get in place of the output."""
        if self._scale is not None:
            with np.errstate(all="ignore"):
                values = self._scale.invert(values)
        if self._top_k is None:
            return {self._name: values}
        scores, classes = largest(values, self._top_k)
        return {self.specs[0].name: scores, self.specs[1].name: self._texts[classes]}


def _check_every_size(steps: OutputSteps, tensor: TensorSpec) -> None:
    try:
        steps.check(tuple(None if size == -1 else size for size in tensor.shape), datatype(tensor.datatype).dtype)
    except OptionError as error:
        problem = Problem(f"postprocess.json: outputs.{tensor.name}", "steps that fit the output", str(error))
        raise InvalidModel.from_problems("bundle", [problem]) from None


def _check_type(last: object, tensor: TensorSpec) -> None:
    """Whether an input's datatype has room for what its last step gives."""
    dtype = datatype(tensor.datatype).dtype
    if isinstance(last, Vocabulary):
        most = int(np.iinfo(dtype).max) if dtype.kind in "iu" else _WHOLE_TO.get(tensor.datatype, 0)
        if len(last) - 1 > most:
            _refuse(tensor, f"a datatype that holds {len(last)} token numbers")
    elif tensor.datatype == "BYTES" or (not isinstance(last, OneHot) and dtype.kind in "biu"):
        _refuse(tensor, "a datatype of floating-point numbers")


_WHOLE_TO = {"BF16": 2**8, "FP16": 2**11, "FP32": 2**24, "FP64": 2**53}
"""Up to which floating-point numbers hold every whole number."""


def _check_open(name: str, text: Vocabulary, opened: OpenSize) -> None:
    """Texts of one request differ in length: what the batcher knows of padding is not enough for a mask."""
    where, pad = f"preprocess.json: inputs.{name}", opened.pad_values.get(name)
    if opened.mask is not None and text.length is None:
        problem = Problem(where, f"a length beside the mask {opened.mask!r}", "none")
    elif pad is not None and text.length is None and text.padding not in (None, pad):
        problem = Problem(where, f"the padding {pad!r}, with which the batcher goes on", str(text.padding))
    else:
        return
    raise InvalidModel.from_problems("bundle", [problem])


def _refuse(tensor: TensorSpec, expected: str) -> None:
    problem = Problem(f"preprocess.json: inputs.{tensor.name}", expected, f"an input of {tensor.datatype}")
    raise InvalidModel.from_problems("bundle", [problem])
