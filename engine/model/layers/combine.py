"""Layers with several inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from engine import functional as F
from engine.errors import GraphError, ShapeError
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


SPLIT = Op(
    "split",
    apply=lambda x, *, splits, axis, index: F.split(x, splits=splits, axis=axis)[index],
    options={"splits": options.parts, "axis": options.integer(-16, 15), "index": options.integer(0, 4095)},
    apply_options={"splits": "splits", "axis": "axis", "index": "index"},
    check=lambda x, *, splits, axis, index: F.check_split(x, splits=splits, axis=axis),
    mixes_rows=_joins_batch,
)


def split(
    x: Model, splits: int | Sequence[int], *, axis: int = -1, name: Namer | Sequence[Namer] = None
) -> tuple[Model, ...]:
    """Equal parts, or parts of the given sizes, along `axis`.

    Args:
        splits: how many equal parts, or their sizes.
        name: None, a pattern with `{n}`, or one name per part.
    Returns: a model per part, each a node of its own.
    Raises: at build `ShapeError` when the axis is not divisible, or the sizes do not add up.
    Source: Axon.split/3.
    """
    count = splits if isinstance(splits, int) else len(splits)
    names = list(name) if isinstance(name, list | tuple) else [name] * max(count, 1)
    if len(names) != count:
        raise GraphError(f"split: expected {count} names, got {len(names)}")
    return tuple(
        extend(SPLIT, [x], {"splits": splits, "axis": axis, "index": index}, part_name)  # type: ignore[arg-type]
        for index, part_name in enumerate(names)
    )


def residual(x: Model, function: Callable[[Model], Model], transform: Callable[[Model], Model] | None = None) -> Model:
    """A skip connection: `function(x) + transform(x)`, transform the identity unless given.

    Source: Axon 0.9 residual; He et al. 2015, arXiv:1512.03385.
    """
    return add(function(x), x if transform is None else transform(x))


_COMPARISONS: dict[str, Callable[..., jax.Array]] = {
    "greater": jnp.greater,
    "greater_equal": jnp.greater_equal,
    "less": jnp.less,
    "less_equal": jnp.less_equal,
    "equal": jnp.equal,
}
_REDUCTIONS: dict[str, Callable[..., jax.Array]] = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def _choose(parent: Any, on_true: Any, on_false: Any, *, reduce: str, compare: str, value: float) -> Any:
    condition = _COMPARISONS[compare](_REDUCTIONS[reduce](parent), value)
    return jax.lax.cond(condition, lambda: on_true, lambda: on_false)


def _check_cond(parent: Shape, on_true: Shape, on_false: Shape, **_: Any) -> None:
    if on_true != on_false:
        raise ShapeError(f"cond: expected branches of one shape, got {on_true} and {on_false}")


COND = Op(
    "cond",
    apply=_choose,
    check=_check_cond,
    options={
        "reduce": options.choice(*_REDUCTIONS),
        "compare": options.choice(*_COMPARISONS),
        "value": options.number(),
    },
    apply_options={"reduce": "reduce", "compare": "compare", "value": "value"},
    arity=(3, 3),
    mixes_rows=lambda values, shapes: "it decides by a value of the whole batch",
)


def cond(
    parent: Model,
    on_true: Model,
    on_false: Model,
    *,
    reduce: str = "sum",
    compare: str = "greater",
    value: float = 0.0,
    name: Namer = None,
) -> Model:
    """One of two values, chosen while computing: `on_true` where `compare(reduce(parent), value)`, else `on_false`.

    The condition is data, not a function, so that the graph can travel.

    Args:
        reduce: `sum`, `mean`, `max` or `min` over all of parent.
        compare: `greater`, `greater_equal`, `less`, `less_equal` or `equal`.
    Returns: the shape that both branches have. Raises: at build `ShapeError` when they differ.
    Source: Axon.cond/5, whose condition is a function.
    """
    values = {"reduce": reduce, "compare": compare, "value": value}
    return extend(COND, [parent, on_true, on_false], values, name)
