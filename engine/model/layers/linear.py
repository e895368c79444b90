"""Layers that multiply by a matrix: dense, bias, embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.activations import Activation, activate
from engine.model.layers.basics import extend
from engine.shapes import normalize_axis, require_rank

if TYPE_CHECKING:
    from engine.model.model import Model


def _dense_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    units = values["units"]
    kernel = ParamSpec("kernel", lambda x: (x[-1], units), values["kernel_initializer"])
    bias = ParamSpec("bias", lambda x: (units,), values["bias_initializer"])
    return (kernel, bias) if values["use_bias"] else (kernel,)


DENSE = Op(
    "dense",
    apply=F.dense,
    params=_dense_params,
    check=lambda x: require_rank("dense", x, at_least=2),
    options={
        "units": options.positive,
        "use_bias": options.boolean,
        "kernel_initializer": options.initializer,
        "bias_initializer": options.initializer,
    },
    apply_options={},
)


def dense(
    x: Model,
    units: int,
    *,
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    r"""Affine map of the last axis: $y = f(x W + b)$.

    Args:
        x: `[..., in]`, rank 2 or more.
        units: size `out` of the new last axis; positive.
        activation: name of an activation, or a function of one's own, added as a node of its own.
        use_bias: whether to add $b$.
    Returns: `[..., out]`. Parameters: kernel `[in, out]`, bias `[out]`.
    Raises: `OptionError`; at build `ShapeError` below rank 2.
    Example:
        >>> input("x", shape=(None, 784)).dense(128, activation="relu")
    Source: Axon.dense/3.
    """
    values = {
        "units": units,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(DENSE, [x], values, name), activation)


BIAS = Op(
    "bias",
    apply=F.bias,
    params=lambda values: (ParamSpec("bias", lambda x: (x[-1],), values["bias_initializer"]),),
    check=lambda x: require_rank("bias", x, at_least=2),
    options={"bias_initializer": options.initializer},
    apply_options={},
)


def bias(x: Model, *, bias_initializer: Any = "zeros", name: Namer = None) -> Model:
    r"""A trainable vector added over the last axis: $y = x + b$.

    Args:
        x: `[..., in]`.
    Returns: `[..., in]`. Parameters: bias `[in]`.
    Source: Axon.bias/2.
    """
    return extend(BIAS, [x], {"bias_initializer": bias_initializer}, name)


EMBEDDING = Op(
    "embedding",
    apply=F.embedding,
    params=lambda values: (
        ParamSpec("kernel", lambda x: (values["vocab_size"], values["embedding_size"]), values["kernel_initializer"]),
    ),
    options={
        "vocab_size": options.positive,
        "embedding_size": options.positive,
        "kernel_initializer": options.initializer,
    },
    apply_options={},
)


def embedding(
    x: Model, vocab_size: int, embedding_size: int, *, kernel_initializer: Any = "uniform", name: Namer = None
) -> Model:
    """Row lookup: `y = kernel[x]`; ids outside `[0, vocab_size)` are clamped.

    Args:
        x: integer tokens of any shape `[...]`.
    Returns: `[..., embedding_size]`. Parameters: kernel `[vocab_size, embedding_size]`, uniform in +-0.01.
    Raises: at build `DtypeError` on tokens that are not integers.
    Source: Axon.embedding/4.
    """
    values = {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "kernel_initializer": kernel_initializer,
    }
    return extend(EMBEDDING, [x], values, name)


BILINEAR = Op(
    "bilinear",
    apply=F.bilinear,
    params=lambda values: (
        ParamSpec("kernel", lambda x, y: (values["units"], x[-1], y[-1]), values["kernel_initializer"]),
        *((ParamSpec("bias", lambda x, y: (values["units"],), values["bias_initializer"]),) * values["use_bias"]),
    ),
    options=DENSE.options,
    apply_options={},
    arity=(2, 2),
)


def bilinear(
    x: Model,
    y: Model,
    units: int,
    *,
    activation: Activation = None,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    r"""Bilinear form of two inputs: $z_o = f(x^T K_o y + b_o)$.

    Args:
        x, y: `[..., in1]` and `[..., in2]` with equal leading axes.
        units: size of the new last axis.
    Returns: `[..., units]`. Parameters: kernel `[units, in1, in2]`, bias `[units]`.
    Source: Axon.bilinear/4.
    """
    values = {
        "units": units,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
    }
    return activate(extend(BILINEAR, [x, y], values, name), activation)


SCALE = Op(
    "scale",
    apply=F.scale,
    params=lambda values: (
        ParamSpec(
            "scale",
            lambda x: (x[normalize_axis("scale", values["channel_index"], len(x))],),
            values["scale_initializer"],
        ),
    ),
    options={"channel_index": options.integer(-16, 15), "scale_initializer": options.initializer},
    apply_options={"channel_index": "channel_index"},
)


def scale(x: Model, *, channel_index: int = -1, scale_initializer: Any = "ones", name: Namer = None) -> Model:
    """A trainable factor per channel: `y = x * s`.

    Args:
        x: `[..., channels]`, the channel axis at `channel_index`.
    Parameters: scale `[channels]`.
    Source: Axon 0.9 scale; Touvron et al. 2021, arXiv:2103.17239.
    """
    return extend(SCALE, [x], {"channel_index": channel_index, "scale_initializer": scale_initializer}, name)
