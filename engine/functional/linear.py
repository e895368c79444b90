r"""Linear maps: dense, bias, bilinear and the lookup of an embedding. Source: Axon.Layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import DtypeError, ShapeError
from engine.shapes import Shape, normalize_axis, require_rank


def check_bias_shape(op: str, bias: Shape | None, units: int) -> None:
    """Raise `ShapeError` unless `bias` is missing, a scalar, or holds one value per unit."""
    if bias is not None and bias not in ((), (units,)):
        raise ShapeError(f"{op}: expected a bias of shape ({units},), got {bias}")


def _widened(x: jax.Array) -> jax.Array:
    """Half precision as float32, anything else as it is."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 and jnp.issubdtype(x.dtype, jnp.floating) else x


def _narrowed(x: jax.Array, dtype: Any) -> jax.Array:
    return x if x.dtype == dtype else x.astype(dtype)


def spread(parameter: jax.Array, shape: Shape) -> jax.Array:
    """A parameter broadcast to `shape`, its gradient summed in float32 at least: in bfloat16 ones add up to 256."""
    parameter = jnp.asarray(parameter)
    return _narrowed(jnp.broadcast_to(_widened(parameter), shape), parameter.dtype)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`y + bias`, broadcast."""
    return y + spread(bias, y.shape)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, on the CPU as a product of two matrices.

    The kernel's gradient then sums over one axis. Over several, XLA's CPU backend transposes both factors first.
    """
    if x.ndim == 2 or jax.default_backend() != "cpu":
        return jnp.matmul(x, kernel)
    return jnp.matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])


def check_dense(x: Shape, kernel: Shape, bias: Shape | None = None) -> None:
    """The shape rule of `dense`."""
    require_rank("dense", x, at_least=2)
    if len(kernel) != 2 or x[-1] != kernel[0]:
        raise ShapeError(f"dense: expected a kernel of shape ({x[-1]}, units) for x of shape {x}, got {kernel}")
    check_bias_shape("dense", bias, kernel[1])


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    r"""Affine map of the last axis: $y = x W + b$.

    Args:
        x: `[..., in]`, rank 2 or more.
        kernel: `[in, out]`.
        bias: `[out]`, a scalar, or `None` for no bias.
    Returns: `[..., out]`.
    Raises:
        ShapeError: shapes do not fit.
    Source: Axon.Layers.dense.
    """
    check_dense(jnp.shape(x), jnp.shape(kernel), None if bias is None else jnp.shape(bias))
    y = _product(x, kernel)
    return y if bias is None else add_bias(y, bias)


def check_bias(x: Shape, bias: Shape) -> None:
    """The shape rule of `bias`."""
    require_rank("bias", x, at_least=1)
    check_bias_shape("bias", bias, x[-1])


def bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a vector `[n]` to the last axis of `x`, `[..., n]`. Source: Axon.Layers.bias."""
    check_bias(jnp.shape(x), jnp.shape(bias))
    return add_bias(x, bias)


def check_bilinear(input1: Shape, input2: Shape, kernel: Shape, bias: Shape | None = None) -> None:
    """The shape rule of `bilinear`."""
    require_rank("bilinear", input1, at_least=2)
    if input1[:-1] != input2[:-1]:
        raise ShapeError(f"bilinear: expected inputs of equal leading sizes, got {input1} and {input2}")
    if len(kernel) != 3 or kernel[1:] != (input1[-1], input2[-1]):
        raise ShapeError(
            f"bilinear: expected a kernel of shape (units, {input1[-1]}, {input2[-1]}) "
            f"for inputs of shape {input1} and {input2}, got {kernel}"
        )
    check_bias_shape("bilinear", bias, kernel[0])


def bilinear(input1: jax.Array, input2: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    r"""Bilinear form of two inputs: $y_o = x_1^T K_o x_2 + b_o$.

    Args:
        input1: `[..., in1]`, rank 2 or more.
        input2: `[..., in2]`, with the same leading axes.
        kernel: `[out, in1, in2]`.
        bias: `[out]`, a scalar, or `None` for no bias.
    Returns: `[..., out]`.
    Raises:
        ShapeError: shapes do not fit.
    Source: Axon.Layers.bilinear (rank 2 only there).
    """
    shapes = (jnp.shape(input1), jnp.shape(input2), jnp.shape(kernel))
    check_bilinear(*shapes, None if bias is None else jnp.shape(bias))
    y = jnp.einsum("...i,oij,...j->...o", input1, kernel, input2)
    return y if bias is None else add_bias(y, bias)


def check_embedding(x: Shape, kernel: Shape) -> None:
    """The shape rule of `embedding`."""
    if len(kernel) != 2 or 0 in kernel:
        raise ShapeError(f"embedding: expected a kernel of shape (vocabulary, size), got {kernel}")


@jax.custom_jvp
def _rows_at(kernel: jax.Array, indices: jax.Array) -> jax.Array:
    # "clip" would still read a negative index from the end.
    return jnp.take(kernel, jnp.maximum(indices, 0), axis=0, mode="clip")


@_rows_at.defjvp
def _rows_at_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
    # So that gradients of a row that is used often add up in float32.
    tangent = _rows_at(_widened(tangents[0]), primals[1])
    return _rows_at(*primals), _narrowed(tangent, tangents[0].dtype)


def embedding(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Rows of the kernel at the indices in `x`; an index outside the vocabulary takes the nearest row inside.

    Args:
        x: integers, any shape `[...]`.
        kernel: `[vocabulary, size]`.
    Returns: `[..., size]`.
    Raises:
        DtypeError: `x` is not of an integer dtype.
    Source: Axon.Layers.embedding.
    """
    check_embedding(jnp.shape(x), jnp.shape(kernel))
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise DtypeError(f"embedding: expected integer indices, got dtype {x.dtype}")
    rows: jax.Array = _rows_at(kernel, x)
    return rows


def check_scale(x: Shape, scale: Shape, *, channel_index: int = -1) -> None:
    """The shape rule of `scale`."""
    axis = normalize_axis("scale", channel_index, len(x))
    if scale != (x[axis],):
        raise ShapeError(f"scale: expected a scale of shape ({x[axis]},) for x of shape {x}, got {scale}")


def scale(x: jax.Array, scale: jax.Array, *, channel_index: int = -1) -> jax.Array:
    """A factor per channel: `y = x * s`.

    Args:
        x: `[..., C, ...]`, the channel axis at `channel_index`.
        scale: `[C]`.
    Returns: x's shape.
    Raises:
        ShapeError: scale is not of shape `[C]`.
        OptionError: the axis is outside the rank.
    Source: Axon 0.9 scale; Touvron et al. 2021, arXiv:2103.17239 (LayerScale).
    """
    check_scale(jnp.shape(x), jnp.shape(scale), channel_index=channel_index)
    axis = channel_index % x.ndim
    return x * spread(scale.reshape([-1 if other == axis else 1 for other in range(x.ndim)]), x.shape)
