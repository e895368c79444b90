"""Tensors by path in safetensors, bf16 included, through the library's raw views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.errors import BundleError, Problem
from engine.precision import dtype_of

_DTYPES = {
    "BOOL": "bool",
    "U8": "u8",
    "U16": "u16",
    "U32": "u32",
    "U64": "u64",
    "I8": "s8",
    "I16": "s16",
    "I32": "s32",
    "I64": "s64",
    "F16": "f16",
    "BF16": "bf16",
    "F32": "f32",
    "F64": "f64",
}
"""Our short names of the dtypes in a safetensors header."""


def dump(tensors: Mapping[str, Any]) -> bytes:
    """Tensors (NumPy or JAX arrays) by path as one safetensors file; the same tensors give the same bytes."""
    import safetensors

    arrays = {path: np.asarray(tensors[path], order="C") for path in sorted(tensors)}
    return bytes(
        safetensors.serialize(
            {
                path: safetensors.TensorSpec(
                    dtype=array.dtype.name, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
                )
                for path, array in arrays.items()
            }
        )
    )


def load(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Tensors by path of a safetensors file; raises `BundleError` naming `where` for a malformed one.

    The library checks the header's length, the ranges (no overlap, no gap) and every size before anything is copied.
    """
    import safetensors

    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise BundleError([Problem(where, "a valid safetensors file", str(error)[:200])]) from None
    tensors = {}
    for path, entry in sorted(entries, key=lambda item: str(item[0])):
        short = _DTYPES.get(entry["dtype"])
        if short is None:
            raise BundleError(
                [Problem(f"{where}: {path[:100]}", f"a dtype out of {', '.join(_DTYPES)}", entry["dtype"])]
            )
        tensors[path] = np.frombuffer(entry["data"], dtype_of(short)).reshape(entry["shape"])
    return tensors
