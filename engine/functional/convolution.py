r"""Convolutions (cross-correlations: the kernel is not flipped) over any number of spatial axes.

Inputs are `[batch, *spatial, channels]`, or `[batch, channels, *spatial]` with `channels="first"`; kernels are
`[*window, in / groups, units]`, or `[units, in / groups, *window]`. Source: Axon.Layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.functional.convolution_forms import Geometry, convolve
from engine.functional.linear import add_bias, check_bias_shape
from engine.functional.options import Channels, Padding, as_integer, as_sizes, require_choice
from engine.functional.windows import ConvPlan, as_pads, channel_axis, dilated, output_sizes, spatial_axes
from engine.shapes import Shape, require_rank


def plan_conv(
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
) -> ConvPlan:
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
    pads = as_pads(op, padding, extents)
    output = output_sizes(op, x, sizes, extents, steps, pads)
    batch = x[0] // batch_group_size
    full = (batch, *output, kernel[-1]) if channels == "last" else (batch, kernel[0], *output)
    return ConvPlan(steps, pads, x_holes, kernel_holes, full)


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
        raise ShapeError(f"{op}: expected batch and units divisible by batch_group_size {batches}, got {x[0]}, {units}")


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
    plan_conv(
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
    plan: ConvPlan,
    *,
    channels: Channels,
    feature_group_size: int = 1,
    batch_group_size: int = 1,
) -> jax.Array:
    dtype = jnp.result_type(x, kernel)
    geometry = Geometry(
        plan.strides,
        plan.padding,
        plan.input_dilation,
        plan.kernel_dilation,
        channels,
        feature_group_size,
        batch_group_size,
    )
    y = convolve(x.astype(dtype), kernel.astype(dtype), geometry)
    if bias is None:
        return y
    if bias.ndim and channels == "first":
        bias = bias.reshape((-1,) + (1,) * (x.ndim - 2))
    return add_bias(y, bias)


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
    plan = plan_conv(
        "conv",
        jnp.shape(x),
        jnp.shape(kernel),
        _optional_shape(bias),
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


def _plan_depthwise(op: str, x: Shape, kernel: Shape, bias: Shape | None, **options: Any) -> ConvPlan:
    """The plan of a convolution with one group per input channel."""
    require_rank(op, x, at_least=3)
    spatial_axes(op, len(x), options["channels"])
    groups = x[channel_axis(len(x), options["channels"])]
    return plan_conv(op, x, kernel, bias, **options, feature_group_size=groups, batch_group_size=1)


def _optional_shape(x: jax.Array | None) -> Shape | None:
    return None if x is None else jnp.shape(x)


def _options(
    strides: int | Sequence[int],
    padding: Padding,
    input_dilation: int | Sequence[int],
    kernel_dilation: int | Sequence[int],
    channels: Channels,
) -> dict[str, Any]:
    """The options that all but the transposed convolution share."""
    return {
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
    }


def check_depthwise_conv(
    x: Shape,
    kernel: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> None:
    """The shape rule of `depthwise_conv`."""
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    _plan_depthwise("depthwise_conv", x, kernel, bias, **options)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> jax.Array:
    """Convolution of each input channel by itself, with `m` filters.

    Args:
        kernel: `[*window, 1, in * m]`; with `channels="first"`, `[in * m, 1, *window]`.
        bias: `[in * m]`, a scalar, or `None` for no bias.
    Other arguments, result and errors as in `conv`. Source: Axon.Layers.depthwise_conv.
    """
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    shapes = (jnp.shape(x), jnp.shape(kernel), _optional_shape(bias))
    plan = _plan_depthwise("depthwise_conv", *shapes, **options)
    groups = x.shape[channel_axis(x.ndim, channels)]
    return _convolve(x, kernel, bias, plan, channels=channels, feature_group_size=groups)


def _plan_separable(
    op: str, rank: int, x: Shape, kernels: Sequence[Shape], biases: Sequence[Shape | None], **options: Any
) -> list[ConvPlan]:
    """The plans of one depthwise convolution after another."""
    require_rank(op, x, exactly=rank)
    plans = []
    for kernel, bias in zip(kernels, biases, strict=True):
        plans.append(_plan_depthwise(op, x, kernel, bias, **options))
        x = plans[-1].output
    return plans


def _convolve_separably(
    op: str, rank: int, x: jax.Array, kernels: Sequence[jax.Array], biases: Sequence[jax.Array | None], **options: Any
) -> jax.Array:
    shapes = (list(map(jnp.shape, kernels)), list(map(_optional_shape, biases)))
    plans = _plan_separable(op, rank, jnp.shape(x), *shapes, **options)
    channels = options["channels"]
    for plan, kernel, bias in zip(plans, kernels, biases, strict=True):
        groups = x.shape[channel_axis(rank, channels)]
        x = _convolve(x, kernel, bias, plan, channels=channels, feature_group_size=groups)
    return x


def check_separable_conv2d(
    x: Shape,
    kernel_1: Shape,
    kernel_2: Shape,
    bias_1: Shape | None = None,
    bias_2: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> None:
    """The shape rule of `separable_conv2d`."""
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    _plan_separable("separable_conv2d", 4, x, (kernel_1, kernel_2), (bias_1, bias_2), **options)


def separable_conv2d(
    x: jax.Array,
    kernel_1: jax.Array,
    kernel_2: jax.Array,
    bias_1: jax.Array | None = None,
    bias_2: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> jax.Array:
    """Two depthwise convolutions, one per spatial axis; both with the same strides, padding and dilations.

    Spatially separable: nothing mixes channels, unlike what Keras calls by this name.

    Args:
        x: `[batch, height, width, in]`, or channels first.
        kernel_1: `[k0, 1, 1, in * m]`; kernel_2: `[1, k1, 1, in * m]`; or as `depthwise_conv` with channels first.
        bias_1, bias_2: `[in * m]`, a scalar, or `None` for no bias.
    Other arguments, result and errors as in `conv`. Source: Axon.Layers.separable_conv2d.
    """
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    kernels, biases = (kernel_1, kernel_2), (bias_1, bias_2)
    return _convolve_separably("separable_conv2d", 4, x, kernels, biases, **options)


def check_separable_conv3d(
    x: Shape,
    kernel_1: Shape,
    kernel_2: Shape,
    kernel_3: Shape,
    bias_1: Shape | None = None,
    bias_2: Shape | None = None,
    bias_3: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> None:
    """The shape rule of `separable_conv3d`."""
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    kernels, biases = (kernel_1, kernel_2, kernel_3), (bias_1, bias_2, bias_3)
    _plan_separable("separable_conv3d", 5, x, kernels, biases, **options)


def separable_conv3d(
    x: jax.Array,
    kernel_1: jax.Array,
    kernel_2: jax.Array,
    kernel_3: jax.Array,
    bias_1: jax.Array | None = None,
    bias_2: jax.Array | None = None,
    bias_3: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> jax.Array:
    """Three depthwise convolutions, one per spatial axis; see `separable_conv2d`.

    Args:
        x: `[batch, depth, height, width, in]`, or channels first.
        kernel_1: `[k0, 1, 1, 1, in * m]`; kernel_2 and kernel_3 likewise with the window on the next axis.
        bias_1, bias_2, bias_3: `[in * m]`, a scalar, or `None` for no bias.
    Other arguments, result and errors as in `conv`. Source: Axon.Layers.separable_conv3d.
    """
    options = _options(strides, padding, input_dilation, kernel_dilation, channels)
    kernels, biases = (kernel_1, kernel_2, kernel_3), (bias_1, bias_2, bias_3)
    return _convolve_separably("separable_conv3d", 5, x, kernels, biases, **options)


def _transposed_pads(padding: Padding, extent: int, stride: int) -> tuple[int, int]:
    """Padding of one axis of the dilated input, so that the output is what a convolution would have come from."""
    if padding == "valid":
        return extent - 1, max(extent, stride) - 1
    total = extent + stride - 2
    before = extent - 1 if stride > extent - 1 else -(-total // 2)
    return before, total - before


def _plan_transpose(
    x: Shape,
    kernel: Shape,
    bias: Shape | None,
    *,
    strides: int | Sequence[int],
    padding: Padding,
    kernel_dilation: int | Sequence[int],
    channels: Channels,
    feature_group_size: int,
) -> ConvPlan:
    op = "conv_transpose"
    require_rank(op, x, at_least=3)
    rank = len(spatial_axes(op, len(x), channels))
    steps = as_sizes(op, "strides", strides, rank)
    holes = as_sizes(op, "kernel_dilation", kernel_dilation, rank)
    window = kernel[:rank] if channels == "last" else kernel[2:]
    if isinstance(padding, str):
        require_choice(op, "padding", padding, ("valid", "same"))
        extents = [dilated(size, hole) for size, hole in zip(window, holes, strict=False)]
        padding = [_transposed_pads(padding, *pair) for pair in zip(extents, steps, strict=False)]
    return plan_conv(
        op,
        x,
        kernel,
        bias,
        strides=1,
        padding=padding,
        input_dilation=steps,
        kernel_dilation=holes,
        channels=channels,
        feature_group_size=feature_group_size,
        batch_group_size=1,
    )


def check_conv_transpose(
    x: Shape,
    kernel: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> None:
    """The shape rule of `conv_transpose`."""
    _plan_transpose(
        x,
        kernel,
        bias,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> jax.Array:
    """Fractionally strided convolution: zeros are put between the elements of x, by `strides`.

    Args:
        x: `[batch, *spatial, in]` (see the module's head), rank 3 or more.
        kernel: `[*window, in / groups, units]`, not flipped.
        bias: `[units]`, a scalar, or `None` for no bias.
        strides: by how much the output is larger, per spatial axis or one for all.
        padding: `valid` gives `(size - 1) * stride + max(window, stride)` elements (window dilated), `same`
            `size * stride`; pairs (before, after) are those of the convolution itself.
        kernel_dilation: `n - 1` zeros are put between the elements of the kernel.
        channels: `last` or `first`.
        feature_group_size: how many groups; each sees its share of the input channels.
    Errors as in `conv`. Source: Zeiler et al. 2010; Axon.Layers.conv_transpose.
    """
    shapes = (jnp.shape(x), jnp.shape(kernel), _optional_shape(bias))
    plan = _plan_transpose(
        *shapes,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )
    return _convolve(x, kernel, bias, plan, channels=channels, feature_group_size=feature_group_size)
