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
