"""Normalization layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.shapes import Shape, normalize_axis

if TYPE_CHECKING:
    from engine.model.model import Model


def _scale_params(op: str, values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    def channels(x: Shape) -> Shape:
        return (x[normalize_axis(op, values["channel_index"], len(x))],)

    return (
        ParamSpec("gamma", channels, values["gamma_initializer"]),
        ParamSpec("beta", channels, values["beta_initializer"]),
    )


def _batch_norm_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    gamma, beta = _scale_params("batch_norm", values)
    mean = ParamSpec("mean", gamma.shape, "zeros", kind="state", dtype="f32")
    var = ParamSpec("var", gamma.shape, "ones", kind="state", dtype="f32")
    return gamma, beta, mean, var


def _channel_is_batch(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    if values["channel_index"] % len(shapes[0]) == 0:
        return "its channel axis is axis 0, the batch"
    return None


BATCH_NORM = Op(
    "batch_norm",
    apply=F.batch_norm,
    params=_batch_norm_params,
    options={
        "channel_index": options.integer(-16, 15),
        "epsilon": options.number(0),
        "momentum": options.number(0, 1),
        "gamma_initializer": options.initializer,
        "beta_initializer": options.initializer,
    },
    apply_options={"channel_index": "channel_index", "epsilon": "epsilon", "momentum": "momentum"},
    has_modes=True,
    mixes_rows=_channel_is_batch,
)


def batch_norm(
    x: Model,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    gamma_initializer: Any = "ones",
    beta_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    r"""Normalise every channel: $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    In training over the batch, keeping $m \cdot old + (1 - m) \cdot new$ as running statistics (biased variance);
    in inference with the running statistics.

    Args:
        x: `[batch, ..., channels]`, the channel axis at `channel_index`.
        momentum: weight $m$ of the old statistics, as in Axon (PyTorch's is $1 - m$).
    Returns: the shape of x. Parameters: gamma, beta `[channels]`; state: mean, var `[channels]`.
    Source: Axon.batch_norm/2; Ioffe and Szegedy 2015, arXiv:1502.03167. Gamma starts at ones here.
    """
    values = {
        "channel_index": channel_index,
        "epsilon": epsilon,
        "momentum": momentum,
        "gamma_initializer": gamma_initializer,
        "beta_initializer": beta_initializer,
    }
    return extend(BATCH_NORM, [x], values, name)


LAYER_NORM = Op(
    "layer_norm",
    apply=F.layer_norm,
    params=lambda values: _scale_params("layer_norm", values),
    options={
        "channel_index": options.integer(-16, 15),
        "epsilon": options.number(0),
        "gamma_initializer": options.initializer,
        "beta_initializer": options.initializer,
    },
    apply_options={"channel_index": "channel_index", "epsilon": "epsilon"},
    mixes_rows=_channel_is_batch,
)


def layer_norm(
    x: Model,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    gamma_initializer: Any = "ones",
    beta_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    r"""Normalise along one axis: $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    Args:
        x: `[batch, ..., channels]`; the statistics are taken over `channel_index` alone.
    Returns: the shape of x. Parameters: gamma, beta `[channels]`.
    Source: Axon.layer_norm/2; Ba et al. 2016, arXiv:1607.06450. Gamma starts at ones here.
    """
    values = {
        "channel_index": channel_index,
        "epsilon": epsilon,
        "gamma_initializer": gamma_initializer,
        "beta_initializer": beta_initializer,
    }
    return extend(LAYER_NORM, [x], values, name)
