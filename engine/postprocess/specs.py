"""`Postprocess`: what is done to each output, and the same as strict JSON (`postprocess.json` of a bundle)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import BundleError, DataError, OptionError, Problem
from engine.functional.options import as_integer
from engine.preprocess import Standardize
from engine.shapes import OpenShape

FORMAT = "axon.postprocess"
VERSION = 1
MAX_LABELS = 100_000
MAX_LABEL_CHARACTERS = 1000
MAX_LABELS_BYTES = 2 * 2**20
MAX_NAME_CHARACTERS = 256
_KEYS = {"format", "version", "outputs"}
_STANDARDIZE_KEYS = {"mean", "std"}


@dataclass(frozen=True, slots=True)
class OutputSteps:
    """What is done to one output, in this order.

    Attributes:
        unstandardize: the standardisation of the targets in training, which is taken back.
        labels: texts of the classes along the last axis; classes beyond them have none.
        top_k: `[rows, classes]` becomes two outputs `[rows, k]`: `<name>_scores`, the largest first, and
            `<name>_labels`, their texts; a class without a label has its number.
    Raises: `OptionError` for labels that are no texts or too many, and a `top_k` below 1 or without labels.
    """

    unstandardize: Standardize | None = None
    labels: tuple[str, ...] = ()
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.unstandardize is not None and not isinstance(self.unstandardize, Standardize):
            raise OptionError(
                f"postprocess: expected unstandardize to be a Standardize, got {self.unstandardize!r:.100}"
            )
        object.__setattr__(self, "labels", _labels(self.labels))
        if self.top_k is not None:
            as_integer("postprocess", "top_k", self.top_k, at_least=1)
            if not self.labels:
                raise OptionError("postprocess: expected labels beside top_k, got none")

    def given(self, name: str) -> tuple[str, ...]:
        """The names of what an output becomes."""
        return (name,) if self.top_k is None else (f"{name}_scores", f"{name}_labels")

    def check(self, shape: OpenShape, dtype: np.dtype) -> None:
        """Raise `OptionError` where these steps do not fit an output of this shape and type."""
        size = shape[-1] if shape else None
        if self.unstandardize is not None:
            if np.dtype(dtype).kind not in "fV":
                raise OptionError(f"unstandardize: expected an output of floating-point numbers, got {dtype}")
            self.unstandardize.before(shape)
        if self.labels and (len(shape) < 2 or size is None or len(self.labels) > size):
            raise OptionError(f"labels: expected an output with {len(self.labels)} or more classes, got shape {shape}")
        if self.top_k is not None and (len(shape) != 2 or size is None or self.top_k > size):
            raise OptionError(f"top_k: expected an output [rows, classes] of {self.top_k} or more, got shape {shape}")

    def apply(self, name: str, values: Any) -> dict[str, np.ndarray]:
        """What an output becomes, by name; texts are `str`. Raises `DataError` for values of another shape."""
        array = np.asarray(values)
        if self.unstandardize is not None:
            array = self.unstandardize.invert(array)
        if self.top_k is None:
            return {name: array}
        if array.ndim != 2 or array.shape[1] < self.top_k:
            raise DataError(f"output {name!r}: expected [rows, classes] of {self.top_k} or more, got {array.shape}")
        scores, classes = largest(array, self.top_k)
        texts = np.empty(classes.size, object)
        texts[:] = [self.label(index) for index in classes.ravel().tolist()]
        return dict(zip(self.given(name), (scores, texts.reshape(classes.shape)), strict=True))

    def label(self, index: int) -> str:
        """The text of a class."""
        return self.labels[index] if index < len(self.labels) else str(index)


@dataclass(frozen=True, slots=True)
class Postprocess:
    """What is done to outputs, by name; those not named stay as they are.

    Raises: `OptionError` for names that are none, or for what are no steps.
    """

    outputs: Mapping[str, OutputSteps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, steps in self.outputs.items():
            if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARACTERS:
                raise OptionError(f"postprocess: expected names of outputs, got {name!r:.200}")
            if not isinstance(steps, OutputSteps):
                raise OptionError(f"postprocess: expected OutputSteps for {name!r}, got {steps!r:.200}")

    def apply(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs as a caller gets them; raises `DataError` naming the output."""
        given: dict[str, Any] = {}
        for name, values in outputs.items():
            steps = self.outputs.get(name)
            given |= {name: values} if steps is None else steps.apply(name, values)
        return given


