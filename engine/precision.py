"""Data types by their short names (`f32`, `s64`, `bf16` ...), as graphs and tables spell them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from engine.errors import DtypeError

DTYPES: dict[str, np.dtype] = {
    "bool": np.dtype(np.bool_),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "s8": np.dtype(np.int8),
    "s16": np.dtype(np.int16),
    "s32": np.dtype(np.int32),
    "s64": np.dtype(np.int64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of a short name; raises `DtypeError` for an unknown one."""
    try:
        return DTYPES[name]
    except KeyError:
        raise DtypeError(f"expected a data type out of {', '.join(DTYPES)}, got {name!r}") from None


def name_of(dtype: object) -> str:
    """The short name of a dtype; raises `DtypeError` for one that tensors here never have."""
    try:
        return _NAMES[np.dtype(dtype)]  # type: ignore[call-overload]
    except (KeyError, TypeError):
        raise DtypeError(f"expected a data type out of {', '.join(DTYPES)}, got {dtype!r}") from None


def is_wide(dtype: object) -> bool:
    """Whether a value of this dtype needs JAX's 64-bit mode."""
    return bool(np.dtype(dtype).itemsize == 8)  # type: ignore[call-overload]
