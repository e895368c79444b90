r"""Where in a sequence something stands: tables to add to it, and rotations of queries and keys.

Sequences are `[batch, time, ...]`, positions count from 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import ShapeError
from engine.functional.options import as_integer, require_number
from engine.shapes import Shape, require_rank


def _check_size(op: str, size: int, base: float) -> None:
    require_number(op, "base", base, at_least=1)
    if size % 2 or size < 2:
        raise ShapeError(f"{op}: expected an even size of the last axis, got {size}")


def _angles(positions: jax.Array, size: int, base: float) -> jax.Array:
    """`position * base ** (-2 i / size)`, `[..., size / 2]`."""
    frequencies = np.power(float(base), -np.arange(0, size, 2) / size)
    dtype = jnp.promote_types(positions.dtype, jnp.float32)
    return positions.astype(dtype)[..., None] * jnp.asarray(frequencies, dtype)


def check_sinusoidal_table(length: int, size: int, *, base: float = 10000.0) -> None:
    """The rule of `sinusoidal_table`'s sizes."""
    as_integer("sinusoidal_table", "length", length, at_least=0)
    _check_size("sinusoidal_table", size, base)


def sinusoidal_table(length: int, size: int, *, base: float = 10000.0) -> jax.Array:
    r"""Sines and cosines of falling frequencies, f32.

    $PE_{p, 2i} = \sin(p / base^{2i / size})$, $PE_{p, 2i + 1} = \cos(p / base^{2i / size})$.

    Args:
        length: number of positions.
        size: even.
    Returns: `[length, size]`.
    Raises:
        ShapeError: an odd size.
        OptionError: a negative length, a base below 1.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    check_sinusoidal_table(length, size, base=base)
    return _table(length, size, base)


def _table(length: int, size: int, base: float) -> jax.Array:
    """`sinusoidal_table`, whose length may be symbolic."""
    angles = _angles(jnp.arange(length), size, base)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, size)


def check_sinusoidal_position(x: Shape, *, base: float = 10000.0) -> None:
    """The shape rule of `sinusoidal_position`."""
    require_rank("sinusoidal_position", x, exactly=3)
    _check_size("sinusoidal_position", x[-1], base)


def sinusoidal_position(x: jax.Array, *, base: float = 10000.0) -> jax.Array:
    """Add the rows of `sinusoidal_table` to a sequence.

    Args:
        x: `[batch, time, size]`, size even.
    Returns: the shape and dtype of x.
    Raises:
        ShapeError: another rank, or an odd size.
    Source: Vaswani et al. 2017.
    """
    check_sinusoidal_position(jnp.shape(x), base=base)
    return x + _table(x.shape[1], x.shape[2], base).astype(x.dtype)


def check_learned_position(x: Shape, kernel: Shape) -> None:
    """The shape rule of `learned_position`."""
    require_rank("learned_position", x, exactly=3)
    if len(kernel) != 2 or kernel[1] != x[2] or kernel[0] < x[1]:
        raise ShapeError(
            f"learned_position: expected a kernel of {x[1]} positions or more of size {x[2]}, got shape {kernel}"
        )


def learned_position(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Add a trained vector per position: an embedding of the positions.

    Args:
        x: `[batch, time, size]`.
        kernel: `[max_length, size]`, `max_length` at least `time`.
    Returns: `[batch, time, size]`.
    Raises:
        ShapeError: a sequence longer than the kernel, or another size.
    Source: Gehring et al. 2017, arXiv:1705.03122.
    """
    check_learned_position(jnp.shape(x), jnp.shape(kernel))
    return x + kernel[: x.shape[1]]


def check_rotary_embedding(x: Shape, positions: Shape | None = None, *, base: float = 10000.0) -> None:
    """The shape rule of `rotary_embedding`."""
    require_rank("rotary_embedding", x, at_least=3)
    _check_size("rotary_embedding", x[-1], base)
    if positions is not None and positions not in ((x[1],), x[:2]):
        raise ShapeError(f"rotary_embedding: expected positions of shape {(x[1],)} or {x[:2]}, got {positions}")


def rotary_embedding(x: jax.Array, positions: jax.Array | None = None, *, base: float = 10000.0) -> jax.Array:
    r"""Rotate pairs of features by angles in proportion to the position: products then depend on distances.

    Feature $i$ of the first half is paired with feature $i$ of the second half (the layout of GPT-NeoX and Llama; the
    paper pairs neighbours, which is the same up to the order of features):
    $(a, b) \mapsto (a \cos\theta - b \sin\theta,\ b \cos\theta + a \sin\theta)$, $\theta = p \cdot base^{-2i / size}$.

    Args:
        x: queries or keys, `[batch, time, ..., size]` such as `[batch, time, heads, size]`; size even.
        positions: `[time]` or `[batch, time]`; 0, 1, 2 ... when `None`.
    Returns: the shape and dtype of x; computed in f32 for half precision.
    Raises:
        ShapeError: rank below 3, an odd size, or positions of another shape.
    Source: Su et al. 2021, arXiv:2104.09864.
    """
    check_rotary_embedding(jnp.shape(x), None if positions is None else jnp.shape(positions), base=base)
    places = jnp.arange(x.shape[1]) if positions is None else positions
    angles = _angles(places, x.shape[-1], base)
    batch = angles.shape[:-2] or (1,)
    angles = angles.reshape(*batch, x.shape[1], *(1,) * (x.ndim - 3), x.shape[-1] // 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
