r"""Ops that only move elements: flatten, reshape, transpose, pad. Source: Axon.Layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional.options import Channels, as_integer
from engine.functional.windows import spatial_axes
from engine.shapes import Shape, normalize_axis, require_rank

Dimension = int | Literal["batch", "auto"]


def check_flatten(x: Shape) -> None:
    """The shape rule of `flatten`."""
    require_rank("flatten", x, at_least=1)


def flatten(x: jax.Array) -> jax.Array:
    """`[batch, ...]` to `[batch, product of the rest]` (`[batch, 1]` of a vector). Source: Axon.Layers.flatten."""
    check_flatten(jnp.shape(x))
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def check_reshape(x: Shape, *, new_shape: Sequence[Dimension]) -> None:
    """The shape rule of `reshape`."""
    resolve_shape(x, new_shape)


def resolve_shape(x: Shape, new_shape: Sequence[Dimension]) -> Shape:
    """The sizes `new_shape` stands for when an input of shape `x` is reshaped to it; errors as in `reshape`."""
    if isinstance(new_shape, str) or not isinstance(new_shape, Sequence):
        raise OptionError(f"reshape: expected new_shape to be a sequence, got {new_shape!r}")
    rest, entries = x, list(new_shape)
    if "batch" in entries:
        # The batch's size stands on both sides, so it need not be known.
        require_rank("reshape", x, at_least=1)
        rest = x[1:]
        entries.remove("batch")
    entries = [x[0] if size == "batch" else size for size in entries]
    known = [as_integer("reshape", "new_shape", size, at_least=0) for size in entries if size != "auto"]
    total, product = math.prod(rest), math.prod(known)
    if len(entries) - len(known) > 1:
        raise OptionError(f"reshape: expected at most one 'auto' in new_shape, got {tuple(new_shape)}")
    if len(entries) > len(known):
        if product == 0 or total % product:
            raise ShapeError(f"reshape: expected sizes that divide those of {x}, got {tuple(new_shape)}")
    elif product != total:
        raise ShapeError(f"reshape: expected as many elements as in shape {x}, got {tuple(new_shape)}")
    sizes = {"batch": x[0] if x else 1, "auto": total // max(product, 1)}
    return tuple(sizes[size] if isinstance(size, str) else size for size in new_shape)


def reshape(x: jax.Array, *, new_shape: Sequence[Dimension]) -> jax.Array:
    """Reshape, in row-major order.

    Args:
        x: any shape.
        new_shape: the whole new shape, the batch included; `"batch"` stands for the size of x's first axis, `"auto"`
            (at most once) for whatever size is left.
    Raises:
        ShapeError: the number of elements differs.
        OptionError: an entry that is neither a size nor a placeholder.
    Source: Axon.Layers.reshape.
    """
    return jnp.reshape(x, resolve_shape(jnp.shape(x), new_shape))


def check_transpose(x: Shape, *, permutation: Sequence[int] | None = None) -> None:
    """The shape rule of `transpose`."""
    if permutation is not None:
        axes = [normalize_axis("transpose", axis, len(x)) for axis in permutation]
        if sorted(axes) != list(range(len(x))):
            raise OptionError(
                f"transpose: expected a permutation of {len(x)} axes for shape {x}, got {tuple(permutation)}"
            )


def transpose(x: jax.Array, *, permutation: Sequence[int] | None = None) -> jax.Array:
    """Permute the axes, the batch included; `None` reverses them all.

    Raises `OptionError` when `permutation` does not name every axis once. Source: Axon.Layers.transpose.
    """
    check_transpose(jnp.shape(x), permutation=permutation)
    return jnp.transpose(x, None if permutation is None else tuple(permutation))


def check_pad(x: Shape, *, config: Sequence[tuple[int, int]], value: float = 0.0, channels: Channels = "last") -> None:
    """The shape rule of `pad`."""
    require_rank("pad", x, at_least=3)
    axes = spatial_axes("pad", len(x), channels)
    if len(config) != len(axes) or any(len(pair) != 2 for pair in config):
        raise OptionError(f"pad: expected config of {len(axes)} pairs (before, after), got {config!r}")
    for axis, (low, high) in zip(axes, config, strict=True):
        before = as_integer("pad", "config", low, at_least=-x[axis])
        if x[axis] + before + as_integer("pad", "config", high, at_least=-x[axis]) < 0:
            raise ShapeError(f"pad: expected to crop at most the size of axis {axis} of {x}, got {(low, high)}")


def pad(
    x: jax.Array, *, config: Sequence[tuple[int, int]], value: float = 0.0, channels: Channels = "last"
) -> jax.Array:
    """Pad the spatial axes.

    Args:
        x: `[batch, *spatial, channels]`, or with `channels="first"` `[batch, channels, *spatial]`; rank 3 or more.
        config: a pair (before, after) per spatial axis; negative numbers crop.
        value: what to pad with.
        channels: `last` or `first`.
    Raises:
        ShapeError: rank below 3, or more cropped than there is.
        OptionError: an option outside its domain.
    Source: Axon.Layers.pad.
    """
    check_pad(jnp.shape(x), config=config, value=value, channels=channels)
    full = [(0, 0, 0)] * x.ndim
    for axis, (low, high) in zip(spatial_axes("pad", x.ndim, channels), config, strict=True):
        full[axis] = (low, high, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), full)
