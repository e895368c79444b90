"""Arithmetic of sliding windows, shared by convolution and pooling: axes, padding, output sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import OptionError, ShapeError
from engine.functional.options import CHANNELS, Channels, Padding, as_integer, as_sizes, require_choice
from engine.shapes import Shape, require_rank


def dilated(size: int, dilation: int) -> int:
    """Extent of `size` elements with `dilation - 1` holes between them."""
    return (size - 1) * dilation + 1


def spatial_axes(op: str, rank: int, channels: Channels) -> tuple[int, ...]:
    """The axes between batch and channels (`last`), or behind both (`first`)."""
    require_choice(op, "channels", channels, CHANNELS)
    return tuple(range(1, rank - 1)) if channels == "last" else tuple(range(2, rank))


def channel_axis(rank: int, channels: Channels) -> int:
    """The axis of the channels."""
    return rank - 1 if channels == "last" else 1


def as_pads(op: str, padding: Padding, windows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Padding before and after each spatial axis, of dilated window sizes.

    `same` adds the window's size less one, the odd one after, so that the output has `ceil(size / stride)` elements.
    At strides above 1 this aligns windows as PyTorch's explicit padding does; TensorFlow and XLA may pad less before.
    """
    if isinstance(padding, str):
        require_choice(op, "padding", padding, ("valid", "same"))
        if padding == "valid":
            return ((0, 0),) * len(windows)
        return tuple(((window - 1) // 2, window // 2) for window in windows)
    pairs = tuple(padding) if isinstance(padding, Sequence) else ()
    if len(pairs) != len(windows) or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise OptionError(
            f"{op}: expected padding 'valid', 'same' or {len(windows)} pairs (before, after), got {padding!r}"
        )
    return tuple(
        (as_integer(op, "padding", low, at_least=0), as_integer(op, "padding", high, at_least=0)) for low, high in pairs
    )


def output_sizes(
    op: str,
    x: Shape,
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """`(size + padding - window) // stride + 1` per spatial axis; raise `ShapeError` where no window fits."""
    result = []
    for size, window, stride, (low, high) in zip(sizes, windows, strides, pads, strict=True):
        if window > size + low + high:
            raise ShapeError(
                f"{op}: expected spatial sizes of at least the window's {tuple(windows)} (dilated), "
                f"got shape {x} with padding {tuple(pads)}"
            )
        result.append((size + low + high - window) // stride + 1)
    return tuple(result)


class ConvPlan(NamedTuple):
    """A convolution's options, resolved and checked."""

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    input_dilation: Shape
    kernel_dilation: Shape
    output: Shape


class WindowPlan(NamedTuple):
    """A reduction over windows, with one entry per axis of the input (1 or no padding on batch and channels)."""

    window: Shape
    strides: Shape
    padding: tuple[tuple[int, int], ...]
    dilations: Shape
    output: Shape


def plan_pool(
    op: str,
    x: Shape,
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    window_dilations: int | Sequence[int] = 1,
    channels: Channels = "last",
) -> WindowPlan:
    """Resolve and check a pooling layer's options for an input of shape `x`; strides default to the window."""
    require_rank(op, x, at_least=3)
    axes = spatial_axes(op, len(x), channels)
    rank = len(axes)
    window = as_sizes(op, "kernel_size", kernel_size, rank)
    steps = window if strides is None else as_sizes(op, "strides", strides, rank)
    holes = as_sizes(op, "window_dilations", window_dilations, rank)
    sizes = [x[axis] for axis in axes]
    extents = [dilated(size, hole) for size, hole in zip(window, holes, strict=True)]
    pads = as_pads(op, padding, extents)
    for extent, pair in zip(extents, pads, strict=True):
        if max(pair) >= extent:
            raise OptionError(f"{op}: expected padding below the window's {tuple(extents)} (dilated), got {pads}")
    output = output_sizes(op, x, sizes, extents, steps, pads)
    before, after = axes[0], len(x) - axes[-1] - 1

    def full(values: Shape) -> Shape:
        return (1,) * before + values + (1,) * after

    return WindowPlan(
        window=full(window),
        strides=full(steps),
        padding=((0, 0),) * before + pads + ((0, 0),) * after,
        dilations=full(holes),
        output=(*x[:before], *output, *x[len(x) - after :]),
    )
