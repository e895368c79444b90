"""Layers that only move values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op
from engine.model.layers.basics import extend
from engine.shapes import Shape

if TYPE_CHECKING:
    from engine.model.model import Model


FLATTEN = Op("flatten", apply=F.flatten, options={}, apply_options={})


def flatten(x: Model, *, name: Namer = None) -> Model:
    """`[batch, ...]` to `[batch, size]`. Source: Axon.flatten/2."""
    return extend(FLATTEN, [x], {}, name)


def _moves_batch(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    target = values["new_shape"]
    return None if target[:1] == ("batch",) else "its new shape does not begin with 'batch'"


RESHAPE = Op(
    "reshape",
    apply=F.reshape,
    options={"new_shape": options.target_shape},
    apply_options={"new_shape": "new_shape"},
    mixes_rows=_moves_batch,
)


def reshape(x: Model, new_shape: Sequence[int | str], *, name: Namer = None) -> Model:
    """Another shape with as many elements.

    Args:
        new_shape: the full new shape; `"batch"` stands for the size of axis 0, one `"auto"` for what remains.
    Raises: at build `ShapeError` when the numbers of elements differ.
    Source: Axon.reshape/3.
    """
    return extend(RESHAPE, [x], {"new_shape": new_shape}, name)


TRANSPOSE = Op(
    "transpose",
    apply=F.transpose,
    options={"permutation": options.permutation},
    apply_options={"permutation": "permutation"},
    mixes_rows=lambda values, shapes: (
        None if values["permutation"] is not None and values["permutation"][0] == 0 else "it moves axis 0, the batch"
    ),
)


def transpose(x: Model, permutation: Sequence[int] | None = None, *, name: Namer = None) -> Model:
    """The axes in another order.

    Args:
        permutation: every axis once, the batch (0) included; None reverses all axes, the batch too.
    Raises: at build `ShapeError`, `OptionError` for anything but a permutation of x's axes.
    Source: Axon.transpose/3.
    """
    return extend(TRANSPOSE, [x], {"permutation": permutation}, name)


PAD = Op(
    "pad",
    apply=F.pad,
    options={"config": options.pairs, "value": options.number(), "channels": options.choice("first", "last")},
    apply_options={"config": "config", "value": "value", "channels": "channels"},
)


def pad(
    x: Model,
    config: Sequence[tuple[int, int]],
    value: float = 0.0,
    *,
    channels: str = "last",
    name: Namer = None,
) -> Model:
    """A border around the spatial axes.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
        config: `(low, high)` per spatial axis; negative numbers cut.
        value: what the border holds.
    Raises: at build `ShapeError` when config does not fit x.
    Source: Axon.pad/4.
    """
    return extend(PAD, [x], {"config": config, "value": value, "channels": channels}, name)


RESIZE = Op(
    "resize",
    apply=F.resize,
    options={
        "size": options.window,
        "method": options.choice("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"),
        "antialias": options.boolean,
        "channels": options.choice("first", "last"),
    },
    apply_options={option: option for option in ("size", "method", "antialias", "channels")},
)


def resize(
    x: Model,
    size: Sequence[int],
    *,
    method: str = "nearest",
    antialias: bool = True,
    channels: str = "last",
    name: Namer = None,
) -> Model:
    """Resample both spatial axes, pixel centres at halves.

    Args:
        x: `[batch, height, width, channels]`, or channels `first`; rank 4.
        size: the new (height, width).
        method: `nearest`, `bilinear`, `bicubic`, `lanczos3` or `lanczos5`.
        antialias: whether shrinking widens the kernel.
    Raises: at build `ShapeError` for another rank.
    Source: Axon.resize/3.
    """
    return extend(RESIZE, [x], {"size": size, "method": method, "antialias": antialias, "channels": channels}, name)


STACK_COLUMNS = Op(
    "stack_columns",
    apply=F.stack_columns,
    options={"ignore": options.words},
    apply_options={"ignore": "ignore"},
)


def stack_columns(x: Model, *, ignore: Sequence[str] = (), name: Namer = None) -> Model:
    """The columns of a structured value, a dict of `[batch]` or `[batch, n]` arrays, side by side.

    Args:
        x: a model whose value is a dict, such as a container's.
        ignore: columns to leave out.
    Returns: `[batch, columns]`, in the order of the dict's sorted keys.
    Raises: at build `ShapeError` when x is no dict, or nothing is left.
    Source: Axon.stack_columns/2.
    """
    return extend(STACK_COLUMNS, [x], {"ignore": ignore}, name)
