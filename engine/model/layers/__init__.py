"""Layer builders, a file per family, and the table of all ops that graphs may name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.model.graph import Op
from engine.model.layers import (
    activations,
    basics,
    combine,
    convolution,
    dropout,
    linear,
    normalization,
    pooling,
    shape,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An op and the defaults of its options, read off its builder's signature: they stand in one place."""

    op: Op
    defaults: Mapping[str, Any]


def _entry(op: Op, builder: Any) -> Entry:
    parameters = inspect.signature(builder).parameters
    defaults = {
        option: parameters[option].default
        for option in op.options
        if option in parameters and parameters[option].default is not inspect.Parameter.empty
    }
    return Entry(op, defaults)


OPS: dict[str, Entry] = {
    op.name: _entry(op, builder)
    for op, builder in (
        (basics.INPUT, basics.input),
        (basics.CONSTANT, basics.constant),
        (basics.CONTAINER, basics.container),
        (linear.DENSE, linear.dense),
        (linear.BIAS, linear.bias),
        (linear.EMBEDDING, linear.embedding),
        (convolution.CONV, convolution.conv),
        (pooling.MAX_POOL, pooling.max_pool),
        (pooling.AVG_POOL, pooling.avg_pool),
        (pooling.GLOBAL_AVG_POOL, pooling.global_avg_pool),
        (normalization.BATCH_NORM, normalization.batch_norm),
        (normalization.LAYER_NORM, normalization.layer_norm),
        (dropout.DROPOUT, dropout.dropout),
        (shape.FLATTEN, shape.flatten),
        (shape.RESHAPE, shape.reshape),
        (combine.ADD, combine.add),
        (combine.SUBTRACT, combine.subtract),
        (combine.MULTIPLY, combine.multiply),
        (combine.CONCATENATE, combine.concatenate),
        *((activations.OPS[name], builder) for name, builder in activations.BUILDERS.items()),
    )
}
"""Every op by name."""
