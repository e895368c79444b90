"""`Model`: an immutable value around the output node of a graph, with every layer as a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.model import rewrite
from engine.model.graph import Node, names, post_order
from engine.model.layers import (
    activations,
    attention,
    combine,
    convolution,
    normalization,
    pooling,
    quantized,
    recurrent,
    sequence,
    special,
)
from engine.model.layers import dropout as dropouts
from engine.model.layers import linear as linears
from engine.model.layers import shape as shapes

if TYPE_CHECKING:
    from engine.model.state import ModelState


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

    def init(self, template: Any = None, seed: Any = 0, state: Any = None) -> ModelState:
        """The state for inputs like `template`; the arguments and errors of `build`'s `init_fn`."""
        from engine.model.build import build

        return build(self)[0](template, seed, state)

    def apply(self, state: ModelState, inputs: Any, *, train: bool = False) -> Any:
        """The prediction, in training a `TrainOutput`; the arguments and errors of `build`'s `predict_fn`."""
        from engine.model.build import build

        return build(self, mode="train" if train else "inference")[1](state, inputs)

    def __repr__(self) -> str:
        found = self.names()
        shapes = ", ".join(f"{name}: {node.options['shape']}" for name, node in self.inputs().items())
        return f"Model(inputs={{{shapes}}}, output={found[self.node]!r}, nodes={len(found)})"

    def _repr_html_(self) -> str:
        from engine.model.display import summary_html

        return summary_html(self)

    def _repr_svg_(self) -> str:
        from engine.model.display import summary_svg

        return summary_svg(self)

    get_inputs = rewrite.get_inputs
    get_output_shape = rewrite.get_output_shape
    get_op_counts = rewrite.get_op_counts
    properties = rewrite.properties
    get_options = rewrite.get_options
    set_options = rewrite.set_options
    get_parameters = rewrite.get_parameters
    set_parameters = rewrite.set_parameters
    map_nodes = rewrite.map_nodes
    reduce_nodes = rewrite.reduce_nodes
    rewrite_nodes = rewrite.rewrite_nodes
    pop_node = rewrite.pop_node
    pop_nodes = rewrite.pop_nodes
    capture = rewrite.capture
    optional = special.optional
    or_else = special.or_else
    nx = special.nx
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
    swiglu = activations.swiglu
    dense = linears.dense
    bias = linears.bias
    embedding = linears.embedding
    bilinear = linears.bilinear
    scale = linears.scale
    conv = convolution.conv
    conv_transpose = convolution.conv_transpose
    depthwise_conv = convolution.depthwise_conv
    separable_conv2d = convolution.separable_conv2d
    separable_conv3d = convolution.separable_conv3d
    max_pool = pooling.max_pool
    avg_pool = pooling.avg_pool
    lp_pool = pooling.lp_pool
    adaptive_avg_pool = pooling.adaptive_avg_pool
    adaptive_max_pool = pooling.adaptive_max_pool
    adaptive_lp_pool = pooling.adaptive_lp_pool
    global_avg_pool = pooling.global_avg_pool
    global_max_pool = pooling.global_max_pool
    global_lp_pool = pooling.global_lp_pool
    blur_pool = pooling.blur_pool
    batch_norm = normalization.batch_norm
    instance_norm = normalization.instance_norm
    layer_norm = normalization.layer_norm
    group_norm = normalization.group_norm
    rms_norm = normalization.rms_norm
    dropout = dropouts.dropout
    spatial_dropout = dropouts.spatial_dropout
    alpha_dropout = dropouts.alpha_dropout
    feature_alpha_dropout = dropouts.feature_alpha_dropout
    flatten = shapes.flatten
    reshape = shapes.reshape
    transpose = shapes.transpose
    pad = shapes.pad
    resize = shapes.resize
    stack_columns = shapes.stack_columns
    add = combine.add
    subtract = combine.subtract
    multiply = combine.multiply
    concatenate = combine.concatenate
    split = combine.split
    residual = combine.residual
    cond = combine.cond
    weight_only_quantized_dense = quantized.weight_only_quantized_dense
    weight_only_quantized_conv = quantized.weight_only_quantized_conv
    quantized_dense = quantized.quantized_dense
    quantized_conv = quantized.quantized_conv
    lstm = recurrent.lstm
    gru = recurrent.gru
    conv_lstm = recurrent.conv_lstm
    bidirectional = sequence.bidirectional
    scaled_dot_product_attention = attention.scaled_dot_product_attention
    multi_head_attention = attention.multi_head_attention
    mask = sequence.mask
    elem = sequence.elem
    fetch = sequence.fetch
    reverse = sequence.reverse
    sinusoidal_position = sequence.sinusoidal_position
    learned_position = sequence.learned_position
    rotary_embedding = sequence.rotary_embedding
