r"""Arithmetic with 8-bit integers: tensors stored as int8 with a scale, and layers that compute with them.

Symmetric: a value is `scale * q` with `q` in [-128, 127], so zero stays zero. The scale is `max|x| / 127.5`, which
puts the largest values half a step beyond the ends: no value is off by more than half a scale.
Source: Axon.Quantization; Jacob et al. 2018, arXiv:1712.05877.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine.errors import DtypeError, ShapeError
from engine.functional.convolution import plan_conv
from engine.functional.linear import add_bias, check_dense
from engine.functional.options import Channels, Padding
from engine.functional.windows import ConvPlan
from engine.shapes import Shape, normalize_axis

STEPS = 127.5
"""How many scales the largest absolute value is."""
MAX_PRODUCTS = (2**31 - 1) // 2**14
"""Products of two 8-bit integers that surely add up in 32 bits."""


def scale_of(peak: jax.Array) -> jax.Array:
    """The scale for values up to `peak` in size, float32; never zero."""
    return jnp.maximum(jnp.asarray(peak, jnp.float32) / STEPS, np.finfo(np.float32).tiny)


def quantize(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`clip(round(x / scale), -128, 127)` as int8; within `128 * scale` it is off by at most half a scale."""
    wide = jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))
    return _rounded(wide / scale.astype(wide.dtype))


def _rounded(steps: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(steps), -128, 127).astype(jnp.int8)


class QTensor(NamedTuple):
    """A tensor as int8 numbers with a scale per output channel.

    Attributes:
        value: int8, of the tensor's shape.
        scale: float32 `[units]`, one per entry of the axis of the units.

    Source: Axon.Quantization.QTensor, whose zero_point is always 0.
    """

    value: jax.Array
    scale: jax.Array

    @classmethod
    def from_tensor(cls, x: jax.Array, *, axis: int = -1) -> QTensor:
        """The nearest int8 tensor, with a scale for each entry of `axis`.

        Raises: `DtypeError` for a tensor that is not of floats, `OptionError` for an axis outside its rank.
        Source: Axon.Quantization.QTensor.from_tensor/2 (rank 2 and float32 only there).
        """
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise DtypeError(f"QTensor.from_tensor: expected a float dtype, got {x.dtype}")
        unit = normalize_axis("QTensor.from_tensor", axis, x.ndim)
        others = tuple(other for other in range(x.ndim) if other != unit)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        peak = jnp.max(jnp.abs(wide), axis=others, initial=0)
        # By the peak first, so that it is 127.5 steps whatever the scale is rounded to.
        steps = wide / jnp.expand_dims(jnp.maximum(peak, np.finfo(np.float32).tiny), others) * STEPS
        return cls(_rounded(steps), scale_of(peak))

    def to_tensor(self, *, axis: int = -1) -> jax.Array:
        """The float32 tensor that it stands for, the same `axis` given."""
        unit = normalize_axis("QTensor.to_tensor", axis, self.value.ndim)
        others = tuple(other for other in range(self.value.ndim) if other != unit)
        return self.value.astype(jnp.float32) * jnp.expand_dims(self.scale, others)


