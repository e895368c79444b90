"""Row weights: rows of a batch that count in part or, with weight 0, not at all (padding).

`rows` is `[batch]`: floats of 0 or more, or booleans; None stands for all ones and costs nothing. A row of weight 0
may hold anything, NaN included: it reaches neither a value nor a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.shapes import Shape

Rows = jax.Array | None


def check_rows(op: str, rows: Shape, x: Shape) -> None:
    """Raise `ShapeError` unless there is one weight per entry of x's first axis."""
    if not x:
        raise ShapeError(f"{op}: expected values with a batch axis for rows of shape {rows}, got a scalar")
    if rows != x[:1]:
        raise ShapeError(f"{op}: expected rows of shape ({x[0]},) for values of shape {x}, got {rows}")


def _column(rows: jax.Array, x: jax.Array) -> jax.Array:
    """The weights, shaped to broadcast behind the batch axis, in x's dtype."""
    return jnp.asarray(rows, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def without_padding(x: jax.Array, rows: Rows, fill: float = 1) -> jax.Array:
    """`x` with every row of weight 0 filled, so that none of its values, nor their derivatives, go any further."""
    return x if rows is None else jnp.where(_column(rows, x) > 0, x, jnp.asarray(fill, x.dtype))


def weighted(x: jax.Array, rows: Rows) -> jax.Array:
    """`rows * x`, and exactly 0 in rows of weight 0."""
    return x if rows is None else without_padding(x * _column(rows, x), rows, 0)


def row_mean(
    x: jax.Array, rows: Rows = None, *, axes: Sequence[int] | None = None, keepdims: bool = False
) -> jax.Array:
    """`sum(rows * x) / sum(rows)` over all axes, or over `axes`, the first among them; 0 when all weights are 0.

    Computed in float32 at least.
    """
    if rows is None:
        return jnp.mean(x, axis=None if axes is None else tuple(axes), keepdims=keepdims)
    over = range(x.ndim) if axes is None else axes
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = jnp.sum(jnp.asarray(rows, wide.dtype)) * math.prod(x.shape[axis] for axis in over if axis != 0)
    return jnp.sum(weighted(wide, rows), axis=tuple(over), keepdims=keepdims) / jnp.where(total > 0, total, 1)
