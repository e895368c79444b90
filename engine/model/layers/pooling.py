"""Pooling layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op
from engine.model.layers.basics import extend
from engine.model.options import Option

if TYPE_CHECKING:
    from engine.model.model import Model


_NORM = options.number(1)
_CHANNELS = options.choice("first", "last")


def _window_op(name: str, apply: Callable[..., jax.Array], **more: Option) -> Op:
    return Op(
        name,
        apply=apply,
        options={
            **more,
            "kernel_size": options.window,
            "strides": options.optional_window,
            "padding": options.padding,
            "dilations": options.window,
            "channels": _CHANNELS,
        },
        apply_options={
            **{option: option for option in more},
            "kernel_size": "kernel_size",
            "strides": "strides",
            "padding": "padding",
            "dilations": "window_dilations",
            "channels": "channels",
        },
    )


MAX_POOL = _window_op("max_pool", F.max_pool)
AVG_POOL = _window_op("avg_pool", F.avg_pool)
LP_POOL = _window_op("lp_pool", F.lp_pool, norm=_NORM)


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


def lp_pool(
    x: Model,
    *,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "valid",
    dilations: int | Sequence[int] = 1,
    channels: str = "last",
    norm: float = 2,
    name: Namer = None,
) -> Model:
    r"""The power-average of every window: $(\sum |x|^p)^{1/p}$ with $p$ = `norm`, at least 1.

    Other arguments, errors as `max_pool`. Source: Axon.lp_pool/2.
    """
    values = _window_values(kernel_size, strides, padding, dilations, channels)
    return extend(LP_POOL, [x], {**values, "norm": norm}, name)


def _global_op(name: str, apply: Callable[..., jax.Array], **more: Option) -> Op:
    domains = {"keep_axes": options.boolean, "channels": _CHANNELS, **more}
    return Op(name, apply=apply, options=domains, apply_options={option: option for option in domains})


GLOBAL_AVG_POOL = _global_op("global_avg_pool", F.global_avg_pool)
GLOBAL_MAX_POOL = _global_op("global_max_pool", F.global_max_pool)
GLOBAL_LP_POOL = _global_op("global_lp_pool", F.global_lp_pool, norm=_NORM)


def global_avg_pool(x: Model, *, keep_axes: bool = False, channels: str = "last", name: Namer = None) -> Model:
    """The mean over all spatial axes.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
        keep_axes: whether the spatial axes stay with size 1.
    Returns: `[batch, channels]`. Raises: at build `ShapeError` below rank 3.
    Source: Axon.global_avg_pool/2.
    """
    return extend(GLOBAL_AVG_POOL, [x], {"keep_axes": keep_axes, "channels": channels}, name)


def global_max_pool(x: Model, *, keep_axes: bool = False, channels: str = "last", name: Namer = None) -> Model:
    """The maximum over all spatial axes; arguments as `global_avg_pool`. Source: Axon.global_max_pool/2."""
    return extend(GLOBAL_MAX_POOL, [x], {"keep_axes": keep_axes, "channels": channels}, name)


def global_lp_pool(
    x: Model, *, keep_axes: bool = False, channels: str = "last", norm: float = 2, name: Namer = None
) -> Model:
    """The power-average over all spatial axes (see `lp_pool`); arguments as `global_avg_pool`.

    Source: Axon.global_lp_pool/2.
    """
    return extend(GLOBAL_LP_POOL, [x], {"keep_axes": keep_axes, "channels": channels, "norm": norm}, name)


def _adaptive_op(name: str, apply: Callable[..., jax.Array], **more: Option) -> Op:
    domains = {"output_size": options.optional_window, "channels": _CHANNELS, **more}
    return Op(name, apply=apply, options=domains, apply_options={option: option for option in domains})


ADAPTIVE_AVG_POOL = _adaptive_op("adaptive_avg_pool", F.adaptive_avg_pool)
ADAPTIVE_MAX_POOL = _adaptive_op("adaptive_max_pool", F.adaptive_max_pool)
ADAPTIVE_LP_POOL = _adaptive_op("adaptive_lp_pool", F.adaptive_lp_pool, norm=_NORM)


def adaptive_avg_pool(
    x: Model, *, output_size: int | Sequence[int] | None = None, channels: str = "last", name: Namer = None
) -> Model:
    """Means of equal windows at equal distances, as many as `output_size` asks for.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
        output_size: one size, or one per spatial axis; None keeps the input's.
    Raises: at build `ShapeError` below rank 3 or when the output is larger than the input.
    Source: Axon.adaptive_avg_pool/2.
    """
    return extend(ADAPTIVE_AVG_POOL, [x], {"output_size": output_size, "channels": channels}, name)


def adaptive_max_pool(
    x: Model, *, output_size: int | Sequence[int] | None = None, channels: str = "last", name: Namer = None
) -> Model:
    """Maxima of equal windows; arguments as `adaptive_avg_pool`. Source: Axon.adaptive_max_pool/2."""
    return extend(ADAPTIVE_MAX_POOL, [x], {"output_size": output_size, "channels": channels}, name)


def adaptive_lp_pool(
    x: Model,
    *,
    output_size: int | Sequence[int] | None = None,
    channels: str = "last",
    norm: float = 2,
    name: Namer = None,
) -> Model:
    """Power-averages of equal windows (see `lp_pool`); arguments as `adaptive_avg_pool`.

    Source: Axon.adaptive_lp_pool/2.
    """
    values = {"output_size": output_size, "channels": channels, "norm": norm}
    return extend(ADAPTIVE_LP_POOL, [x], values, name)


BLUR_POOL = Op("blur_pool", apply=F.blur_pool, options={"channels": _CHANNELS}, apply_options={"channels": "channels"})


def blur_pool(x: Model, *, channels: str = "last", name: Namer = None) -> Model:
    """Low-pass filter of every channel with the binomial 3x3 kernel, padded by 1, without a stride.

    Args:
        x: `[batch, height, width, channels]`, or channels `first`; rank 4.
    Source: Axon.blur_pool/2; Zhang 2019, arXiv:1904.11486.
    """
    return extend(BLUR_POOL, [x], {"channels": channels}, name)
