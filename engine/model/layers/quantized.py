"""Dense and convolution layers with 8-bit weights, and with 8-bit inputs too; `engine.model.quantize` makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from engine import functional as F
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.model.layers.convolution import CONV
from engine.model.layers.linear import DENSE
from engine.shapes import Shape

if TYPE_CHECKING:
    from engine.model.model import Model

# Of a layer that was not made from a trained one: weights uniform in +-0.05, inputs up to 6.4.
_WEIGHT_SCALE = {"name": "full", "value": 0.05 / 127}
_INPUT_SCALE = {"name": "full", "value": 0.05}


def _any_integer(shape: Shape, dtype: Any, key: jax.Array) -> jax.Array:
    return jax.random.randint(key, shape, -127, 128, jnp.int32).astype(dtype)


def _params(op: Op, *, static: bool) -> Callable[[Mapping[str, Any]], tuple[ParamSpec, ...]]:
    """The parameters of `op` with an int8 kernel and its scales in place of its kernel; state, so never trained."""

    def params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
        kernel, *others = op.params({**values, "kernel_initializer": "zeros"})
        value = replace(kernel, name="kernel.value", initializer=_any_integer, kind="state", dtype="s8")
        scale = ParamSpec("kernel.scale", lambda x: (values["units"],), _WEIGHT_SCALE, "state", "f32")
        of_input = ParamSpec("input.scale", lambda x: (), _INPUT_SCALE, "state", "f32")
        return (value, scale, *((of_input,) * static), *others)

    return params


def _weight_only(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def apply(x: jax.Array, *, kernel: Mapping[str, Any], bias: Any = None, **options: Any) -> jax.Array:
        return function(x, F.QTensor(**kernel), bias, **options)

    return apply


def _static(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def apply(
        x: jax.Array, *, kernel: Mapping[str, Any], input: Mapping[str, Any], bias: Any = None, **options: Any
    ) -> jax.Array:
        return function(x, F.QTensor(**kernel), input["scale"], bias, **options)

    return apply


def _op(name: str, like: Op, function: Callable[..., jax.Array], *, static: bool) -> Op:
    return Op(
        name,
        apply=(_static if static else _weight_only)(function),
        params=_params(like, static=static),
        check=like.check,
        options={option: domain for option, domain in like.options.items() if option != "kernel_initializer"},
        apply_options=like.apply_options,
    )


WEIGHT_ONLY_QUANTIZED_DENSE = _op("weight_only_quantized_dense", DENSE, F.weight_only_quantized_dense, static=False)
WEIGHT_ONLY_QUANTIZED_CONV = _op("weight_only_quantized_conv", CONV, F.weight_only_quantized_conv, static=False)
QUANTIZED_DENSE = _op("quantized_dense", DENSE, F.quantized_dense, static=True)
QUANTIZED_CONV = _op("quantized_conv", CONV, F.quantized_conv, static=True)


def weight_only_quantized_dense(
    x: Model, units: int, *, use_bias: bool = True, bias_initializer: Any = "zeros", name: Namer = None
) -> Model:
    r"""`dense` with int8 weights: $y = (x Q) \cdot s + b$.

    Args:
        x: `[..., in]`, rank 2 or more.
        units: size `out` of the new last axis.
    Returns: `[..., out]`. State: kernel.value int8 `[in, out]`, kernel.scale `[out]`. Parameters: bias `[out]`.
    Source: Axon.weight_only_quantized_dense/3.
    """
    values = {"units": units, "use_bias": use_bias, "bias_initializer": bias_initializer}
    return extend(WEIGHT_ONLY_QUANTIZED_DENSE, [x], values, name)


def quantized_dense(
    x: Model, units: int, *, use_bias: bool = True, bias_initializer: Any = "zeros", name: Namer = None
) -> Model:
    r"""`dense` of int8 inputs and int8 weights: $y = (q(x) Q) \cdot s_x s + b$.

    Arguments and errors as `weight_only_quantized_dense`.
    Returns: `[..., out]`. State: kernel.value int8 `[in, out]`, kernel.scale `[out]`, input.scale `[]`.
    """
    values = {"units": units, "use_bias": use_bias, "bias_initializer": bias_initializer}
    return extend(QUANTIZED_DENSE, [x], values, name)


def weight_only_quantized_conv(
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
    use_bias: bool = True,
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """`conv` with int8 weights; options, shapes and errors as there.

    State: kernel.value int8 of `conv`'s kernel shape, kernel.scale `[units]`. Parameters: bias `[units]`.
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
        "bias_initializer": bias_initializer,
    }
    return extend(WEIGHT_ONLY_QUANTIZED_CONV, [x], values, name)


def quantized_conv(
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
    use_bias: bool = True,
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """`conv` of int8 inputs and int8 weights; options, shapes and errors as there.

    State: kernel.value, kernel.scale as in `weight_only_quantized_conv`, input.scale `[]`. Parameters: bias `[units]`.
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
        "bias_initializer": bias_initializer,
    }
    return extend(QUANTIZED_CONV, [x], values, name)
