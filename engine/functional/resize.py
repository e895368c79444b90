r"""Resampling of images. Source: Axon.Layers.resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.image
import jax.numpy as jnp
from jax import lax

from engine.functional.options import Channels, as_sizes, require_choice
from engine.functional.windows import spatial_axes
from engine.shapes import Shape, require_rank

Method = Literal["nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"]
METHODS: tuple[Method, ...] = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")


def _resized(x: Shape, size: Sequence[int], method: Method, channels: Channels) -> Shape:
    require_rank("resize", x, exactly=4)
    require_choice("resize", "method", method, METHODS)
    axes = spatial_axes("resize", 4, channels)
    sizes = dict(zip(axes, as_sizes("resize", "size", size, 2), strict=True))
    return tuple(sizes.get(axis, n) for axis, n in enumerate(x))


def check_resize(
    x: Shape,
    *,
    size: Sequence[int],
    method: Method = "nearest",
    antialias: bool = True,
    channels: Channels = "last",
) -> None:
    """The shape rule of `resize`."""
    _resized(x, size, method, channels)


def resize(
    x: jax.Array,
    *,
    size: Sequence[int],
    method: Method = "nearest",
    antialias: bool = True,
    channels: Channels = "last",
) -> jax.Array:
    """Resample both spatial axes; pixel centres are at halves: `source = (target + 0.5) * in / out - 0.5`.

    Args:
        x: `[batch, height, width, channels]`, or with `channels="first"` `[batch, channels, height, width]`.
        size: the new (height, width).
        method: `nearest`, `bilinear`, `bicubic` (Keys, a = -0.5), `lanczos3` or `lanczos5`.
        antialias: when shrinking, widen the method's kernel accordingly; no effect on `nearest`.
        channels: `last` or `first`.
    Returns: the resampled array in x's dtype.
    Raises:
        ShapeError: another rank than 4.
        OptionError: an option outside its domain.
    Source: Axon.Layers.resize.
    """
    shape = _resized(jnp.shape(x), size, method, channels)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if _products_pay(x.shape, shape, method):
        return _by_products(wide, shape, method, antialias).astype(x.dtype)
    resized: jax.Array = jax.image.resize(wide, shape, method, antialias=antialias)
    return resized.astype(x.dtype)


def _products_pay(x: Shape, shape: Shape, method: Method) -> bool:
    """Whether to resample by `_by_products`: on the CPU, where its weights are no larger than its result."""
    if jax.default_backend() != "cpu" or method == "nearest" or not all(isinstance(size, int) for size in x):
        return False
    sizes = list(x)
    for axis in _changed(x, shape):
        if math.prod(sizes[: axis + 1]) * shape[axis] > math.prod(shape):
            return False
        sizes[axis] = shape[axis]
    return True


def _changed(x: Shape, shape: Shape) -> list[int]:
    """The resampled axes, the last one first."""
    return [axis for axis in reversed(range(len(x))) if x[axis] != shape[axis]]


def _by_products(x: jax.Array, shape: Shape, method: Method, antialias: bool) -> jax.Array:
    """`jax.image.resize` as a batch of products of matrices per axis: JAX transposes the whole image for each."""
    for axis in _changed(x.shape, shape):
        size, before, after = shape[axis], math.prod(x.shape[:axis]), x.shape[axis + 1 :]
        unit = jnp.eye(x.shape[axis], dtype=x.dtype)
        weights = jax.image.resize(unit, (size, x.shape[axis]), method, antialias=antialias)
        rows = x.reshape(before, x.shape[axis], math.prod(after))
        spread = jnp.broadcast_to(weights, (before, *weights.shape))
        y = jnp.matmul(spread, rows, precision=lax.Precision.HIGHEST)
        x = y.reshape(*x.shape[:axis], size, *after)
    return x
