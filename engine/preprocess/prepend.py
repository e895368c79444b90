"""Preprocessing as part of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from engine.errors import GraphError
from engine.model.graph import Node
from engine.model.layers.basics import INPUT, constant
from engine.model.layers.combine import multiply, subtract
from engine.model.model import Model
from engine.model.rewrite import map_nodes, rewrite_nodes
from engine.preprocess.specs import Preprocess
from engine.preprocess.standardize import Standardize


def prepend(model: Model, preprocess: Preprocess, *, dtypes: Mapping[str, str] | None = None) -> Model:
    """The model that takes raw inputs, with the steps as its first layers.

    The inputs keep their names and shapes, all other layers their names, so that a state of `model` fits. What
    serves the model needs to know nothing of the steps: their numbers are constants of the graph.

    Args:
        model: takes inputs that have been through the steps.
        preprocess: of numeric inputs; only `standardize` is a layer.
        dtypes: of raw inputs by name where they differ, such as `{"image": "u8"}`, which sends a quarter of the bytes.
    Raises:
        GraphError: an input that the model does not have, or a step that cannot be part of a graph.
    """
    dtypes = dict(dtypes or {})
    inputs = model.inputs()
    for name in (*preprocess.inputs, *dtypes):
        if name not in inputs:
            raise GraphError(f"prepend: expected inputs out of {', '.join(inputs)}, got {name!r}")
    if foreign := [name for name in dtypes if name not in preprocess.inputs]:
        raise GraphError(f"prepend: expected dtypes of inputs that are standardised, got {foreign[0]!r}")
    for name, steps in preprocess.inputs.items():
        for step in steps:
            if not isinstance(step, Standardize):
                raise GraphError(f"prepend: expected only standardize for input {name!r}, got {step.name}")
    return rewrite_nodes(_retyped(model, dtypes), partial(_standardised, preprocess), into_blocks=False)


def _retyped(model: Model, dtypes: Mapping[str, str]) -> Model:
    def change(node: Node) -> Node:
        dtype = dtypes.get(str(node.name)) if node.op is INPUT else None
        return node if dtype is None else replace(node, options={**node.options, "dtype": dtype})

    return map_nodes(model, change, into_blocks=False)


def _standardised(preprocess: Preprocess, node: Node) -> Callable[[list[Model], Model], Model] | None:
    steps = preprocess.inputs.get(str(node.name), ()) if node.op is INPUT else ()

    def build(_: list[Model], x: Model) -> Model:
        for step in steps:
            assert isinstance(step, Standardize)
            mean, factor = step.factors()
            x = multiply(subtract(x, constant(mean)), constant(factor))
        return x

    return build if steps else None
