"""Layers with several inputs."""

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


ADD = Op("add", apply=F.add, options={}, apply_options={}, arity=(1, None))
SUBTRACT = Op("subtract", apply=F.subtract, options={}, apply_options={}, arity=(1, None))
MULTIPLY = Op("multiply", apply=F.multiply, options={}, apply_options={}, arity=(1, None))


def _all(x: Model | Sequence[Model], others: tuple[Model, ...]) -> list[Model]:
    return [*x, *others] if isinstance(x, Sequence) else [x, *others]


def add(x: Model | Sequence[Model], *others: Model, name: Namer = None) -> Model:
    """Sum of all inputs, broadcast.

    Args:
        x: a model or a sequence of models; `others` follow it.
    Raises: at build `ShapeError` when the shapes do not broadcast.
    Source: Axon.add/3.
    """
    return extend(ADD, _all(x, others), {}, name)


def subtract(x: Model | Sequence[Model], *others: Model, name: Namer = None) -> Model:
    """First input minus all others, from left to right. Arguments as `add`. Source: Axon.subtract/3."""
    return extend(SUBTRACT, _all(x, others), {}, name)


def multiply(x: Model | Sequence[Model], *others: Model, name: Namer = None) -> Model:
    """Product of all inputs, broadcast. Arguments as `add`. Source: Axon.multiply/3."""
    return extend(MULTIPLY, _all(x, others), {}, name)


def _joins_batch(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    return "it concatenates along axis 0, the batch" if values["axis"] % len(shapes[0]) == 0 else None


CONCATENATE = Op(
    "concatenate",
    apply=F.concatenate,
    options={"axis": options.integer(-16, 15)},
    apply_options={"axis": "axis"},
    arity=(1, None),
    mixes_rows=_joins_batch,
)


def concatenate(x: Model | Sequence[Model], *others: Model, axis: int = -1, name: Namer = None) -> Model:
    """All inputs one after another along `axis`; the other axes must agree.

    Raises: at build `ShapeError`, `OptionError` for an axis out of range.
    Source: Axon.concatenate/3.
    """
    return extend(CONCATENATE, _all(x, others), {"axis": axis}, name)
