"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op
from engine.model.layers.basics import extend

if TYPE_CHECKING:
    from engine.model.model import Model


def _window_op(name: str, apply: Callable[..., jax.Array]) -> Op:
    return Op(
        name,
        apply=apply,
        options={
            "kernel_size": options.window,
            "strides": options.optional_window,
            "padding": options.padding,
            "dilations": options.window,
            "channels": options.choice("first", "last"),
        },
        apply_options={
            "kernel_size": "kernel_size",
            "strides": "strides",
            "padding": "padding",
            "dilations": "window_dilations",
            "channels": "channels",
        },
    )


MAX_POOL = _window_op("max_pool", F.max_pool)
AVG_POOL = _window_op("avg_pool", F.avg_pool)


def _window_values(kernel_size: Any, strides: Any, padding: Any, dilations: Any, channels: str) -> dict[str, Any]:
    return {
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "dilations": dilations,
        "channels": channels,
    }


def max_pool(
    x: Model,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "valid",
    dilations: int | Sequence[int] = 1,
    channels: str = "last",
    name: Namer = None,
) -> Model:
    """The maximum of every window.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
        kernel_size, strides, dilations: one integer, or one per spatial axis; strides None means kernel_size.
        padding: `valid`, `same`, or `(low, high)` per spatial axis.
    Raises: at build `ShapeError` below rank 3.
    Source: Axon.max_pool/2.
    """
    return extend(MAX_POOL, [x], _window_values(kernel_size, strides, padding, dilations, channels), name)


def avg_pool(
    x: Model,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "valid",
    dilations: int | Sequence[int] = 1,
    channels: str = "last",
    name: Namer = None,
) -> Model:
    """The mean of every window; padding counts as zeros.

    Arguments, errors as `max_pool`. Source: Axon.avg_pool/2.
    """
    return extend(AVG_POOL, [x], _window_values(kernel_size, strides, padding, dilations, channels), name)


GLOBAL_AVG_POOL = Op(
    "global_avg_pool",
    apply=F.global_avg_pool,
    options={"keep_axes": options.boolean, "channels": options.choice("first", "last")},
    apply_options={"keep_axes": "keep_axes", "channels": "channels"},
)


def global_avg_pool(x: Model, *, keep_axes: bool = False, channels: str = "last", name: Namer = None) -> Model:
    """The mean over all spatial axes.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
        keep_axes: whether the spatial axes stay with size 1.
    Returns: `[batch, channels]`. Raises: at build `ShapeError` below rank 3.
    Source: Axon.global_avg_pool/2.
    """
    return extend(GLOBAL_AVG_POOL, [x], {"keep_axes": keep_axes, "channels": channels}, name)
