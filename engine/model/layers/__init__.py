"""Layer builders, a file per family, and the table of all ops that graphs may name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.model.graph import Op
from engine.model.layers import (
    activations,
    attention,
    basics,
    combine,
    convolution,
    dropout,
    linear,
    normalization,
    pooling,
    quantized,
    recurrent,
    sequence,
    shape,
    special,
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
    return Entry(op, {**defaults, **op.defaults})


OPS: dict[str, Entry] = {
    op.name: _entry(op, builder)
    for op, builder in (
        (basics.INPUT, basics.input),
        (basics.CONSTANT, basics.constant),
        (basics.CONTAINER, basics.container),
        (special.OPTIONAL, special.optional),
        (special.OR_ELSE, special.or_else),
        (linear.DENSE, linear.dense),
        (linear.BIAS, linear.bias),
        (linear.BILINEAR, linear.bilinear),
        (linear.SCALE, linear.scale),
        (linear.EMBEDDING, linear.embedding),
        (convolution.CONV, convolution.conv),
        (convolution.CONV_TRANSPOSE, convolution.conv_transpose),
        (convolution.DEPTHWISE_CONV, convolution.depthwise_conv),
        (convolution.SEPARABLE_CONV2D, convolution.separable_conv2d),
        (convolution.SEPARABLE_CONV3D, convolution.separable_conv3d),
        (pooling.MAX_POOL, pooling.max_pool),
        (pooling.AVG_POOL, pooling.avg_pool),
        (pooling.LP_POOL, pooling.lp_pool),
        (pooling.ADAPTIVE_AVG_POOL, pooling.adaptive_avg_pool),
        (pooling.ADAPTIVE_MAX_POOL, pooling.adaptive_max_pool),
        (pooling.ADAPTIVE_LP_POOL, pooling.adaptive_lp_pool),
        (pooling.GLOBAL_AVG_POOL, pooling.global_avg_pool),
        (pooling.GLOBAL_MAX_POOL, pooling.global_max_pool),
        (pooling.GLOBAL_LP_POOL, pooling.global_lp_pool),
        (pooling.BLUR_POOL, pooling.blur_pool),
        (normalization.BATCH_NORM, normalization.batch_norm),
        (normalization.INSTANCE_NORM, normalization.instance_norm),
        (normalization.LAYER_NORM, normalization.layer_norm),
        (normalization.GROUP_NORM, normalization.group_norm),
        (normalization.RMS_NORM, normalization.rms_norm),
        (dropout.DROPOUT, dropout.dropout),
        (dropout.SPATIAL_DROPOUT, dropout.spatial_dropout),
        (dropout.ALPHA_DROPOUT, dropout.alpha_dropout),
        (dropout.FEATURE_ALPHA_DROPOUT, dropout.feature_alpha_dropout),
        (shape.FLATTEN, shape.flatten),
        (shape.RESHAPE, shape.reshape),
        (shape.TRANSPOSE, shape.transpose),
        (shape.PAD, shape.pad),
        (shape.RESIZE, shape.resize),
        (shape.STACK_COLUMNS, shape.stack_columns),
        (combine.ADD, combine.add),
        (combine.SUBTRACT, combine.subtract),
        (combine.MULTIPLY, combine.multiply),
        (combine.CONCATENATE, combine.concatenate),
        (combine.SPLIT, combine.split),
        (combine.COND, combine.cond),
        (quantized.WEIGHT_ONLY_QUANTIZED_DENSE, quantized.weight_only_quantized_dense),
        (quantized.WEIGHT_ONLY_QUANTIZED_CONV, quantized.weight_only_quantized_conv),
        (quantized.QUANTIZED_DENSE, quantized.quantized_dense),
        (quantized.QUANTIZED_CONV, quantized.quantized_conv),
        (recurrent.LSTM, recurrent.lstm),
        (recurrent.GRU, recurrent.gru),
        (recurrent.CONV_LSTM, recurrent.conv_lstm),
        (attention.SCALED_DOT_PRODUCT_ATTENTION, attention.scaled_dot_product_attention),
        (attention.MULTI_HEAD_ATTENTION, attention.multi_head_attention),
        (sequence.MASK, sequence.mask),
        (sequence.ELEM, sequence.elem),
        (sequence.REVERSE, sequence.reverse),
        (sequence.SINUSOIDAL_POSITION, sequence.sinusoidal_position),
        (sequence.LEARNED_POSITION, sequence.learned_position),
        (sequence.ROTARY_EMBEDDING, sequence.rotary_embedding),
        *((activations.OPS[name], builder) for name, builder in activations.BUILDERS.items()),
    )
}
"""Every op by name."""
