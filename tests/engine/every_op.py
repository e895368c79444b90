"""One row per op of the catalogue: how to build the smallest telling model of it. `test_every_op` walks this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import engine as ax

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A model of one op.

    `build` gets one model per entry of `inputs` (the shape of a row of data, without the batch) and `channels` when
    `spatial`. `tokens` marks integer inputs (how many different ones). `half` is the largest difference from f32 that
    bf16 may show, relative to the largest value; f16 may show an eighth of it.
    """

    build: Callable[..., ax.Model]
    inputs: tuple[Shape, ...] = ((6,),)
    spatial: bool = False
    tokens: int = 0
    half: float = 0.03
    row_wise: bool = True


def _activation(name: str, **options: Any) -> Row:
    return Row(lambda x: x.activation(name, **options))


IMAGE: Shape = (7, 6, 4)
VOLUME: Shape = (4, 5, 4, 2)

ROWS: dict[str, Row] = {
    "input": Row(lambda x: x),
    "constant": Row(lambda x: x.add(ax.constant([[0.5, -1.0, 2.0, 0.0, 1.0, 3.0]]))),
    "container": Row(lambda x: ax.container({"a": x.tanh(), "b": (x, x.relu())})),
    "optional": Row(lambda x: x.optional().tanh()),
    "or_else": Row(lambda x, y: x.or_else(y), inputs=((6,), (6,))),
    "dense": Row(lambda x: x.dense(3), inputs=((2, 6),)),
    "bias": Row(lambda x: x.bias(bias_initializer="normal")),
    "bilinear": Row(lambda x, y: x.bilinear(y, 3), inputs=((5,), (4,))),
    "scale": Row(lambda x: x.scale(scale_initializer="normal")),
    "embedding": Row(lambda x: x.embedding(7, 3, kernel_initializer="normal"), inputs=((5,),), tokens=7),
    "conv": Row(
        lambda x, channels: x.conv(
            4, kernel_size=(3, 2), strides=(2, 1), padding="same", feature_group_size=2, channels=channels
        ),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "conv_transpose": Row(
        lambda x, channels: x.conv_transpose(4, kernel_size=3, strides=2, feature_group_size=2, channels=channels),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "depthwise_conv": Row(
        lambda x, channels: x.depthwise_conv(2, kernel_size=3, kernel_dilation=2, channels=channels),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "separable_conv2d": Row(
        lambda x, channels: x.separable_conv2d(2, kernel_size=(2, 3), padding="same", channels=channels),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "separable_conv3d": Row(
        lambda x, channels: x.separable_conv3d(1, kernel_size=2, channels=channels), inputs=(VOLUME,), spatial=True
    ),
    "max_pool": Row(lambda x, channels: x.max_pool(kernel_size=2, channels=channels), inputs=(IMAGE,), spatial=True),
    "avg_pool": Row(
        lambda x, channels: x.avg_pool(kernel_size=3, strides=2, padding="same", channels=channels),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "lp_pool": Row(
        lambda x, channels: x.lp_pool(kernel_size=2, norm=3, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "adaptive_avg_pool": Row(
        lambda x, channels: x.adaptive_avg_pool(output_size=(3, 2), channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "adaptive_max_pool": Row(
        lambda x, channels: x.adaptive_max_pool(output_size=3, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "adaptive_lp_pool": Row(
        lambda x, channels: x.adaptive_lp_pool(output_size=2, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "global_avg_pool": Row(lambda x, channels: x.global_avg_pool(channels=channels), inputs=(IMAGE,), spatial=True),
    "global_max_pool": Row(
        lambda x, channels: x.global_max_pool(keep_axes=True, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "global_lp_pool": Row(lambda x, channels: x.global_lp_pool(channels=channels), inputs=(IMAGE,), spatial=True),
    "blur_pool": Row(lambda x, channels: x.blur_pool(channels=channels), inputs=(IMAGE,), spatial=True),
    "batch_norm": Row(lambda x: x.batch_norm(gamma_initializer="glorot_uniform"), inputs=((4, 3),)),
    "instance_norm": Row(lambda x: x.instance_norm(gamma_initializer="glorot_uniform"), inputs=((4, 3),)),
    "layer_norm": Row(lambda x: x.layer_norm(gamma_initializer="glorot_uniform")),
    "group_norm": Row(lambda x: x.group_norm(2, gamma_initializer="glorot_uniform"), inputs=((3, 4),)),
    "rms_norm": Row(lambda x: x.rms_norm(gamma_initializer="glorot_uniform")),
    "dropout": Row(lambda x: x.dropout(rate=0.4)),
    "spatial_dropout": Row(
        lambda x, channels: x.spatial_dropout(rate=0.4, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "alpha_dropout": Row(lambda x: x.alpha_dropout(rate=0.4)),
    "feature_alpha_dropout": Row(
        lambda x, channels: x.feature_alpha_dropout(rate=0.4, channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "flatten": Row(lambda x: x.flatten(), inputs=((2, 3),)),
    "reshape": Row(lambda x: x.reshape(("batch", 3, "auto"))),
    "transpose": Row(lambda x: x.transpose((0, 2, 1)), inputs=((2, 3),)),
    "pad": Row(lambda x, channels: x.pad([(1, 0), (2, -1)], 0.5, channels=channels), inputs=(IMAGE,), spatial=True),
    "resize": Row(
        lambda x, channels: x.resize((4, 9), method="bicubic", channels=channels), inputs=(IMAGE,), spatial=True
    ),
    "stack_columns": Row(lambda x, y: ax.container({"b": x, "a": y}).stack_columns(), inputs=((2,), (3,))),
    "add": Row(lambda x, y: ax.add(x, y, x), inputs=((6,), (6,))),
    "subtract": Row(lambda x, y: ax.subtract(x, y), inputs=((6,), (6,))),
    "multiply": Row(lambda x, y: ax.multiply(x, y), inputs=((6,), (1,))),
    "concatenate": Row(lambda x, y: ax.concatenate(x, y), inputs=((2,), (3,))),
    "split": Row(lambda x: ax.multiply(*x.split([2, 2, 2])), inputs=((6,),)),
    "cond": Row(lambda x: ax.cond(x, x.tanh(), x.sigmoid(), reduce="max"), row_wise=False),
    "weight_only_quantized_dense": Row(lambda x: x.weight_only_quantized_dense(3), inputs=((2, 6),)),
    "weight_only_quantized_conv": Row(
        lambda x, channels: x.weight_only_quantized_conv(
            4, kernel_size=(3, 2), strides=(2, 1), padding="same", feature_group_size=2, channels=channels
        ),
        inputs=(IMAGE,),
        spatial=True,
    ),
    "quantized_dense": Row(lambda x: x.quantized_dense(3), inputs=((2, 6),), half=0.1),
    "quantized_conv": Row(
        lambda x, channels: x.quantized_conv(
            6, kernel_size=(3, 2), padding="same", kernel_dilation=2, feature_group_size=2, channels=channels
        ),
        inputs=((6, 5, 4),),  # no number of which is at a rounding's edge
        spatial=True,
        half=0.1,
    ),
    "lstm": Row(
        lambda x, m: ax.container(x.lstm(3, carry=x.lstm(3)[1], mask=m.relu(), bias_initializer="normal")),
        inputs=((5, 4), (5,)),
    ),
    "gru": Row(
        lambda x, m: ax.container(x.gru(3, unroll="static", mask=m.relu(), bias_initializer="normal")),
        inputs=((5, 4), (5,)),
    ),
    "conv_lstm": Row(
        lambda x: ax.container(x.conv_lstm(2, kernel_size=(3, 2), bias_initializer="normal")), inputs=((3, 2, 4, 3),)
    ),
    "elem": Row(lambda x: ax.container({"a": (x.tanh(), x)}).elem(["a", 1]).relu()),
    "mask": Row(lambda x: x.mask(1), inputs=((5,),), tokens=3),
    "reverse": Row(lambda x: x.reverse(), inputs=((5, 2),)),
    "scaled_dot_product_attention": Row(
        lambda q, k, v, m, p: ax.scaled_dot_product_attention(
            q, k, v, mask=m.relu(), key_padding_mask=p.relu(), is_causal=True, dropout_rate=0.2
        ),
        inputs=((4, 4, 6), (5, 2, 6), (5, 2, 6), (4, 5), (5,)),
    ),
    "multi_head_attention": Row(
        lambda x, y: x.multi_head_attention(
            2, key=y, num_key_value_heads=1, head_size=4, units=3, rotary_base=100.0, bias_initializer="normal"
        ),
        inputs=((4, 6), (5, 3)),
    ),
    "sinusoidal_position": Row(lambda x: x.sinusoidal_position(base=100.0), inputs=((5, 4),)),
    "learned_position": Row(lambda x: x.learned_position(7, kernel_initializer="normal"), inputs=((5, 4),)),
    "rotary_embedding": Row(lambda x: x.rotary_embedding(base=100.0), inputs=((5, 2, 4),)),
    "celu": _activation("celu", alpha=0.7),
    "elu": _activation("elu", alpha=1.3),
    "exp": _activation("exp"),
    "gelu": _activation("gelu", approximate=True),
    "hard_sigmoid": _activation("hard_sigmoid"),
    "hard_silu": _activation("hard_silu"),
    "hard_tanh": _activation("hard_tanh"),
    "leaky_relu": _activation("leaky_relu", alpha=0.1),
    "linear": _activation("linear"),
    "log_sigmoid": _activation("log_sigmoid"),
    "log_softmax": _activation("log_softmax"),
    "log_sumexp": _activation("log_sumexp"),
    "mish": _activation("mish"),
    "relu": _activation("relu"),
    "relu6": _activation("relu6"),
    "selu": _activation("selu"),
    "sigmoid": _activation("sigmoid"),
    "silu": _activation("silu"),
    "softmax": _activation("softmax"),
    "softplus": _activation("softplus"),
    "softsign": _activation("softsign"),
    "tanh": _activation("tanh"),
    "swiglu": _activation("swiglu"),
}
