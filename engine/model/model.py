"""`Model`: an immutable value around the output node of a graph, with every layer as a method."""

from __future__ import annotations

from dataclasses import dataclass

from engine.model.graph import Node, names, post_order
from engine.model.layers import activations, combine, convolution, normalization, pooling
from engine.model.layers import dropout as dropouts
from engine.model.layers import linear as linears
from engine.model.layers import shape as shapes


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A graph seen from its output. Layers never change one, they return a bigger one.

    Attributes:
        node: the output node; a container node for structured outputs.
    """

    node: Node

    def nodes(self) -> list[Node]:
        """Every node, inputs before users, each once."""
        return post_order(self.node)

    def names(self) -> dict[Node, str]:
        """The name of every node, in the order of `nodes`; raises `GraphError` on duplicates."""
        return names(self.nodes())

    def inputs(self) -> dict[str, Node]:
        """The input nodes by name, in the order in which the graph needs them."""
        return {name: node for node, name in self.names().items() if node.op.name == "input"}

    def __repr__(self) -> str:
        found = self.names()
        shapes = ", ".join(f"{name}: {node.options['shape']}" for name, node in self.inputs().items())
        return f"Model(inputs={{{shapes}}}, output={found[self.node]!r}, nodes={len(found)})"

    activation = activations.activation
    celu = activations.celu
    elu = activations.elu
    exp = activations.exp
    gelu = activations.gelu
    hard_sigmoid = activations.hard_sigmoid
    hard_silu = activations.hard_silu
    hard_tanh = activations.hard_tanh
    leaky_relu = activations.leaky_relu
    linear = activations.linear
    log_sigmoid = activations.log_sigmoid
    log_softmax = activations.log_softmax
    log_sumexp = activations.log_sumexp
    mish = activations.mish
    relu = activations.relu
    relu6 = activations.relu6
    selu = activations.selu
    sigmoid = activations.sigmoid
    silu = activations.silu
    softmax = activations.softmax
    softplus = activations.softplus
    softsign = activations.softsign
    tanh = activations.tanh
    dense = linears.dense
    bias = linears.bias
    embedding = linears.embedding
    conv = convolution.conv
    max_pool = pooling.max_pool
    avg_pool = pooling.avg_pool
    global_avg_pool = pooling.global_avg_pool
    batch_norm = normalization.batch_norm
    layer_norm = normalization.layer_norm
    dropout = dropouts.dropout
    flatten = shapes.flatten
    reshape = shapes.reshape
    add = combine.add
    subtract = combine.subtract
    multiply = combine.multiply
    concatenate = combine.concatenate
