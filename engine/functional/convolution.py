r"""Convolutions (cross-correlations: the kernel is not flipped) over any number of spatial axes.

Inputs are `[batch, *spatial, channels]`, or `[batch, channels, *spatial]` with `channels="first"`; kernels are
`[*window, in / groups, units]`, or `[units, in / groups, *window]`. Source: Axon.Layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import ShapeError
from engine.functional.linear import check_bias_shape
from engine.functional.options import Channels, Padding, as_integer, as_sizes
from engine.functional.windows import as_pads, channel_axis, dilated, output_sizes, spatial_axes
from engine.shapes import Shape, require_rank


class _Plan(NamedTuple):
    strides: Shape
    padding: tuple[tuple[int, int], ...]
    input_dilation: Shape
    kernel_dilation: Shape


def _plan_conv(
    op: str,
    x: Shape,
    kernel: Shape,
    bias: Shape | None,
    *,
    strides: int | Sequence[int],
    padding: Padding,
    input_dilation: int | Sequence[int],
    kernel_dilation: int | Sequence[int],
    channels: Channels,
    feature_group_size: int,
    batch_group_size: int,
) -> _Plan:
    """Resolve and check a convolution's options."""
    require_rank(op, x, at_least=3)
    axes = spatial_axes(op, len(x), channels)
    if len(kernel) != len(x):
        raise ShapeError(f"{op}: expected a kernel of rank {len(x)} for x of shape {x}, got {kernel}")
    _check_groups(op, x, kernel, channels, feature_group_size, batch_group_size)
    check_bias_shape(op, bias, kernel[-1] if channels == "last" else kernel[0])
    rank = len(axes)
    steps = as_sizes(op, "strides", strides, rank)
    x_holes = as_sizes(op, "input_dilation", input_dilation, rank)
    kernel_holes = as_sizes(op, "kernel_dilation", kernel_dilation, rank)
    window = kernel[:rank] if channels == "last" else kernel[2:]
    sizes = [dilated(x[axis], hole) for axis, hole in zip(axes, x_holes, strict=True)]
    extents = [dilated(size, hole) for size, hole in zip(window, kernel_holes, strict=True)]
    pads = as_pads(op, padding, sizes, extents, steps)
    output_sizes(op, x, sizes, extents, steps, pads)
    return _Plan(steps, pads, x_holes, kernel_holes)


def _check_groups(
    op: str, x: Shape, kernel: Shape, channels: Channels, feature_group_size: int, batch_group_size: int
) -> None:
    units, per_group = (kernel[-1], kernel[-2]) if channels == "last" else kernel[:2]
    size = x[channel_axis(len(x), channels)]
    groups = as_integer(op, "feature_group_size", feature_group_size, at_least=1)
    batches = as_integer(op, "batch_group_size", batch_group_size, at_least=1)
    if size % groups or units % groups:
        raise ShapeError(
            f"{op}: expected channels divisible by feature_group_size {groups}, got {size} in and {units} out"
        )
    if per_group * groups != size:
        raise ShapeError(
            f"{op}: expected a kernel of {size // groups} input channels for x of shape {x} "
            f"in {groups} groups, got kernel {kernel}"
        )
    if batches > 1 and (x[0] % batches or units % batches):
        raise ShapeError(
            f"{op}: expected batch and units divisible by batch_group_size {batches}, got {x[0]} and {units}"
        )


def check_conv(
    x: Shape,
    kernel: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
    batch_group_size: int = 1,
) -> None:
    """The shape rule of `conv`."""
    _plan_conv(
        "conv",
        x,
        kernel,
        bias,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
        batch_group_size=batch_group_size,
    )


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    plan: _Plan,
    *,
    channels: Channels,
    feature_group_size: int = 1,
    batch_group_size: int = 1,
) -> jax.Array:
    rank = x.ndim
    axes = tuple(range(rank))
    if channels == "last":
        image, weights = (0, rank - 1, *axes[1:-1]), (rank - 1, rank - 2, *axes[:-2])
    else:
        image = weights = axes
    dtype = jnp.result_type(x, kernel)
    y = lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=plan.strides,
        padding=plan.padding,
        lhs_dilation=plan.input_dilation,
        rhs_dilation=plan.kernel_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, weights, image),
        feature_group_count=feature_group_size,
        batch_group_count=batch_group_size,
    )
    if bias is None:
        return y
    if bias.ndim and channels == "first":
        bias = bias.reshape((-1,) + (1,) * (rank - 2))
    return y + bias


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
    batch_group_size: int = 1,
) -> jax.Array:
    """Convolution, grouped where a group size is above 1.

    Args:
        x: `[batch, *spatial, in]` (see the module's head), rank 3 or more.
        kernel: `[*window, in / feature_group_size, units]`.
        bias: `[units]`, a scalar, or `None` for no bias.
        strides: step of the window, per spatial axis or one for all; likewise the dilations.
        padding: `valid`, `same`, or a pair (before, after) per spatial axis.
        input_dilation: `n - 1` zeros are put between the elements of x (fractional strides).
        kernel_dilation: `n - 1` zeros are put between the elements of the kernel (atrous convolution).
        channels: `last` or `first`.
        feature_group_size: groups of channels that see only each other.
        batch_group_size: groups of the batch, each convolved with its share of the units; divides the batch.
    Returns: `[batch / batch_group_size, *out, units]`,
        `out = (size + padding - window) // stride + 1` with dilated sizes.
    Raises:
        ShapeError: shapes do not fit, or no window fits into the padded input.
        OptionError: an option outside its domain.
    Source: Axon.Layers.conv.
    """
    plan = _plan_conv(
        "conv",
        jnp.shape(x),
        jnp.shape(kernel),
        None if bias is None else jnp.shape(bias),
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
        batch_group_size=batch_group_size,
    )
    return _convolve(
        x,
        kernel,
        bias,
        plan,
        channels=channels,
        feature_group_size=feature_group_size,
        batch_group_size=batch_group_size,
    )
