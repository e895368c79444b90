"""Class numbers as vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer
from engine.preprocess.kinds import Kind
from engine.shapes import OpenShape

MAX_CLASSES = 2**20


@dataclass(frozen=True, slots=True)
class OneHot:
    """`[...]` of class numbers to `[..., classes]`: float32, 1 at the class and 0 elsewhere.

    Raises: `OptionError` for less than one class or more than a million.
    """

    name: ClassVar[str] = "one_hot"
    takes: ClassVar[Kind] = "whole numbers"
    gives: ClassVar[Kind] = "numbers"
    classes: int

    def __post_init__(self) -> None:
        classes = as_integer("one_hot", "classes", self.classes, at_least=1)
        if classes > MAX_CLASSES:
            raise OptionError(f"one_hot: expected classes to be at most {MAX_CLASSES}, got {classes}")
        object.__setattr__(self, "classes", classes)

    def apply(self, values: Any) -> np.ndarray:
        """The vectors; raises `DataError` for numbers that are not whole or no class."""
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise DataError(f"one_hot: expected whole numbers, got {array.dtype}")
        if array.size and (array.min() < 0 or array.max() >= self.classes):
            first = int(np.flatnonzero((array < 0) | (array >= self.classes))[0])
            got, row = array.flat[first], first // max(array.size // len(array), 1) if array.ndim else 0
            raise DataError(f"one_hot: expected classes below {self.classes}, got {got} in row {row}")
        out = np.zeros((array.size, self.classes), np.float32)
        out[np.arange(array.size), array.reshape(-1)] = 1
        return out.reshape(*array.shape, self.classes)

    def before(self, shape: OpenShape) -> OpenShape:
        """The shape that it brings to `shape`; raises `OptionError` where it gives none such."""
        if len(shape) < 2 or shape[-1] != self.classes:
            raise OptionError(f"one_hot: expected a model's input with a last axis of {self.classes}, got {shape}")
        return shape[:-1]

    def to_json(self) -> dict[str, Any]:
        """Its arguments as JSON."""
        return {"classes": self.classes}
