"""Steps that are asked for by name, `{"name": "standardize", "per": "all"}`, and fitted on training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from engine.errors import OptionError
from engine.functional.options import require_choice
from engine.preprocess.one_hot import OneHot
from engine.preprocess.specs import Preprocess, Step
from engine.preprocess.standardize import Standardize, fit_standardize
from engine.preprocess.text import Vocabulary
from engine.shapes import OpenShape

_OPTIONS = {
    "standardize": ("per",),
    "one_hot": (),
    "vocabulary": ("tokens", "default", "tokenizer", "length", "padding"),
}


def check_asked(name: str, asked: Mapping[str, Any], shape: OpenShape) -> None:
    """Check what is asked for an input `name` of `shape` before there is data; raises `OptionError`."""
    step = fit_asked(asked, shape, lambda: [np.zeros((1, 1))])
    Preprocess({name: (step,)}).taken(name, shape)


def fit_asked(asked: Mapping[str, Any], shape: OpenShape, chunks: Callable[[], Iterable[np.ndarray]]) -> Step:
    """The step that is asked for.

    Args:
        asked: `standardize` with `per` (as in `fit_standardize`), `one_hot` with as many classes as `shape` has on its
            last axis, or `vocabulary` with its arguments.
        shape: of the model's input.
        chunks: gives the input's training rows, some at a time.
    Raises:
        OptionError: another name, or options outside their domain.
        DataError: as `fit_standardize`.
    """
    options = {key: value for key, value in asked.items() if key != "name"}
    name = asked.get("name")
    require_choice("preprocess", "name", name, tuple(_OPTIONS))
    allowed = _OPTIONS[str(name)]
    if unknown := sorted(set(options) - set(allowed)):
        raise OptionError(f"{name}: expected options out of {', '.join(allowed) or 'none'}, got {unknown[0]!r:.100}")
    if name == "standardize":
        return fit_standardize(chunks(), **options)
    if name == "one_hot":
        if not shape or shape[-1] is None:
            raise OptionError(f"one_hot: expected a model's input with a last axis of a known size, got {shape}")
        return OneHot(shape[-1])
    if "tokens" not in options:
        raise OptionError("vocabulary: expected tokens, got none")
    return Vocabulary(**options)


def column_shape(steps: tuple[Step, ...], name: str, shape: OpenShape) -> OpenShape:
    """The shape of the numbers that steps take from a column of a data set, for an input of `shape`.

    Such a column holds token numbers where a vocabulary makes them of texts: data sets hold no texts.
    """
    if any(isinstance(step, Vocabulary) for step in steps):
        return shape
    return Preprocess({name: steps}).taken(name, shape)[1]


def apply_to_column(steps: tuple[Step, ...], values: np.ndarray) -> np.ndarray:
    """What steps make of rows of a column; a vocabulary leaves its token numbers alone. Raises `DataError`."""
    for step in steps:
        if isinstance(step, Standardize | OneHot):
            values = step.apply(values)
    return values
