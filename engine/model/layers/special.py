"""Layers around missing values, and layers from functions of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from engine.errors import GraphError, OptionError
from engine.model.graph import NAME, Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.model.options import Option
from engine.shapes import Shape

if TYPE_CHECKING:
    from engine.model.model import Model

OPTIONAL = Op("optional", apply=lambda x: x, options={}, apply_options={}, takes_missing=True)


def optional(x: Model, *, name: Namer = None) -> Model:
    """The value of `x`, or None where an optional input that it needs is absent, handed on to a container's structure.

    Source: Axon.optional/2.
    """
    return extend(OPTIONAL, [x], {}, name)


OR_ELSE = Op(
    "or_else",
    apply=lambda x, y: y if x is None else x,
    options={},
    apply_options={},
    arity=(2, 2),
    takes_missing=True,
)


def or_else(x: Model, y: Model, *, name: Namer = None) -> Model:
    """The value of `x`, or that of `y` where an optional input that x needs is absent. Source: Axon.or_else/3."""
    return extend(OR_ELSE, [x, y], {}, name)


def param(
    name: str,
    shape: Shape | Callable[..., Shape],
    *,
    initializer: Any = "glorot_uniform",
    dtype: str = "f32",
    kind: Literal["parameter", "state"] = "parameter",
) -> ParamSpec:
    """A parameter of a layer of one's own.

    Args:
        shape: a shape, or a function of the input shapes.
        initializer: a name, `{"name": ..., options}` or a function `(shape, dtype, key)`.
        kind: `state` for what gradients do not reach and the layer itself updates.
    Source: Axon.param/3, Axon.parameter/3.
    """
    fixed = None if callable(shape) else tuple(shape)
    return ParamSpec(name, shape if callable(shape) else lambda *_: fixed, initializer, kind, dtype)  # type: ignore[arg-type]


UNKNOWN_ROWS = "it is a function whose rows are not known to be independent (row_wise=True says that they are)"
RESERVED = frozenset({"block", "program"})
"""Names that mean something in a graph besides those of the catalogue: for ops and options of one's own not free."""
_ANYTHING = Option("anything", lambda value: value)


def layer(
    function: Callable[..., Any],
    inputs: Model | Sequence[Model],
    *,
    params: Sequence[ParamSpec] = (),
    mode: Literal["both", "train", "inference"] = "both",
    passes_mode: bool = False,
    takes_missing: bool = False,
    row_wise: bool = False,
    op_name: str = "custom",
    name: Namer = None,
    **options: Any,
) -> Model:
    """A layer from a function of one's own.

    Args:
        function: pure, `function(*inputs, **parameters, **options)`; it may return a `StatefulOutput`.
        inputs: what it is called with, in order.
        params: what `param` made; each comes under its name.
        mode: in the other mode the first input is passed through.
        passes_mode: whether the function gets `mode` (`train` or `inference`) too.
        takes_missing: whether it is called with None for an absent optional input.
        row_wise: whether each row of the answer depends on the same row of the inputs alone; only then may requests
            share a batch, and batches have rows of padding.
        op_name: under which it is counted and shown; not that of an op of the catalogue.
    Raises: `GraphError` when names of parameters and options clash or are reserved.
    Source: Axon.layer/3. In a bundle the layer is a StableHLO program, made when the bundle is written: there open
        sizes of the inputs are symbols, and options are built in.
    """
    given = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    _check_names(op_name, [*(spec.name for spec in params), *options, *(["mode"] if passes_mode else [])])
    if mode not in ("both", "train", "inference"):
        raise OptionError(f"{op_name}: expected mode 'both', 'train' or 'inference', got {mode!r}")
    op = Op(
        op_name,
        apply=function,
        options=dict.fromkeys(options, _ANYTHING),
        apply_options={option: option for option in options},
        params=lambda _: tuple(params),
        arity=(1, None),
        has_modes=passes_mode,
        train_only=mode == "train",
        inference_only=mode == "inference",
        takes_missing=takes_missing,
        mixes_rows=lambda values, shapes: None if row_wise else UNKNOWN_ROWS,
    )
    return extend(op, given, options, name)


def _check_names(op_name: str, taken: Sequence[str]) -> None:
    if not NAME.fullmatch(op_name) or not _is_free(op_name):
        raise GraphError(
            f"layer: expected an op_name that matches {NAME.pattern} and is none of the catalogue's, got {op_name!r}"
        )
    if len(set(taken)) != len(taken) or RESERVED & set(taken):
        reserved = ", ".join(sorted(RESERVED))
        raise GraphError(
            f"{op_name}: expected distinct names of parameters and options, none of {reserved}, got {list(taken)}"
        )


def _is_free(op_name: str) -> bool:
    from engine.model.layers import OPS

    return op_name not in OPS and op_name not in RESERVED


def op_name_of(function: Callable[..., Any], otherwise: str) -> str:
    """The name of a function, where an op may have it; else `otherwise`."""
    found = getattr(function, "__name__", "")
    return found if NAME.fullmatch(found) and _is_free(found) else otherwise


def nx(x: Model, function: Callable[[Any], Any], *, row_wise: bool = False, name: Namer = None) -> Model:
    """A parameter-free function as a layer; `row_wise` as in `layer`. Source: Axon.nx/3."""
    return layer(function, x, row_wise=row_wise, op_name="nx", name=name)
