r"""Pooling over windows, and over all spatial axes at once.

Inputs are `[batch, *spatial, channels]`, or `[batch, channels, *spatial]` with `channels="first"`. Source: Axon.Layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine.functional.options import Channels, Padding, require_number
from engine.functional.windows import WindowPlan, plan_pool, spatial_axes
from engine.shapes import Shape, require_rank

# Up to this many elements the slices of a window are unrolled in max_pool's gradient, for compile time's sake.
_UNROLLED_WINDOW = 32


def _window_max(x: jax.Array, plan: WindowPlan) -> jax.Array:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    lowest = np.asarray(-np.inf if floating else np.iinfo(x.dtype).min, x.dtype)
    return _reduce_window(x, lowest, lax.max, plan)


def _reduce_window(x: jax.Array, start: np.ndarray, operation: Callable[..., Any], plan: WindowPlan) -> jax.Array:
    result: jax.Array = lax.reduce_window(
        x, start, operation, plan.window, plan.strides, plan.padding, window_dilation=plan.dilations
    )
    return result


def _tiles(x: Shape, plan: WindowPlan) -> bool:
    """Whether the windows lie side by side within `x`."""
    return (
        plan.strides == plan.window
        and set(plan.dilations) == {1}
        and all(low == 0 for low, _ in plan.padding)
        and all(n * k <= size for n, k, size in zip(plan.output, plan.window, x, strict=True))
    )


def _block_sum(x: jax.Array, plan: WindowPlan, term: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Sum of terms over windows that lie side by side; XLA's gradient of it is faster than that of sliding windows.

    Only windowed axes are split, and before the terms are taken: the CPU's loops get slower otherwise.
    """
    sizes: list[int] = []
    places: list[int] = []
    for n, k in zip(plan.output, plan.window, strict=True):
        sizes.append(n)
        if k > 1:
            places.append(len(sizes))
            sizes.append(k)
    covered = x[tuple(slice(n * k) for n, k in zip(plan.output, plan.window, strict=True))]
    return jnp.sum(term(covered.reshape(sizes)), axis=tuple(places))


def _blocked(x: jax.Array, plan: WindowPlan) -> jax.Array:
    """`x` with every axis split into windows, side by side, and the places in them."""
    sizes = [size for pair in zip(plan.output, plan.window, strict=True) for size in pair]
    return x[tuple(slice(n * k) for n, k in zip(plan.output, plan.window, strict=True))].reshape(sizes)


def _window_elements(x: jax.Array, plan: WindowPlan, fill: float) -> Iterator[jax.Array]:
    """For each place in a window, in row-major order, what all windows have there: arrays of the output's shape."""
    offsets = itertools.product(*map(range, plan.window))
    if _tiles(x.shape, plan):
        x = _blocked(x, plan)
        for offset in offsets:
            yield x[tuple(index for item in offset for index in (slice(None), item))]
        return
    x = lax.pad(x, np.asarray(fill, x.dtype), [(low, high, 0) for low, high in plan.padding])
    for offset in offsets:
        start = [item * hole for item, hole in zip(offset, plan.dilations, strict=True)]
        last = [at + (n - 1) * step for at, n, step in zip(start, plan.output, plan.strides, strict=True)]
        yield lax.slice(x, start, [at + 1 for at in last], plan.strides)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_max(x: jax.Array, plan: WindowPlan) -> jax.Array:
    """Maximum of each window, with a derivative that belongs to the first element equal to it.

    XLA's select-and-scatter gives the same, but knows no dilations and is many times slower on the CPU.
    """
    return _window_max(x, plan)


