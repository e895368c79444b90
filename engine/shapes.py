"""Shapes: tuples of sizes in which `None` stands for a size known later (the batch, a length)."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import OptionError, ShapeError

Shape = tuple[int, ...]
OpenShape = tuple[int | None, ...]


def require_rank(op: str, shape: Sequence[int | None], *, at_least: int = 0, exactly: int | None = None) -> None:
    """Raise `ShapeError` unless `shape` has the rank an op needs."""
    rank = len(shape)
    if exactly is not None and rank != exactly:
        raise ShapeError(f"{op}: expected an input of rank {exactly}, got shape {tuple(shape)} of rank {rank}")
    if rank < at_least:
        raise ShapeError(f"{op}: expected an input of rank {at_least} or more, got shape {tuple(shape)} of rank {rank}")


def normalize_axis(op: str, axis: int, rank: int) -> int:
    """Turn a possibly negative axis into one in `[0, rank)`; raise `OptionError` when it lies outside."""
    if not -rank <= axis < rank:
        raise OptionError(f"{op}: expected an axis in [{-rank}, {rank - 1}] for rank {rank}, got {axis}")
    return axis % rank


def per_axis(op: str, option: str, value: int | Sequence[int], rank: int) -> Shape:
    """One size per spatial axis: an integer is repeated, a sequence must have `rank` items."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise OptionError(f"{op}: expected {option} to be an integer or {rank} integers, got {tuple(value)}")
    return tuple(value)


def broadcast(op: str, *shapes: Shape) -> Shape:
    """The shape all of `shapes` broadcast to under NumPy's rule; raise `ShapeError` when there is none."""
    rank = max(map(len, shapes), default=0)
    result = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            raise ShapeError(f"{op}: expected shapes that broadcast, got {' and '.join(map(str, shapes))}")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)
