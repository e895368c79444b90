r"""Resampling of images. Source: Axon.Layers.resize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.image
import jax.numpy as jnp

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
    resized: jax.Array = jax.image.resize(wide, shape, method, antialias=antialias)
    return resized.astype(x.dtype)
