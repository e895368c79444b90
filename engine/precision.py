"""Data types by their short names (`f32`, `s64`, `bf16` ...), as graphs and tables spell them."""

from __future__ import annotations

from dataclasses import dataclass

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


FLOATS = ("f16", "bf16", "f32", "f64")


@dataclass(frozen=True, slots=True)
class Policy:
    """In which floating-point type a layer keeps its parameters, computes, and hands its output on; None: as it comes.

    Only floats are ever cast. Raises `DtypeError` for a name that is not one of `FLOATS`. Source:
    Axon.MixedPrecision.create_policy/1.
    """

    params: str | None = None
    compute: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        for part in ("params", "compute", "output"):
            if getattr(self, part) not in (None, *FLOATS):
                raise DtypeError(f"policy: expected {part} out of {', '.join(FLOATS)}, got {getattr(self, part)!r}")


NO_CAST = Policy()
"""The policy that casts nothing."""
