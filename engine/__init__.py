"""Axon's neural networks on JAX: graphs as data, built, trained, saved and run.

    import engine as ax
    model = ax.input("x", shape=(None, 784)).dense(128, activation="relu").dense(10, activation="softmax")
    init_fn, predict_fn = ax.build(model)
    state = init_fn(seed=0)
    predict_fn(state, x)

`ax.train`, `ax.optim`, `ax.bundle`, `ax.runtime` and `ax.display` are imported when first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from engine import functional
from engine.model.build import LayerInfo, TrainOutput, build, infer
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
    tanh,
)
from engine.model.layers.basics import constant, container, input
from engine.model.layers.combine import add, concatenate, multiply, subtract
from engine.model.layers.convolution import conv
from engine.model.layers.dropout import dropout
from engine.model.layers.linear import bias, dense, embedding
from engine.model.layers.normalization import batch_norm, layer_norm
from engine.model.layers.pooling import avg_pool, global_avg_pool, max_pool
from engine.model.layers.shape import flatten, reshape
from engine.model.model import Model
from engine.model.state import ModelState
from engine.version import VERSION

if TYPE_CHECKING:
    from engine import bundle, optim, runtime, train
    from engine.model import display

__version__ = VERSION

_LAZY = {
    "bundle": "engine.bundle",
    "display": "engine.model.display",
    "optim": "engine.optim",
    "runtime": "engine.runtime",
    "train": "engine.train",
}


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module 'engine' has no attribute {name!r}")


__all__ = [
    "LayerInfo",
    "Model",
    "ModelState",
    "TrainOutput",
    "activation",
    "add",
    "avg_pool",
    "batch_norm",
    "bias",
    "build",
    "bundle",
    "celu",
    "concatenate",
    "constant",
    "container",
    "conv",
    "dense",
    "display",
    "dropout",
    "elu",
    "embedding",
    "exp",
    "flatten",
    "functional",
    "gelu",
    "global_avg_pool",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "infer",
    "input",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "log_sumexp",
    "max_pool",
    "mish",
    "multiply",
    "optim",
    "relu",
    "relu6",
    "reshape",
    "runtime",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "subtract",
    "tanh",
    "train",
]
