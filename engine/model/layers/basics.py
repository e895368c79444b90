"""What every builder uses: growing a graph by one node, and the layers that start or join graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, GraphError
from engine.model import options
from engine.model.graph import Namer, Node, Op, make_node
from engine.model.options import Option
from engine.precision import DTYPES

if TYPE_CHECKING:
    from engine.model.model import Model

MAX_DEPTH = 32


def extend(op: Op, inputs: Sequence[Model], values: Mapping[str, Any], name: Namer = None) -> Model:
    """The model that ends in one more node; raises `OptionError` or `GraphError`."""
    for x in inputs:
        if not isinstance(_node_of(x), Node):
            raise GraphError(f"{op.name}: expected models as inputs, got {type(x).__name__}")
    return type(inputs[0])(make_node(op, [x.node for x in inputs], values, name))


def _start(op: Op, values: Mapping[str, Any], name: Namer) -> Model:
    from engine.model.model import Model

    return Model(make_node(op, [], values, name))


INPUT = Op(
    "input",
    apply=lambda *, value: value,
    options={"shape": options.open_shape, "dtype": options.dtype, "optional": options.boolean},
    apply_options={},
    arity=(0, 0),
)


def input(name: str, *, shape: Sequence[int | None] | None = None, dtype: str = "f32", optional: bool = False) -> Model:
    """A named root of the graph.

    Args:
        name: how callers of the model give its value.
        shape: full shape with `None` for open sizes, the batch first; `None` accepts anything.
        dtype: short name of the data type (`f32`, `s32` ...); values are cast to it within their kind.
        optional: whether the value may be missing.
    Raises: `GraphError` on an invalid name, `OptionError` on a wrong shape or dtype.
    Source: Axon.input/2; here the declared shape is enforced.
    """
    if not isinstance(name, str):
        raise GraphError(f"input: expected a name, got {name!r}")
    return _start(INPUT, {"shape": shape, "dtype": dtype, "optional": optional}, name)


def _constant_value(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype in (np.dtype(np.float64), np.dtype(np.int64)) and not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    if array.dtype not in DTYPES.values():
        raise DtypeError(f"got dtype {array.dtype}")
    array.setflags(write=False)
    return array


CONSTANT = Op(
    "constant",
    apply=lambda *, value: jnp.asarray(value),
    options={"value": Option("a number or an array of numbers", _constant_value, options.NUMBERS)},
    apply_options={"value": "value"},
    arity=(0, 0),
)


def constant(value: Any, *, name: Namer = None) -> Model:
    """A fixed tensor in the graph.

    Args:
        value: an array, or a number or nested list (Python floats become `f32`, integers `s32`).
    Raises: `OptionError` for anything that is not numeric.
    Source: Axon.constant/2.
    """
    return _start(CONSTANT, {"value": value}, name)


Structure = Any
"""Nested tuples and dicts of positions in a container's inputs."""


def _structure(value: Any, depth: int = 0) -> Structure:
    if depth > MAX_DEPTH:
        raise ValueError
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError
        return {key: _structure(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_structure(item, depth + 1) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise TypeError


def rebuild(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The nested value in which every position is replaced by its leaf."""
    if isinstance(structure, Mapping):
        return {key: rebuild(item, leaves) for key, item in structure.items()}
    if isinstance(structure, tuple):
        return tuple(rebuild(item, leaves) for item in structure)
    return leaves[structure]


CONTAINER = Op(
    "container",
    apply=lambda *inputs, structure: rebuild(structure, inputs),
    options={"structure": Option("nested lists and objects of input positions", _structure, options.POSITIONS)},
    apply_options={"structure": "structure"},
    arity=(1, None),
    takes_missing=True,
)


def as_structure(value: Any) -> Any:
    """Nested dicts and tuples with every dataclass instance in them as the dict of its fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(_node_of(value), Node):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_structure(item) for key, item in value.items()}
    return tuple(map(as_structure, value)) if isinstance(value, tuple) else value


def _node_of(value: Any) -> Any:
    return getattr(value, "node", None)


def container(models: Any, *, name: Namer = None) -> Model:
    """Join several outputs into one structured value.

    Args:
        models: nested tuples (or lists), dicts and dataclass instances of models.
    Returns: a model whose value has that structure: tuples for sequences, dicts by the fields' names for dataclasses.
    Raises: `GraphError` when there is no model in it, or something else is.
    Source: Axon.container/2.
    """
    leaves: list[Any] = []

    def number(value: Any, path: str) -> Structure:
        value = as_structure(value)
        if isinstance(value, Mapping):
            return {key: number(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return tuple(number(item, f"{path}[{i}]") for i, item in enumerate(value))
        if not isinstance(_node_of(value), Node):
            raise GraphError(f"container: expected a model at {path or 'the top'}, got {type(value).__name__}")
        leaves.append(value)
        return len(leaves) - 1

    structure = number(models, "")
    if not leaves:
        raise GraphError("container: expected at least one model, got none")
    return extend(CONTAINER, leaves, {"structure": structure}, name)


def container_from_nodes(nodes: Sequence[Node], structure: Structure, name: Namer = None) -> Node:
    """The container node over given nodes; readers of graphs use it."""
    return make_node(CONTAINER, nodes, {"structure": structure}, name)
