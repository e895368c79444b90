"""Convolution layers, one to three spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.activations import Activation, activate
from engine.model.layers.basics import extend
from engine.shapes import Shape, per_axis

if TYPE_CHECKING:
    from engine.model.model import Model


def _conv_kernel(values: Mapping[str, Any], x: Shape) -> Shape:
    size = per_axis("conv", "kernel_size", values["kernel_size"], len(x) - 2)
    first = values["channels"] == "first"
    depth = x[1 if first else -1] // values["feature_group_size"]
    return (values["units"], depth, *size) if first else (*size, depth, values["units"])


def _conv_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    kernel = ParamSpec(
        "kernel",
        lambda x: _conv_kernel(values, x),
        values["kernel_initializer"],
        layout=values["channels"],
    )
    bias = ParamSpec("bias", lambda x: (values["units"],), values["bias_initializer"])
    return (kernel, bias) if values["use_bias"] else (kernel,)


CONV = Op(
    "conv",
    apply=F.conv,
    params=_conv_params,
    options={
        "units": options.positive,
        "kernel_size": options.window,
        "strides": options.window,
        "padding": options.padding,
        "input_dilation": options.window,
        "kernel_dilation": options.window,
        "channels": options.choice("first", "last"),
        "feature_group_size": options.positive,
        "use_bias": options.boolean,
        "kernel_initializer": options.initializer,
        "bias_initializer": options.initializer,
    },
    apply_options={
        option: option
        for option in ("strides", "padding", "input_dilation", "kernel_dilation", "channels", "feature_group_size")
    },
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
