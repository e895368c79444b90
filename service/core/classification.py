"""The extension classification: the largest values of an output as texts `value:index:label`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.core.datatypes import name_of
from service.core.errors import InvalidRequest, TooLarge

MAX_TEXTS = 100_000
"""Texts of one output: each costs some hundred bytes and a microsecond."""


def largest(array: np.ndarray, count: int, where: str, *, batched: bool, labels: Sequence[str] = ()) -> np.ndarray:
    """The `count` largest values of every row as bytes `value:index`, the highest first; equal ones by their index.

    With `labels`, which are those of places on the last axis, as `value:index:label`.

    `array` is `[...]`, or `[rows, ...]` when `batched`; the answer `[min(count, size of a row)]`, or with rows before.
    NaN comes last; values are the shortest texts that read back identically. Raises `InvalidRequest` for an output
    without numbers, `TooLarge` for more than `MAX_TEXTS`.
    """
    if array.dtype.kind not in "iufV":
        raise InvalidRequest(f"{where}: expected classification of numbers, this output is {name_of(array.dtype)}")
    if array.dtype.kind == "V":
        array = array.astype(np.float32)  # bfloat16: widening is exact
    rows = array.shape[0] if batched else 1
    classes = math.prod(array.shape[1:] if batched else array.shape)
    kept = min(count, classes)
    if rows * kept > MAX_TEXTS:
        raise TooLarge(f"{where}: expected at most {MAX_TEXTS} classes in all rows, got {rows} rows of {kept}")
    values = array.reshape(rows, classes)
    # The complement turns the order of integers around without leaving their range.
    order = np.argsort(~values if values.dtype.kind in "iu" else -values, axis=1, kind="stable")[:, :kept]
    texts = np.empty(rows * kept, object)
    found = np.take_along_axis(values, order, axis=1).ravel()
    pairs = zip(found, order.ravel().tolist(), strict=True)
    if labels:
        size = array.shape[-1] if array.ndim else 1
        texts[:] = [f"{value!s}:{index}{_label(labels, index % size)}".encode() for value, index in pairs]
    else:
        texts[:] = [f"{value!s}:{index}".encode() for value, index in pairs]
    return texts.reshape((rows, kept) if batched else (kept,))


def _label(labels: Sequence[str], place: int) -> str:
    return f":{labels[place]}" if place < len(labels) else ""