def _float_of(x: jax.Array) -> Any:
    """The dtype of the result for an input x: its own, float32 for integers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(jnp.float32)


def _finish(y: jax.Array, scale: jax.Array, bias: jax.Array | None, dtype: Any, channels: Channels) -> jax.Array:
    """Sums of products scaled back per unit, the bias added, in the dtype asked for."""
    shape = (-1,) if channels == "last" else (-1,) + (1,) * (y.ndim - 2)
    wide = jnp.promote_types(dtype, jnp.float32)
    y = y.astype(wide) * scale.astype(wide).reshape(shape)
    if bias is not None:
        y = add_bias(y, bias.reshape(shape) if bias.ndim else bias)
    return y.astype(dtype)


def _check_kernel(op: str, kernel: QTensor) -> None:
    if kernel.value.dtype != jnp.int8:
        raise DtypeError(f"{op}: expected a kernel of int8 values, got {kernel.value.dtype}")


def _check_scales(op: str, scale: Shape, units: int) -> None:
    if scale != (units,):
        raise ShapeError(f"{op}: expected scales of shape ({units},), got {scale}")


def _check_products(op: str, products: int) -> None:
    if products > MAX_PRODUCTS:
        raise ShapeError(f"{op}: expected at most {MAX_PRODUCTS} products per output, got {products}")


def _optional_shape(x: jax.Array | None) -> Shape | None:
    return None if x is None else jnp.shape(x)


def _shapes(kernel: QTensor) -> tuple[Shape, Shape]:
    return jnp.shape(kernel.value), jnp.shape(kernel.scale)


def check_weight_only_quantized_dense(x: Shape, kernel: Shape, scale: Shape, bias: Shape | None = None) -> None:
    """The shape rule of `weight_only_quantized_dense`; scale is that of the kernel."""
    check_dense(x, kernel, bias)
    _check_scales("weight_only_quantized_dense", scale, kernel[1])


def check_quantized_dense(x: Shape, kernel: Shape, scale: Shape, bias: Shape | None = None) -> None:
    """The shape rule of `quantized_dense`; scale is that of the kernel."""
    check_dense(x, kernel, bias)
    _check_scales("quantized_dense", scale, kernel[1])
    _check_products("quantized_dense", kernel[0])


def weight_only_quantized_dense(x: jax.Array, kernel: QTensor, bias: jax.Array | None = None) -> jax.Array:
    r"""`dense` with int8 weights: $y = (x Q) \cdot s + b$, summed in float32 at least.

    Args:
        x: `[..., in]`, rank 2 or more.
        kernel: int8 `[in, out]` with scales `[out]`.
        bias: `[out]`, a scalar, or None.
    Returns: `[..., out]` in x's dtype; off by at most $\sum_i |x_i| s / 2$.
    Raises:
        ShapeError: shapes do not fit.
        DtypeError: the kernel is not int8.
    Source: Axon.Layers.weight_only_quantized_dense.
    """
    check_weight_only_quantized_dense(jnp.shape(x), *_shapes(kernel), _optional_shape(bias))
    _check_kernel("weight_only_quantized_dense", kernel)
    dtype = _float_of(x)
    # Half-precision sums of numbers up to 128 times an input would overflow.
    wide = jnp.promote_types(dtype, jnp.float32)
    y = jnp.matmul(x.astype(dtype), kernel.value.astype(dtype), preferred_element_type=wide)
    return _finish(y, kernel.scale, bias, dtype, "last")


def quantized_dense(x: jax.Array, kernel: QTensor, input_scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    r"""`dense` of int8 inputs and int8 weights, summed in int32: $y = (q(x) Q) \cdot s_x s + b$.

    Args:
        x: `[..., in]`, rank 2 or more.
        kernel: int8 `[in, out]` with scales `[out]`.
        input_scale: of the inputs, `[]`; what is beyond 128 of it is cut off.
        bias: `[out]`, a scalar, or None.
    Returns: `[..., out]` in x's dtype; for inputs within 128 scales off by at most
        $\sum_i (|x_i| s + |\hat w_i| s_x) / 2$. The derivative by x is 0, as that of rounding.
    Raises:
        ShapeError: shapes do not fit, or the sum could leave 32 bits.
        DtypeError: the kernel is not int8.
    Source: Jacob et al. 2018, arXiv:1712.05877.
    """
    check_quantized_dense(jnp.shape(x), *_shapes(kernel), _optional_shape(bias))
    _check_kernel("quantized_dense", kernel)
    y = jnp.matmul(quantize(x, input_scale), kernel.value, preferred_element_type=jnp.int32)
    return _finish(y, kernel.scale * input_scale, bias, _float_of(x), "last")


def _convolve(
    x: jax.Array, kernel: jax.Array, plan: ConvPlan, channels: Channels, groups: int, dtype: Any
) -> jax.Array:
    axes = tuple(range(x.ndim))
    last = (axes[0], axes[-1], *axes[1:-1]), (axes[-1], axes[-2], *axes[:-2])
    image, weights = last if channels == "last" else (axes, axes)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=plan.strides,
        padding=plan.padding,
        lhs_dilation=plan.input_dilation,
        rhs_dilation=plan.kernel_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, weights, image),
        feature_group_count=groups,
        preferred_element_type=dtype,
    )


def _plan(op: str, x: Shape, kernel: Shape, scale: Shape, bias: Shape | None, **options: Any) -> ConvPlan:
    plan = plan_conv(op, x, kernel, bias, **options, batch_group_size=1)
    _check_scales(op, scale, kernel[-1] if options["channels"] == "last" else kernel[0])
    if op == "quantized_conv":
        _check_products(op, math.prod(kernel) // max(*scale, 1))
    return plan


def check_weight_only_quantized_conv(
    x: Shape,
    kernel: Shape,
    scale: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> None:
    """The shape rule of `weight_only_quantized_conv`; scale is that of the kernel."""
    _plan(
        "weight_only_quantized_conv",
        x,
        kernel,
        scale,
        bias,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )


def weight_only_quantized_conv(
    x: jax.Array,
    kernel: QTensor,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> jax.Array:
    """`conv` with int8 weights, computed in float32 at least.

    Args:
        kernel: int8 `[*window, in / feature_group_size, units]` (channels first: `[units, in / groups, *window]`) with
            scales `[units]`.
    Other arguments, shapes and errors as `conv`; `DtypeError` for a kernel that is not int8.
    Returns: in x's dtype.
    """
    plan = _plan(
        "weight_only_quantized_conv",
        jnp.shape(x),
        *_shapes(kernel),
        _optional_shape(bias),
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )
    _check_kernel("weight_only_quantized_conv", kernel)
    dtype = _float_of(x)
    wide = jnp.promote_types(dtype, jnp.float32)
    y = _convolve(x.astype(wide), kernel.value.astype(wide), plan, channels, feature_group_size, wide)
    return _finish(y, kernel.scale, bias, dtype, channels)


def check_quantized_conv(
    x: Shape,
    kernel: Shape,
    scale: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> None:
    """The shape rule of `quantized_conv`; scale is that of the kernel."""
    _plan(
        "quantized_conv",
        x,
        kernel,
        scale,
        bias,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )


def quantized_conv(
    x: jax.Array,
    kernel: QTensor,
    input_scale: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    channels: Channels = "last",
    feature_group_size: int = 1,
) -> jax.Array:
    """`conv` of int8 inputs and int8 weights, summed in int32.

    Args:
        kernel: as in `weight_only_quantized_conv`.
        input_scale: of the inputs, `[]`; what is beyond 128 of it is cut off.
    Other arguments, shapes and errors as `conv`; `ShapeError` when the sum could leave 32 bits, `DtypeError` for a
    kernel that is not int8.
    Returns: in x's dtype.
    """
    plan = _plan(
        "quantized_conv",
        jnp.shape(x),
        *_shapes(kernel),
        _optional_shape(bias),
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        channels=channels,
        feature_group_size=feature_group_size,
    )
    _check_kernel("quantized_conv", kernel)

    def integers(q: jax.Array, value: jax.Array) -> jax.Array:
        return _convolve(q, value, plan, channels, feature_group_size, jnp.int32)

    def floats(q: jax.Array, value: jax.Array) -> jax.Array:
        y = _convolve(q.astype(jnp.float32), value.astype(jnp.float32), plan, channels, feature_group_size, jnp.float32)
        return jnp.round(y).astype(jnp.int32)

    # cuDNN has no convolution of int8 into int32; in floats it is exact up to 2**24, and nearly so above.
    y = lax.platform_dependent(quantize(x, input_scale), kernel.value, cuda=floats, default=integers)
    return _finish(y, kernel.scale * input_scale, bias, _float_of(x), channels)