def largest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest of each row of `[rows, classes]`, the largest first, and their places; both `[rows, k]`.

    Equal ones in the order of their places, NaN last.
    """
    keys: Any = values.astype(np.float32) if values.dtype.kind == "V" else values  # widening bfloat16 is exact
    # The complement turns the order of integers around without leaving their range.
    order = np.argsort(~keys if keys.dtype.kind in "iub" else -keys, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), order


def to_json(postprocess: Postprocess) -> dict[str, Any]:
    """The JSON form: `{"format", "version", "outputs": {name: {"labels": ["cat", "dog"], "top_k": 2}}}`."""
    outputs: dict[str, Any] = {}
    for name, steps in postprocess.outputs.items():
        scale = steps.unstandardize
        values = {
            "unstandardize": None if scale is None else scale.to_json(),
            "labels": list(steps.labels) or None,
            "top_k": steps.top_k,
        }
        outputs[name] = {key: value for key, value in values.items() if value is not None}
    return {"format": FORMAT, "version": VERSION, "outputs": outputs}


def from_json(value: Any) -> Postprocess:
    """Read what `to_json` writes; raises `BundleError` with every problem, whatever a stranger sent."""
    where = "postprocess.json"
    if not isinstance(value, Mapping) or value.get("format") != FORMAT or value.get("version") != VERSION:
        got = [value.get("format"), value.get("version")] if isinstance(value, Mapping) else type(value).__name__
        raise BundleError([Problem(where, f"format {FORMAT!r}, version {VERSION}", f"{got!s:.200}")])
    outputs = value.get("outputs")
    if set(value) != _KEYS or not isinstance(outputs, Mapping):
        odd = ", ".join(sorted(map(str, set(value) ^ _KEYS))) or f"outputs {type(outputs).__name__}"
        raise BundleError([Problem(where, f"the keys {', '.join(sorted(_KEYS))}, outputs an object", odd[:200])])
    problems: list[Problem] = []
    found: dict[str, OutputSteps] = {}
    for name, steps in outputs.items():
        place = f"{where}: outputs.{name!s:.128}"
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARACTERS:
            expected = f"the name of an output, at most {MAX_NAME_CHARACTERS} characters"
            problems.append(Problem(place, expected, f"{name!r:.128}"))
            continue
        try:
            found[name] = _steps(steps)
        except OptionError as error:
            problems.append(Problem(place, "what can be done to an output", str(error)[:300]))
    if problems:
        raise BundleError(problems)
    return Postprocess(found)


def _steps(value: Any) -> OutputSteps:
    known = OutputSteps.__dataclass_fields__
    if not isinstance(value, Mapping) or not value or not set(value) <= set(known):
        raise OptionError(f"postprocess: expected an object of {', '.join(known)}, got {value!r:.100}")
    scale = value.get("unstandardize")
    if scale is not None:
        if not isinstance(scale, Mapping) or set(scale) != _STANDARDIZE_KEYS:
            raise OptionError(f"unstandardize: expected an object of mean and std, got {scale!r:.100}")
        scale = Standardize(**scale)
    return OutputSteps(scale, value.get("labels", ()), value.get("top_k"))


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > MAX_LABELS:
        raise OptionError(f"labels: expected a list of at most {MAX_LABELS} texts, got {value!r:.100}")
    size = 0
    for label in value:
        if not isinstance(label, str) or len(label) > MAX_LABEL_CHARACTERS:
            raise OptionError(
                f"labels: expected texts of at most {MAX_LABEL_CHARACTERS} characters, got {label!r:.100}"
            )
        try:
            size += len(label.encode())
        except UnicodeEncodeError as error:
            raise OptionError(f"labels: expected texts that UTF-8 can spell, got {label!r:.100}") from error
    if size > MAX_LABELS_BYTES:
        raise OptionError(f"labels: expected at most {MAX_LABELS_BYTES} bytes together, got {size}")
    return tuple(value)
