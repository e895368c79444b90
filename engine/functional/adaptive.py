r"""Pooling to a fixed output size, and the low-pass filter of blur pooling. Source: Axon.Layers."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.functional.convolution import depthwise_conv
from engine.functional.options import Channels, as_sizes, require_number
from engine.functional.pooling import avg_pool, lp_pool, max_pool
from engine.functional.windows import channel_axis, spatial_axes
from engine.shapes import Shape, require_rank

OutputSize = int | Sequence[int] | None


def _windows(op: str, x: Shape, output_size: OutputSize, channels: Channels) -> tuple[Shape, Shape]:
    """Windows and strides that give the output size: `stride = in // out`, `window = in - (out - 1) * stride`."""
    require_rank(op, x, at_least=3)
    sizes = [x[axis] for axis in spatial_axes(op, len(x), channels)]
    outputs = tuple(sizes) if output_size is None else as_sizes(op, "output_size", output_size, len(sizes))
    if any(out > size for size, out in zip(sizes, outputs, strict=True)):
        raise ShapeError(f"{op}: expected spatial sizes of at least the output_size {outputs}, got shape {x}")
    strides = tuple(size // out for size, out in zip(sizes, outputs, strict=True))
    windows = tuple(n - (out - 1) * step for n, out, step in zip(sizes, outputs, strides, strict=True))
    return windows, strides


def check_adaptive_avg_pool(x: Shape, *, output_size: OutputSize = None, channels: Channels = "last") -> None:
    """The shape rule of `adaptive_avg_pool`."""
    _windows("adaptive_avg_pool", x, output_size, channels)


def adaptive_avg_pool(x: jax.Array, *, output_size: OutputSize = None, channels: Channels = "last") -> jax.Array:
    """Means of equal windows at equal distances, as many as asked for.

    Args:
        x: `[batch, *spatial, channels]`, or with `channels="first"` `[batch, channels, *spatial]`; rank 3 or more.
        output_size: per spatial axis or one for all, at most the input's; the input's own when `None`. Where it does
            not divide the input's, windows overlap (PyTorch varies their size instead).
        channels: `last` or `first`.
    Returns: `[batch, *output_size, channels]`.
    Raises:
        ShapeError: rank below 3, or sizes below the output's.
        OptionError: an option outside its domain.
    Source: Axon.Layers.adaptive_avg_pool.
    """
    windows, strides = _windows("adaptive_avg_pool", jnp.shape(x), output_size, channels)
    return avg_pool(x, kernel_size=windows, strides=strides, channels=channels)


def check_adaptive_max_pool(x: Shape, *, output_size: OutputSize = None, channels: Channels = "last") -> None:
    """The shape rule of `adaptive_max_pool`."""
    _windows("adaptive_max_pool", x, output_size, channels)


def adaptive_max_pool(x: jax.Array, *, output_size: OutputSize = None, channels: Channels = "last") -> jax.Array:
    """Maxima of equal windows; arguments, result and errors as in `adaptive_avg_pool`.

    Source: Axon.Layers.adaptive_max_pool.
    """
    windows, strides = _windows("adaptive_max_pool", jnp.shape(x), output_size, channels)
    return max_pool(x, kernel_size=windows, strides=strides, channels=channels)


def check_adaptive_lp_pool(
    x: Shape, *, output_size: OutputSize = None, channels: Channels = "last", norm: float = 2
) -> None:
    """The shape rule of `adaptive_lp_pool`."""
    _windows("adaptive_lp_pool", x, output_size, channels)
    require_number("adaptive_lp_pool", "norm", norm, at_least=1)


def adaptive_lp_pool(
    x: jax.Array, *, output_size: OutputSize = None, channels: Channels = "last", norm: float = 2
) -> jax.Array:
    """Power-averages of equal windows (see `lp_pool`); other arguments, result and errors as in `adaptive_avg_pool`.

    Source: Axon.Layers.adaptive_lp_pool.
    """
    windows, strides = _windows("adaptive_lp_pool", jnp.shape(x), output_size, channels)
    return lp_pool(x, kernel_size=windows, strides=strides, channels=channels, norm=norm)


def check_blur_pool(x: Shape, *, channels: Channels = "last") -> None:
    """The shape rule of `blur_pool`."""
    require_rank("blur_pool", x, exactly=4)
    spatial_axes("blur_pool", len(x), channels)


def blur_pool(x: jax.Array, *, channels: Channels = "last") -> jax.Array:
    """Low-pass filter of each channel: `[[1, 2, 1], [2, 4, 2], [1, 2, 1]] / 16`, padded by 1, without a stride.

    Args:
        x: `[batch, height, width, channels]`, or with `channels="first"` `[batch, channels, height, width]`.
        channels: `last` or `first`.
    Returns: an array of x's shape.
    Raises:
        ShapeError: another rank than 4.
    Source: Zhang 2019, arXiv:1904.11486; Axon.Layers.blur_pool.
    """
    check_blur_pool(jnp.shape(x), channels=channels)
    row = jnp.asarray([1, 2, 1], x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)
    size = x.shape[channel_axis(x.ndim, channels)]
    shape = (3, 3, 1, 1) if channels == "last" else (1, 1, 3, 3)
    kernel = jnp.repeat((jnp.outer(row, row) / 16).reshape(shape), size, axis=-1 if channels == "last" else 0)
    return depthwise_conv(x, kernel, padding="same", channels=channels)