@_first_max.defjvp
def _first_max_jvp(
    plan: WindowPlan, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y: jax.Array = _first_max(primals[0], plan)
    places = math.prod(plan.window)
    first = jnp.full(y.shape, places, jnp.int8)
    for place, x in reversed(list(enumerate(_window_elements(primals[0], plan, -math.inf)))):
        first = jnp.where(x == y, np.int8(place), first)
    # Otherwise the CPU looks for the place again at every element of the gradient.
    first = lax.optimization_barrier(first)  # type: ignore[no-untyped-call]
    if _tiles(primals[0].shape, plan):
        # Its transpose broadcasts and selects in one pass; that of slices puts them together one by one.
        inner = tuple(range(1, 2 * y.ndim, 2))
        numbers = np.arange(places, dtype=np.int8).reshape([n for k in plan.window for n in (1, k)])
        chosen = jnp.expand_dims(first, inner) == numbers
        return y, jnp.sum(jnp.where(chosen, _blocked(tangents[0], plan), 0), axis=inner)
    y_dot = jnp.zeros(y.shape, y.dtype)
    for place, x_dot in enumerate(_window_elements(tangents[0], plan, 0)):
        y_dot = y_dot + jnp.where(first == place, x_dot, 0)
    return y, y_dot


def check_max_pool(
    x: Shape,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> None:
    """The shape rule of `max_pool`."""
    plan_pool(
        "max_pool",
        x,
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )


def max_pool(
    x: jax.Array,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> jax.Array:
    """Maximum of each window; padding never wins. The gradient goes to the first maximum of a window.

    Args:
        x: `[batch, *spatial, channels]` (see the module's head), rank 3 or more.
        kernel_size: the window, per spatial axis or one for all; likewise strides and dilations.
        strides: step of the window; the window's size when `None`.
        padding: `valid`, `same`, or a pair (before, after) per spatial axis, smaller than the window.
        window_dilations: distance of the window's elements.
        channels: `last` or `first`.
    Returns: `[batch, *out, channels]`, `out = (size + padding - window) // stride + 1` with dilated windows.
    Raises:
        ShapeError: rank below 3, or no window fits into the padded input.
        OptionError: an option outside its domain.
    Source: Axon.Layers.max_pool.
    """
    plan = plan_pool(
        "max_pool",
        jnp.shape(x),
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )
    unrolled = math.prod(plan.window) <= _UNROLLED_WINDOW and jnp.issubdtype(x.dtype, jnp.floating)
    # Where windows overlap it was measured on the CPU alone: 4 to 10 times faster than XLA's.
    if unrolled and (set(plan.dilations) != {1} or _tiles(jnp.shape(x), plan) or jax.default_backend() == "cpu"):
        y: jax.Array = _first_max(x, plan)
        return y
    return _window_max(x, plan)


def _window_sum(x: jax.Array, plan: WindowPlan, term: Callable[[jax.Array], jax.Array] = jnp.asarray) -> jax.Array:
    """Sum of terms over windows in float32 at least; the term of 0 is 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if _tiles(x.shape, plan):
        return _block_sum(x, plan, term)
    return _reduce_window(term(x), np.zeros((), x.dtype), lax.add, plan)


def _float_dtype(x: jax.Array) -> Any:
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32


def check_avg_pool(
    x: Shape,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> None:
    """The shape rule of `avg_pool`."""
    plan_pool(
        "avg_pool",
        x,
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )


def avg_pool(
    x: jax.Array,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> jax.Array:
    """Mean of each window, in which padding counts as zeros; integers give float32.

    Arguments, result and errors as in `max_pool`. Source: Axon.Layers.avg_pool.
    """
    plan = plan_pool(
        "avg_pool",
        jnp.shape(x),
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )
    return (_window_sum(x, plan) / math.prod(plan.window)).astype(_float_dtype(x))


def check_global_avg_pool(x: Shape, *, keep_axes: bool = False, channels: Channels = "last") -> None:
    """The shape rule of `global_avg_pool`."""
    require_rank("global_avg_pool", x, at_least=3)
    spatial_axes("global_avg_pool", len(x), channels)


def global_avg_pool(x: jax.Array, *, keep_axes: bool = False, channels: Channels = "last") -> jax.Array:
    """Mean over all spatial axes.

    Args:
        x: `[batch, *spatial, channels]` (see the module's head), rank 3 or more.
        keep_axes: keep the spatial axes with size 1.
        channels: `last` or `first`.
    Returns: `[batch, channels]`, or with `keep_axes` `[batch, 1, ..., channels]`.
    Raises:
        ShapeError: rank below 3.
    Source: Axon.Layers.global_avg_pool.
    """
    check_global_avg_pool(jnp.shape(x), keep_axes=keep_axes, channels=channels)
    return jnp.mean(x, axis=spatial_axes("global_avg_pool", x.ndim, channels), keepdims=keep_axes)


def check_global_max_pool(x: Shape, *, keep_axes: bool = False, channels: Channels = "last") -> None:
    """The shape rule of `global_max_pool`."""
    require_rank("global_max_pool", x, at_least=3)
    spatial_axes("global_max_pool", len(x), channels)


def global_max_pool(x: jax.Array, *, keep_axes: bool = False, channels: Channels = "last") -> jax.Array:
    """Maximum over all spatial axes; arguments, result and errors as in `global_avg_pool`.

    The gradient is shared equally by equal maxima. Source: Axon.Layers.global_max_pool.
    """
    check_global_max_pool(jnp.shape(x), keep_axes=keep_axes, channels=channels)
    return jnp.max(x, axis=spatial_axes("global_max_pool", x.ndim, channels), keepdims=keep_axes)


def check_lp_pool(
    x: Shape,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
    norm: float = 2,
) -> None:
    """The shape rule of `lp_pool`."""
    require_number("lp_pool", "norm", norm, at_least=1)
    plan_pool(
        "lp_pool",
        x,
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )


def lp_pool(
    x: jax.Array,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
    norm: float = 2,
) -> jax.Array:
    r"""Power-average of each window: $(\sum |x|^p)^{1/p}$ with $p$ = `norm`, at least 1.

    A window of zeros has gradient 0. Other arguments, result and errors as in `max_pool`.
    Source: Axon.Layers.lp_pool (which leaves out the absolute value).
    """
    require_number("lp_pool", "norm", norm, at_least=1)
    plan = plan_pool(
        "lp_pool",
        jnp.shape(x),
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        window_dilations=window_dilations,
        channels=channels,
    )
    return _root(_window_sum(x, plan, partial(_power, norm=norm)), norm).astype(_float_dtype(x))


def _power(x: jax.Array, norm: float) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.square(x) if norm == 2 else jnp.abs(x) ** norm


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _root(total: jax.Array, norm: float) -> jax.Array:
    """`total ** (1 / norm)`, with derivative 0 at zero."""
    return jnp.sqrt(total) if norm == 2 else total ** (1 / norm)


@_root.defjvp
def _root_jvp(norm: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Out of the root itself: out of the total, the CPU would sum every window again for each of its elements.
    y: jax.Array = _root(primals[0], norm)
    above = jnp.where(y > 0, y, jnp.inf)
    return y, tangents[0] * (1 / (norm * (above if norm == 2 else above ** (norm - 1))))


def check_global_lp_pool(x: Shape, *, keep_axes: bool = False, channels: Channels = "last", norm: float = 2) -> None:
    """The shape rule of `global_lp_pool`."""
    require_rank("global_lp_pool", x, at_least=3)
    spatial_axes("global_lp_pool", len(x), channels)
    require_number("global_lp_pool", "norm", norm, at_least=1)


def global_lp_pool(x: jax.Array, *, keep_axes: bool = False, channels: Channels = "last", norm: float = 2) -> jax.Array:
    """Power-average over all spatial axes, as `lp_pool`; other arguments, result and errors as in `global_avg_pool`.

    Source: Axon.Layers.global_lp_pool.
    """
    check_global_lp_pool(jnp.shape(x), keep_axes=keep_axes, channels=channels, norm=norm)
    total = jnp.sum(_power(x, norm), axis=spatial_axes("global_lp_pool", x.ndim, channels), keepdims=keep_axes)
    return _root(total, norm).astype(_float_dtype(x))
