"""The Open Inference Protocol's datatypes and NumPy's: one table, read in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from service.core.errors import InvalidRequest, shown

MAX_RANK = 64
"""NumPy's own limit on the number of dimensions."""

MAX_ELEMENTS = 2**60 - 1
"""NumPy counts bytes in 63 bits, and an element has up to 8."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the protocol.

    `itemsize` is in bytes and 0 for `BYTES`, whose elements differ in length; `contents` names the field of gRPC's
    `InferTensorContents`, None where only raw bytes are defined; `config` is the name in a model configuration.
    """

    name: str
    dtype: np.dtype
    itemsize: int
    contents: str | None
    config: str


def _numeric(name: str, scalar: type, contents: str | None) -> Datatype:
    dtype = np.dtype(scalar)
    return Datatype(name, dtype, dtype.itemsize, contents, f"TYPE_{name}")


DATATYPES: dict[str, Datatype] = {
    entry.name: entry
    for entry in (
        _numeric("BOOL", np.bool_, "bool_contents"),
        _numeric("UINT8", np.uint8, "uint_contents"),
        _numeric("UINT16", np.uint16, "uint_contents"),
        _numeric("UINT32", np.uint32, "uint_contents"),
        _numeric("UINT64", np.uint64, "uint64_contents"),
        _numeric("INT8", np.int8, "int_contents"),
        _numeric("INT16", np.int16, "int_contents"),
        _numeric("INT32", np.int32, "int_contents"),
        _numeric("INT64", np.int64, "int64_contents"),
        _numeric("FP16", np.float16, None),
        _numeric("BF16", ml_dtypes.bfloat16, None),
        _numeric("FP32", np.float32, "fp32_contents"),
        _numeric("FP64", np.float64, "fp64_contents"),
        Datatype("BYTES", np.dtype(object), 0, "bytes_contents", "TYPE_STRING"),
    )
}

_NAMES: dict[np.dtype, str] = {entry.dtype: name for name, entry in DATATYPES.items()}


def datatype(name: object) -> Datatype:
    """The entry of the protocol's datatype `name`; raises `InvalidRequest` listing the known ones."""
    entry = DATATYPES.get(name) if isinstance(name, str) else None
    if entry is None:
        raise InvalidRequest(f"datatype: expected one of {', '.join(DATATYPES)}, got {shown(name)}")
    return entry


def name_of(dtype: np.dtype) -> str:
    """The protocol's name of a NumPy dtype (`object` is `BYTES`); raises `InvalidRequest` when it has none."""
    name = _NAMES.get(dtype)
    if name is None:
        raise InvalidRequest(f"datatype: expected one of {', '.join(DATATYPES)}, got NumPy's {dtype}")
    return name


def element_count(shape: Sequence[object], where: str) -> int:
    """Number of elements of a client's `shape`; raises `InvalidRequest` on anything but integers >= 0 below 2**60."""
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"{where}: expected at most {MAX_RANK} dimensions, got {len(shape)}")
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidRequest(f"{where}: expected a shape of integers >= 0, got {shown(list(shape))}")
        count *= size
    # An axis of size 0 must not hide absurd sizes on the others: NumPy multiplies those all the same.
    if count > MAX_ELEMENTS or (count == 0 and _without_zeros(shape) > MAX_ELEMENTS):
        raise InvalidRequest(f"{where}: expected fewer than 2**60 elements, got shape {shown(list(shape))}")
    return count


def _without_zeros(shape: Sequence[Any]) -> int:
    return math.prod(size for size in shape if size)
