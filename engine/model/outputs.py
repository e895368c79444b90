"""The names of a model's outputs, and asking for more than them: the values of any of its layers."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from engine.errors import GraphError
from engine.model.layers.basics import container_from_nodes
from engine.model.model import Model
from engine.model.state import near


def output_names(model: Model) -> list[str]:
    """Names of the outputs in the order of JAX's leaves: the node's name, or the path in a container (`a`, `b.0`)."""
    names = model.names()
    if model.node.op.name != "container":
        return [names[model.node]]
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.node.options["structure"])
    return [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in leaves]


def with_outputs(model: Model, layers: Sequence[str]) -> Model:
    """The model whose output is `{"outputs": that of model, "intermediates": {layer: its value}}`.

    Names and state are those of `model`: a state of it fits.

    Args:
        layers: names of nodes at the top of the graph, as `model.names()` has them.
    Raises: `GraphError` for another name, a layer of a block included: its values differ from call to call.
    Example:
        >>> init, predict = build(with_outputs(model, ["dense_0"]))
        >>> predict(state, x)["intermediates"]["dense_0"]
    """
    nodes = {name: node for node, name in model.names().items()}
    chosen = list(dict.fromkeys(layers))
    for name in chosen:
        if name not in nodes:
            first = name.partition(".")[0]
            hint = f"a layer of the block {first!r}; name the block" if first in nodes and first != name else repr(name)
            raise GraphError(f"with_outputs: expected the name of a layer, such as {near(name, nodes)}; got {hint}")
    positions = {name: index + 1 for index, name in enumerate(chosen)}
    structure = {"outputs": 0, "intermediates": positions}
    return Model(container_from_nodes([model.node, *(nodes[name] for name in chosen)], structure))
