"""Convolution layers, one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.activations import Activation, activate
from engine.model.layers.basics import extend
from engine.shapes import Shape, per_axis, require_rank

if TYPE_CHECKING:
    from engine.model.model import Model


_WINDOWED = {
    "kernel_size": options.window,
    "strides": options.window,
    "padding": options.padding,
    "input_dilation": options.window,
    "kernel_dilation": options.window,
    "channels": options.choice("first", "last"),
    "use_bias": options.boolean,
    "kernel_initializer": options.initializer,
    "bias_initializer": options.initializer,
}
_APPLIED = ("strides", "padding", "input_dilation", "kernel_dilation", "channels")


def _depth(values: Mapping[str, Any], x: Shape) -> int:
    """Number of input channels."""
    return x[1 if values["channels"] == "first" else -1]


def _kernel(values: Mapping[str, Any], window: Shape, depth: int, units: int) -> Shape:
    return (units, depth, *window) if values["channels"] == "first" else (*window, depth, units)


def _params(
    op: str,
    values: Mapping[str, Any],
    window: Callable[[Shape], Shape],
    depth: Callable[[Shape], int],
    units: Callable[[Shape], int],
    suffix: str = "",
) -> tuple[ParamSpec, ...]:
    """Kernel and bias, each size a function of the input's shape."""

    def kernel(x: Shape) -> Shape:
        require_rank(op, x, at_least=3)
        return _kernel(values, window(x), depth(x), units(x))

    parts = (
        ParamSpec(f"kernel{suffix}", kernel, values["kernel_initializer"], layout=values["channels"]),
        ParamSpec(f"bias{suffix}", lambda x: (units(x),), values["bias_initializer"]),
    )
    return parts if values["use_bias"] else parts[:1]


def _full_window(op: str, values: Mapping[str, Any]) -> Callable[[Shape], Shape]:
    return lambda x: per_axis(op, "kernel_size", values["kernel_size"], len(x) - 2)


def _conv_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    groups = values["feature_group_size"]
    return _params(
        "conv", values, _full_window("conv", values), lambda x: _depth(values, x) // groups, lambda x: values["units"]
    )


CONV = Op(
    "conv",
    apply=F.conv,
    params=_conv_params,
    options={"units": options.positive, "feature_group_size": options.positive, **_WINDOWED},
    apply_options={option: option for option in (*_APPLIED, "feature_group_size")},
)


