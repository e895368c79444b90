"""Blocks: sub-models with a name of their own, whose parameters every call shares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import GraphError
from engine.model.graph import NAME, Op
from engine.model.layers.basics import extend, input
from engine.model.model import Model
from engine.model.options import Option

MAX_INPUTS = 64


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
    Raises: `GraphError` when function takes no model, or uses models from outside.
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
    return Block(model, inputs, name, remat)
