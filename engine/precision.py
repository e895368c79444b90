"""Data types by their short names (`f32`, `s64`, `bf16` ...), as graphs and tables spell them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from engine.errors import DtypeError, OptionError

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

    Only floats are ever cast, and never a layer's state: running statistics keep their declared type. Raises
    `DtypeError` for a name that is not one of `FLOATS`. Source: Axon.MixedPrecision.create_policy/1.
    """

    params: str | None = None
    compute: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        for part in ("params", "compute", "output"):
            if getattr(self, part) not in (None, *FLOATS):
                raise DtypeError(f"policy: expected {part} out of {', '.join(FLOATS)}, got {getattr(self, part)!r}")

    def __str__(self) -> str:
        return f"p={self.params or 'f32'} c={self.compute or 'f32'} o={self.output or 'f32'}"


NO_CAST = Policy()
"""The policy that casts nothing."""

POLICIES = {
    "float32": Policy("f32", "f32", "f32"),
    "mixed_bfloat16": Policy("f32", "bf16", "f32"),
    "mixed_float16": Policy("f32", "f16", "f32"),
}
"""Presets: parameters stay f32, a layer computes in half precision and hands on f32.

Parameters and compute are those of Keras' policies of the same names; the output is that of jmp's usual policy
(`params=float32,compute=float16,output=float32`), so that losses, metrics and what a served model answers stay f32.
Between two layers the compiler drops or fuses the pair of casts. `mixed_float16` wants a loss scale.
"""


def policy_of(policy: Policy | str) -> Policy:
    """A policy, or the preset of that name; raises `OptionError` for an unknown one."""
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise OptionError(f"policy: expected a Policy, or a preset out of {', '.join(POLICIES)}, got {policy!r}")
    return POLICIES[policy]


def cast(policy: Policy, tree: Any, kind: Literal["params", "compute", "output"]) -> Any:
    """`tree` with its float arrays in the type the policy has for `kind`; everything else as it is.

    Source: Axon.MixedPrecision.cast/3.
    """
    name = getattr(policy, kind)
    if name is None:
        return tree
    dtype = DTYPES[name]

    def one(leaf: Any) -> Any:
        is_float = isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_float and leaf.dtype != dtype else leaf

    return jax.tree.map(one, tree)