def conv(
    x: Model,
    units: int,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: str = "last",
    feature_group_size: int = 1,
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    r"""Convolution over 1 to 3 spatial axes: $y = f(x * W + b)$, cross-correlation, the kernel is not flipped.

    Args:
        x: `[batch, *spatial, in]`, or `[batch, in, *spatial]` for channels `first`.
        units: number of filters; a multiple of `feature_group_size`, as is `in`.
        kernel_size, strides, input_dilation, kernel_dilation: one integer, or one per spatial axis.
        padding: `valid`, `same`, or `(low, high)` per spatial axis.
    Returns: `[batch, *spatial', units]`. Parameters: kernel `[*kernel_size, in / groups, units]` (channels first:
        `[units, in / groups, *kernel_size]`), bias `[units]`.
    Raises: `OptionError`; at build `ShapeError`.
    Source: Axon.conv/3.
    """
    values = {
        "units": units,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
        "feature_group_size": feature_group_size,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(CONV, [x], values, name), activation)


CONV_TRANSPOSE = Op(
    "conv_transpose",
    apply=F.conv_transpose,
    params=lambda values: _params(
        "conv_transpose",
        values,
        _full_window("conv_transpose", values),
        lambda x: _depth(values, x) // values["feature_group_size"],
        lambda x: values["units"],
    ),
    options={
        "units": options.positive,
        "feature_group_size": options.positive,
        **{option: domain for option, domain in _WINDOWED.items() if option != "input_dilation"},
    },
    apply_options={option: option for option in (*_APPLIED, "feature_group_size") if option != "input_dilation"},
)


def conv_transpose(
    x: Model,
    units: int,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "valid",
    kernel_dilation: int | Sequence[int] = 1,
    channels: str = "last",
    feature_group_size: int = 1,
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Fractionally strided convolution, the shape of what a `conv` with these options would have come from.

    Args:
        x: `[batch, *spatial, in]`, or channels `first`.
        units: number of filters.
        strides: by how much the output is larger.
        padding: `valid`, `same`, or `(low, high)` per spatial axis of the convolution itself.
    Other arguments, parameters and errors as `conv`. Source: Axon.conv_transpose/3.
    """
    values = {
        "units": units,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
        "feature_group_size": feature_group_size,
    }
    return activate(extend(CONV_TRANSPOSE, [x], values, name), activation)


DEPTHWISE_CONV = Op(
    "depthwise_conv",
    apply=F.depthwise_conv,
    params=lambda values: _params(
        "depthwise_conv",
        values,
        _full_window("depthwise_conv", values),
        lambda x: 1,
        lambda x: _depth(values, x) * values["channel_multiplier"],
    ),
    options={"channel_multiplier": options.positive, **_WINDOWED},
    apply_options={option: option for option in _APPLIED},
)


def depthwise_conv(
    x: Model,
    channel_multiplier: int,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: str = "last",
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Convolution of every input channel by itself, with `channel_multiplier` filters each.

    Returns: `[batch, *spatial', in * channel_multiplier]`. Parameters: kernel `[*kernel_size, 1, in * multiplier]`
        (channels first: `[in * multiplier, 1, *kernel_size]`), bias `[in * multiplier]`.
    Arguments and errors as `conv`. Source: Axon.depthwise_conv/3.
    """
    values = {
        "channel_multiplier": channel_multiplier,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(DEPTHWISE_CONV, [x], values, name), activation)


def _separable_params(op: str, values: Mapping[str, Any], axes: int) -> tuple[ParamSpec, ...]:
    def window(axis: int) -> Callable[[Shape], Shape]:
        def of(x: Shape) -> Shape:
            size = per_axis(op, "kernel_size", values["kernel_size"], axes)
            return tuple(size[axis] if other == axis else 1 for other in range(axes))

        return of

    def units(x: Shape) -> int:
        require_rank(op, x, exactly=axes + 2)
        return int(_depth(values, x) * values["channel_multiplier"])

    # The second and later passes see `in * multiplier` channels and keep their number.
    return tuple(
        spec
        for axis in range(axes)
        for spec in _params(op, values, window(axis), lambda x: 1, units, suffix=f"_{axis + 1}")
    )


def _separable_op(name: str, apply: Callable[..., Any], axes: int) -> Op:
    return Op(
        name,
        apply=apply,
        params=lambda values: _separable_params(name, values, axes),
        options={"channel_multiplier": options.positive, **_WINDOWED},
        apply_options={option: option for option in _APPLIED},
    )


SEPARABLE_CONV2D = _separable_op("separable_conv2d", F.separable_conv2d, 2)
SEPARABLE_CONV3D = _separable_op("separable_conv3d", F.separable_conv3d, 3)


def separable_conv2d(
    x: Model,
    channel_multiplier: int,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: str = "last",
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Two depthwise convolutions, one per spatial axis; spatially separable, without pointwise mixing.

    Args:
        x: `[batch, height, width, in]`, or channels `first`; rank 4.
    Parameters: kernel_1 `[k0, 1, 1, in * multiplier]`, kernel_2 `[1, k1, 1, in * multiplier]`, bias_1, bias_2.
    Other arguments and errors as `depthwise_conv`. Source: Axon.separable_conv2d/3.
    """
    values = {
        "channel_multiplier": channel_multiplier,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(SEPARABLE_CONV2D, [x], values, name), activation)


def separable_conv3d(
    x: Model,
    channel_multiplier: int,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: str = "last",
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Three depthwise convolutions, one per spatial axis; rank 5, otherwise as `separable_conv2d`.

    Source: Axon.separable_conv3d/3.
    """
    values = {
        "channel_multiplier": channel_multiplier,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "input_dilation": input_dilation,
        "kernel_dilation": kernel_dilation,
        "channels": channels,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(SEPARABLE_CONV3D, [x], values, name), activation)
