r"""Ops that join several arrays into one, or part one into several. Source: Axon.Layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from engine.errors import OptionError, ShapeError
from engine.functional.options import as_integer
from engine.shapes import Shape, broadcast, normalize_axis, require_rank


def _check_elementwise(op: str, shapes: tuple[Shape, ...]) -> None:
    if not shapes:
        raise ShapeError(f"{op}: expected one input or more, got none")
    broadcast(op, *shapes)


def check_add(*inputs: Shape) -> None:
    """The shape rule of `add`."""
    _check_elementwise("add", inputs)


def add(*inputs: jax.Array) -> jax.Array:
    """Sum of all inputs, broadcast by NumPy's rule. Raises `ShapeError` where they do not. Source: Axon.Layers.add."""
    check_add(*map(jnp.shape, inputs))
    return functools.reduce(jnp.add, inputs)


def check_subtract(*inputs: Shape) -> None:
    """The shape rule of `subtract`."""
    _check_elementwise("subtract", inputs)


def subtract(*inputs: jax.Array) -> jax.Array:
    """The first input less all others, from left to right, broadcast as in `add`. Source: Axon.Layers.subtract."""
    check_subtract(*map(jnp.shape, inputs))
    return functools.reduce(jnp.subtract, inputs)


def check_multiply(*inputs: Shape) -> None:
    """The shape rule of `multiply`."""
    _check_elementwise("multiply", inputs)


def multiply(*inputs: jax.Array) -> jax.Array:
    """Product of all inputs, broadcast as in `add`. Source: Axon.Layers.multiply."""
    check_multiply(*map(jnp.shape, inputs))
    return functools.reduce(jnp.multiply, inputs)


def check_concatenate(*inputs: Shape, axis: int = -1) -> None:
    """The shape rule of `concatenate`."""
    if not inputs:
        raise ShapeError("concatenate: expected one input or more, got none")
    first = inputs[0]
    require_rank("concatenate", first, at_least=1)
    at = normalize_axis("concatenate", axis, len(first))
    for shape in inputs:
        if len(shape) != len(first) or shape[:at] + shape[at + 1 :] != first[:at] + first[at + 1 :]:
            raise ShapeError(
                f"concatenate: expected inputs that differ along axis {axis} only, got {first} and {shape}"
            )


def concatenate(*inputs: jax.Array, axis: int = -1) -> jax.Array:
    """Join inputs along `axis`; all other sizes are equal, dtypes are promoted.

    Raises:
        ShapeError: sizes differ along another axis.
        OptionError: the axis lies outside the rank.
    Source: Axon.Layers.concatenate.
    """
    check_concatenate(*map(jnp.shape, inputs), axis=axis)
    return jnp.concatenate(inputs, axis=axis)


def check_split(x: Shape, *, splits: int | Sequence[int], axis: int = -1) -> None:
    """The shape rule of `split`."""
    _split_sizes(x, splits, axis)


def _split_sizes(x: Shape, splits: int | Sequence[int], axis: int) -> list[int]:
    size = x[normalize_axis("split", axis, len(x))]
    if isinstance(splits, Sequence):
        sizes = [as_integer("split", "splits", part, at_least=0) for part in splits]
        if not sizes or sum(sizes) != size:
            raise OptionError(f"split: expected splits that sum to {size} along axis {axis} of {x}, got {splits!r}")
        return sizes
    parts = as_integer("split", "splits", splits, at_least=1)
    if size % parts:
        raise ShapeError(f"split: expected a size divisible by {parts} along axis {axis}, got shape {x}")
    return [size // parts] * parts


def split(x: jax.Array, *, splits: int | Sequence[int], axis: int = -1) -> tuple[jax.Array, ...]:
    """Part an array along `axis` into equal parts, or into parts of given sizes.

    Args:
        x: rank 1 or more.
        splits: how many equal parts, or the size of each.
        axis: which axis.
    Raises:
        ShapeError: the size is not divisible into equal parts.
        OptionError: sizes that do not sum to the axis' own, or an axis outside the rank.
    Source: Axon.split.
    """
    sizes = _split_sizes(jnp.shape(x), splits, axis)
    starts = [sum(sizes[:i]) for i in range(1, len(sizes))]
    return tuple(jnp.split(x, starts, axis=axis))


def stack_columns(columns: Mapping[str, jax.Array], *, ignore: Sequence[str] = ()) -> jax.Array:
    """The columns of a table side by side.

    Args:
        columns: arrays `[batch]` or `[batch, n]` by name.
        ignore: names to leave out.
    Returns: `[batch, sum of n]`, in the order of the sorted names.
    Raises:
        ShapeError: not a mapping of such arrays, or nothing is left.
    Source: Axon.stack_columns.
    """
    if not isinstance(columns, Mapping):
        raise ShapeError(f"stack_columns: expected columns by name, got {type(columns).__name__}")
    chosen = {name: columns[name] for name in sorted(columns) if name not in ignore}
    shapes = {name: jnp.shape(column) for name, column in chosen.items()}
    if not chosen or any(len(shape) not in (1, 2) for shape in shapes.values()):
        raise ShapeError(f"stack_columns: expected columns of rank 1 or 2, got {shapes or 'none'}")
    return concatenate(*(c[:, None] if c.ndim == 1 else c for c in chosen.values()), axis=-1)
