"""Safetensors files as data sets: every tensor a column. The header is read here, so that values can be streamed.

BF16 and the 8-bit floats are widened to float32, which holds each of their values.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns
from engine.columns.limits import Limits
from engine.columns.npy import MAX_RANK, ArrayOptions
from engine.columns.npz import values_of
from engine.errors import DataError, TooLargeError

HEADER_BYTES_PER_COLUMN = 1024
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_WIDENED: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: np.dtype
    stored: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def convert_safetensors(
    source: Path, folder: Path, options: ArrayOptions, limits: Limits
) -> tuple[list[ColumnSpec], int, dict[str, list[str]]]:
    """Write the tensors asked for; raises `DataError` or `TooLargeError` before any value is read."""
    with source.open("rb") as file:
        tensors = options.chosen({tensor.name: tensor for tensor in _tensors(file, limits)})
        specs = check_columns(((t.name, t.stored, t.shape) for t in tensors), limits)
        rows = tensors[0].shape[0]
        for tensor, spec in zip(tensors, specs, strict=True):
            file.seek(tensor.start)
            with ColumnWriter(folder, [spec], rows) as writer:
                for piece in values_of(file, tensor.dtype, tensor.size, tensor.name):
                    writer.write(spec.name, piece)
    return specs, rows, {}


def _tensors(file: BinaryIO, limits: Limits) -> list[_Tensor]:
    """What the header describes: tensors that fill the rest of the file without a gap, in their order in the file."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > limits.max_columns * HEADER_BYTES_PER_COLUMN:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got a header of {length} bytes")
    text = file.read(length)
    begin = 8 + length
    if len(text) != length or size < begin:
        raise DataError("data set: expected a safetensors file, got one that ends in its header")
    header = _header(text)
    if len(header) > limits.max_columns:
        raise TooLargeError(f"data set: expected at most {limits.max_columns} columns, got {len(header)}")
    tensors = sorted((_tensor(name, entry, begin) for name, entry in header.items()), key=lambda t: (t.start, t.size))
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            raise DataError(f"column {tensor.name[:128]!r}: expected values at byte {at}, got {tensor.start}")
        at += tensor.size
    if at != size:
        raise DataError(f"data set: expected a safetensors file of {at} bytes, got {size}")
    return tensors


def _header(text: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("a name twice")
        return dict(items)

    try:
        header = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data set: expected a safetensors file, got a header with {str(error)[:100]}") from None
    if not isinstance(header, dict):
        raise DataError("data set: expected a safetensors file, got a header that is no object")
    header.pop("__metadata__", None)
    return header


def _tensor(name: str, entry: Any, begin: int) -> _Tensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            sizes = len(shape) <= MAX_RANK and all(type(length) is int and 0 <= length < 2**63 for length in shape)
            dtype = _DTYPES.get(kind) or _WIDENED.get(kind)
            if dtype is None:
                known = ", ".join([*_DTYPES, *_WIDENED])
                raise DataError(f"column {name[:128]!r}: expected a dtype out of {known}, got {kind[:20]!r}")
            stored = _DTYPES.get(kind, np.dtype(np.float32))
            if sizes and 0 <= start <= end and end - start == dtype.itemsize * math.prod(shape):
                return _Tensor(name, dtype, stored, tuple(shape), begin + start)
    raise DataError(f"column {name[:128]!r}: expected dtype, shape and offsets that fit, got {str(entry)[:200]}")
