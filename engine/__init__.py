"""Axon's neural networks on JAX: graphs as data, built, trained, saved and run.

    import engine as ax
    model = ax.input("x", shape=(None, 784)).dense(128, activation="relu").dense(10, activation="softmax")
    init_fn, predict_fn = ax.build(model)
    state = init_fn(seed=0)
    predict_fn(state, x)

`ax.train`, `ax.optim`, `ax.bundle`, `ax.runtime`, `ax.columns`, `ax.postprocess`, `ax.preprocess` and `ax.display` are
imported when first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from engine import functional
from engine.model.block import Block, block, deferred, namespace
from engine.model.build import TrainOutput, build, compile, infer, init, predict
from engine.model.hooks import attach_hook, detach_hooks
from engine.model.layers.activations import (
    activation,
    celu,
    elu,
    exp,
    gelu,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    linear,
    log_sigmoid,
    log_softmax,
    log_sumexp,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    swiglu,
    tanh,
)
from engine.model.layers.attention import multi_head_attention, scaled_dot_product_attention
from engine.model.layers.basics import constant, container, input
from engine.model.layers.combine import (
    add,
    concatenate,
    cond,
    multiply,
    residual,
    split,
    subtract,
)
from engine.model.layers.convolution import (
    conv,
    conv_transpose,
    depthwise_conv,
    separable_conv2d,
    separable_conv3d,
)
from engine.model.layers.dropout import (
    alpha_dropout,
    dropout,
    feature_alpha_dropout,
    spatial_dropout,
)
from engine.model.layers.init_apply import layer_from_init_apply
from engine.model.layers.linear import (
    bias,
    bilinear,
    dense,
    embedding,
    scale,
)
from engine.model.layers.normalization import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from engine.model.layers.pooling import (
    adaptive_avg_pool,
    adaptive_lp_pool,
    adaptive_max_pool,
    avg_pool,
    blur_pool,
    global_avg_pool,
    global_lp_pool,
    global_max_pool,
    lp_pool,
    max_pool,
)
from engine.model.layers.quantized import (
    quantized_conv,
    quantized_dense,
    weight_only_quantized_conv,
    weight_only_quantized_dense,
)
from engine.model.layers.recurrent import conv_lstm, gru, lstm
from engine.model.layers.sequence import (
    bidirectional,
    elem,
    fetch,
    learned_position,
    mask,
    reverse,
    rotary_embedding,
    sinusoidal_position,
)
from engine.model.layers.shape import (
    flatten,
    pad,
    reshape,
    resize,
    stack_columns,
    transpose,
)
from engine.model.layers.special import layer, nx, optional, or_else, param
from engine.model.model import Model
from engine.model.outputs import with_outputs
from engine.model.policy import apply_policy
from engine.model.prune import apply_mask, global_sparsity, magnitude_mask, prune, sparsity
from engine.model.quantize import (
    Calibration,
    SizeReport,
    calibrate,
    quantize,
    quantize_model,
    quantize_model_state,
    size_report,
)
from engine.model.rewrite import (
    capture,
    get_inputs,
    get_op_counts,
    get_options,
    get_output_shape,
    get_parameters,
    map_nodes,
    pop_node,
    pop_nodes,
    properties,
    reduce_nodes,
    rewrite_nodes,
    set_options,
    set_parameters,
)
from engine.model.state import ModelState, Tie
from engine.model.trace import trace_backward, trace_forward, trace_init
from engine.model.walk import LayerInfo
from engine.precision import POLICIES, Policy
from engine.version import VERSION

if TYPE_CHECKING:
    from engine import bundle, columns, optim, postprocess, preprocess, runtime, train
    from engine.model import display

__version__ = VERSION

_LAZY = {
    "bundle": "engine.bundle",
    "columns": "engine.columns",
    "display": "engine.model.display",
    "optim": "engine.optim",
    "postprocess": "engine.postprocess",
    "preprocess": "engine.preprocess",
    "runtime": "engine.runtime",
    "train": "engine.train",
}


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module 'engine' has no attribute {name!r}")


__all__ = [
    "POLICIES",
    "Block",
    "Calibration",
    "LayerInfo",
    "Model",
    "ModelState",
    "Policy",
    "SizeReport",
    "Tie",
    "TrainOutput",
    "activation",
    "adaptive_avg_pool",
    "adaptive_lp_pool",
    "adaptive_max_pool",
    "add",
    "alpha_dropout",
    "apply_mask",
    "apply_policy",
    "attach_hook",
    "avg_pool",
    "batch_norm",
    "bias",
    "bidirectional",
    "bilinear",
    "block",
    "blur_pool",
    "build",
    "bundle",
    "calibrate",
    "capture",
    "celu",
    "columns",
    "compile",
    "concatenate",
    "cond",
    "constant",
    "container",
    "conv",
    "conv_lstm",
    "conv_transpose",
    "deferred",
    "dense",
    "depthwise_conv",
    "detach_hooks",
    "display",
    "dropout",
    "elem",
    "elu",
    "embedding",
    "exp",
    "feature_alpha_dropout",
    "fetch",
    "flatten",
    "functional",
    "gelu",
    "get_inputs",
    "get_op_counts",
    "get_options",
    "get_output_shape",
    "get_parameters",
    "global_avg_pool",
    "global_lp_pool",
    "global_max_pool",
    "global_sparsity",
    "group_norm",
    "gru",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "infer",
    "init",
    "input",
    "instance_norm",
    "layer",
    "layer_from_init_apply",
    "layer_norm",
    "leaky_relu",
    "learned_position",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "log_sumexp",
    "lp_pool",
    "lstm",
    "magnitude_mask",
    "map_nodes",
    "mask",
    "max_pool",
    "mish",
    "multi_head_attention",
    "multiply",
    "namespace",
    "nx",
    "optim",
    "optional",
    "or_else",
    "pad",
    "param",
    "pop_node",
    "pop_nodes",
    "postprocess",
    "predict",
    "preprocess",
    "properties",
    "prune",
    "quantize",
    "quantize_model",
    "quantize_model_state",
    "quantized_conv",
    "quantized_dense",
    "reduce_nodes",
    "relu",
    "relu6",
    "reshape",
    "residual",
    "resize",
    "reverse",
    "rewrite_nodes",
    "rms_norm",
    "rotary_embedding",
    "runtime",
    "scale",
    "scaled_dot_product_attention",
    "selu",
    "separable_conv2d",
    "separable_conv3d",
    "set_options",
    "set_parameters",
    "sigmoid",
    "silu",
    "sinusoidal_position",
    "size_report",
    "softmax",
    "softplus",
    "softsign",
    "sparsity",
    "spatial_dropout",
    "split",
    "stack_columns",
    "subtract",
    "swiglu",
    "tanh",
    "trace_backward",
    "trace_forward",
    "trace_init",
    "train",
    "transpose",
    "weight_only_quantized_conv",
    "weight_only_quantized_dense",
    "with_outputs",
]
