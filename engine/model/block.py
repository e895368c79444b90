"""Blocks: sub-models with a name of their own, whose parameters every call shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from engine.errors import EngineError, GraphError
from engine.model.graph import NAME, Op
from engine.model.layers.basics import container, extend, input
from engine.model.model import Model
from engine.model.options import Option
from engine.precision import dtype_of

MAX_INPUTS = 64
# Pairs of sizes that stand for open ones: large enough for windows and strides, or else as small as positions need.
_PROBES = ((64, 96), (1, 2))


def _block(value: Any) -> Block:
    if not isinstance(value, Block):
        raise TypeError
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A sub-model that can be called like a layer, any number of times, always with the same parameters.

    Attributes:
        model: the sub-model.
        inputs: names of its inputs in the order of a call's arguments.
        name: under which the parameters stand, `<name>.dense_0.kernel`; None for `block_<n>`.
        remat: whether gradients compute the values inside again instead of keeping them (`jax.checkpoint`).

    Source: Axon.block/2; here mode, seed and precision of the outer model hold within it.
    """

    model: Model
    inputs: tuple[str, ...]
    name: str | None = None
    remat: bool = False

    def __call__(self, *inputs: Model) -> Model:
        """The model that ends in a call of this block; raises `GraphError` for another number of inputs."""
        if len(inputs) != len(self.inputs):
            raise GraphError(f"block: expected {len(self.inputs)} inputs, got {len(inputs)}")
        return extend(BLOCK, inputs, {"block": self})


BLOCK = Op(
    "block",
    apply=lambda *inputs, block: None,
    options={"block": Option("a block", _block)},
    apply_options={},
    arity=(1, MAX_INPUTS),
)
"""A call of a block; walks run its sub-model in place of `apply`."""


def block(function: Callable[..., Model], *, name: str | None = None, remat: bool = False) -> Block:
    """A sub-model from a function of models.

    Args:
        function: called once with a model per positional parameter; returns the sub-model's output.
        name: of the parameters' namespace.
        remat: whether gradients compute the values inside again: less memory for more time.
    Returns: a callable: every call adds the sub-model to a graph, all calls share its parameters.
    Raises: `GraphError` when function takes no model, uses models from outside, or attaches hooks to its arguments.
    Example:
        >>> twice = block(lambda x: x.dense(8, activation="relu"))
        >>> twice(twice(input("x", shape=(None, 8))))
    Source: Axon.block/2.
    """
    if name is not None and not NAME.fullmatch(name):
        raise GraphError(f"block: expected a name matching {NAME.pattern}, got {name!r}")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.default is p.empty
    ]
    if not 0 < len(parameters) <= MAX_INPUTS:
        raise GraphError(f"block: expected a function of 1 to {MAX_INPUTS} models, got one of {len(parameters)}")
    inputs = tuple(f"subgraph{i}" for i in range(len(parameters)))
    model = function(*map(input, inputs))
    if set(model.inputs()) != set(inputs):
        raise GraphError(f"block: expected a model of its {len(inputs)} arguments and no other, got {model!r}")
    if any(node.hooks for node in model.inputs().values()):
        raise GraphError("block: expected arguments without hooks, got some; attach them to a layer, or to the call")
    return Block(model, inputs, name, remat)


def namespace(prefix: str, x: Model | Sequence[Model], function: Callable[..., Model]) -> Model:
    """`function(x)` with its parameters under one name: a named block that is called once.

    Args:
        prefix: of the parameters' paths, `<prefix>.dense_0.kernel`; namespaces within it follow it.
        x: what the function is called with, one model or several.
    Raises: `GraphError` as `block`.
    Source: Axon 0.9 namespace, which puts the prefix in front of every name instead.
    """
    return block(function, name=prefix)(*_models(x))


def deferred(inputs: Model | Sequence[Model], factory: Callable[..., Any], *, name: str | None = None) -> Model:
    """A sub-model made by a function that knows the shapes of its inputs.

    It is made at once, from the declared shapes of the graph's inputs, so that the model is plain data and can travel.

    Args:
        factory: called with a `jax.ShapeDtypeStruct` per input (a structure of them for a structured value), in whose
            `shape` None stands for an open size; returns a function of models, or a block.
        name: under which the parameters stand, as of a block.
    Returns: the model that the returned function makes of the inputs.
    Raises: `GraphError` when an input of the graph has no declared shape, as those within a block have none;
        `ShapeError`, `DtypeError` when the shapes do not fit.
    Example:
        >>> x = input("x", shape=(None, 8))
        >>> deferred(x, lambda shape: lambda x: x.dense(2 * shape.shape[-1]))
    Source: Axon 0.9 deferred, which is resolved when the model is built.
    """
    models = _models(inputs)
    function = factory(*open_shapes(container(tuple(models))))
    if not callable(function):
        raise GraphError(f"deferred: expected factory to return a function of models, got {type(function).__name__}")
    made = function if isinstance(function, Block) else block(function, name=name)
    return (made if name is None else replace(made, name=name))(*models)


def _models(x: Model | Sequence[Model]) -> list[Model]:
    return [x] if isinstance(x, Model) else list(x)


def open_shapes(model: Model) -> Any:
    """Shape and dtype of the output, None for the sizes that change with the open sizes of the inputs."""
    undeclared = [f"{name!r}" for name, shape in model.get_inputs().items() if shape is None]
    if undeclared:
        raise GraphError(f"deferred: expected inputs of declared shapes, got none for {', '.join(undeclared)}")
    for first, second in _PROBES:
        try:
            found = [model.get_output_shape(_probe(model, size)) for size in (first, second)]
            break
        except EngineError:
            if (first, second) == _PROBES[-1]:
                raise
    return jax.tree.map(_open, *found)


def _probe(model: Model, size: int) -> dict[str, Any]:
    declared = {name: node.options for name, node in model.inputs().items()}
    return {
        name: jax.ShapeDtypeStruct(tuple(size if n is None else n for n in o["shape"]), dtype_of(o["dtype"]))  # type: ignore[no-untyped-call]
        for name, o in declared.items()
    }


def _open(one: Any, other: Any) -> Any:
    sizes = tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True))
    return jax.ShapeDtypeStruct(sizes, one.dtype)  # type: ignore[no-untyped-call]
