"""Pure functions on arrays: everything a layer computes, usable without the rest of the engine.

Layer functions are here by name, each with a `check_<name>` that applies its shape rule to plain tuples. Activations,
initializers, losses and metrics share names among themselves and are found in their modules. All functions work
under `jit`, `grad` and `vmap`, set no global state, and draw random numbers only from a key they are given.
"""

from __future__ import annotations

from engine.functional import activations, initializers, keys, losses, metrics
from engine.functional.activations import ACTIVATIONS
from engine.functional.combine import (
    add,
    check_add,
    check_concatenate,
    check_multiply,
    check_split,
    check_subtract,
    concatenate,
    multiply,
    split,
    subtract,
)
from engine.functional.convolution import check_conv, conv
from engine.functional.dropout import (
    alpha_dropout,
    check_alpha_dropout,
    check_dropout,
    check_feature_alpha_dropout,
    check_spatial_dropout,
    dropout,
    feature_alpha_dropout,
    spatial_dropout,
)
from engine.functional.initializers import INITIALIZERS, Initializer
from engine.functional.linear import (
    bias,
    bilinear,
    check_bias,
    check_bilinear,
    check_dense,
    check_embedding,
    dense,
    embedding,
)
from engine.functional.losses import FUSED_ACTIVATION, LOSSES
from engine.functional.metrics import METRICS
from engine.functional.normalization import (
    batch_norm,
    check_batch_norm,
    check_group_norm,
    check_instance_norm,
    check_layer_norm,
    check_rms_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from engine.functional.pooling import (
    avg_pool,
    check_avg_pool,
    check_global_avg_pool,
    check_global_max_pool,
    check_max_pool,
    global_avg_pool,
    global_max_pool,
    max_pool,
)
from engine.functional.shape import (
    check_flatten,
    check_pad,
    check_reshape,
    check_transpose,
    flatten,
    pad,
    reshape,
    transpose,
)
from engine.functional.stateful import StatefulOutput

__all__ = [
    "ACTIVATIONS",
    "FUSED_ACTIVATION",
    "INITIALIZERS",
    "LOSSES",
    "METRICS",
    "Initializer",
    "StatefulOutput",
    "activations",
    "add",
    "alpha_dropout",
    "avg_pool",
    "batch_norm",
    "bias",
    "bilinear",
    "check_add",
    "check_alpha_dropout",
    "check_avg_pool",
    "check_batch_norm",
    "check_bias",
    "check_bilinear",
    "check_concatenate",
    "check_conv",
    "check_dense",
    "check_dropout",
    "check_embedding",
    "check_feature_alpha_dropout",
    "check_flatten",
    "check_global_avg_pool",
    "check_global_max_pool",
    "check_group_norm",
    "check_instance_norm",
    "check_layer_norm",
    "check_max_pool",
    "check_multiply",
    "check_pad",
    "check_reshape",
    "check_rms_norm",
    "check_spatial_dropout",
    "check_split",
    "check_subtract",
    "check_transpose",
    "concatenate",
    "conv",
    "dense",
    "dropout",
    "embedding",
    "feature_alpha_dropout",
    "flatten",
    "global_avg_pool",
    "global_max_pool",
    "group_norm",
    "initializers",
    "instance_norm",
    "keys",
    "layer_norm",
    "losses",
    "max_pool",
    "metrics",
    "multiply",
    "pad",
    "reshape",
    "rms_norm",
    "spatial_dropout",
    "split",
    "subtract",
    "transpose",
]
