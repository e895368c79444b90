"""Normalization layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.shapes import Shape, normalize_axis

if TYPE_CHECKING:
    from engine.model.model import Model


def _channels_spec(op: str, values: Mapping[str, Any], name: str) -> ParamSpec:
    def channels(x: Shape) -> Shape:
        return (x[normalize_axis(op, values["channel_index"], len(x))],)

    return ParamSpec(name, channels, values[f"{name}_initializer"])


def _scale_params(op: str, values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    return _channels_spec(op, values, "gamma"), _channels_spec(op, values, "beta")


def _running_params(op: str, values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    gamma, beta = _scale_params(op, values)
    mean = ParamSpec("mean", gamma.shape, "zeros", kind="state", dtype="f32")
    var = ParamSpec("var", gamma.shape, "ones", kind="state", dtype="f32")
    return gamma, beta, mean, var


def _channel_is_batch(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    if values["channel_index"] % len(shapes[0]) == 0:
        return "its channel axis is axis 0, the batch"
    return None


_SCALES = {
    "channel_index": options.integer(-16, 15),
    "epsilon": options.number(0),
    "gamma_initializer": options.initializer,
    "beta_initializer": options.initializer,
}


def _running_op(name: str, apply: Callable[..., Any]) -> Op:
    return Op(
        name,
        apply=apply,
        params=lambda values: _running_params(name, values),
        options={**_SCALES, "momentum": options.number(0, 1)},
        apply_options={option: option for option in ("channel_index", "epsilon", "momentum")},
        has_modes=True,
        takes_rows=True,
        mixes_rows=_channel_is_batch,
    )


BATCH_NORM = _running_op("batch_norm", F.batch_norm)
INSTANCE_NORM = _running_op("instance_norm", F.instance_norm)


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


def instance_norm(
    x: Model,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    gamma_initializer: Any = "ones",
    beta_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Normalise every sample and channel over the spatial axes; in inference by the running statistics.

    Args:
        x: `[batch, *spatial, channels]`, rank 3 or more.
    Other arguments, parameters and state as `batch_norm`; the running statistics follow the mean over the samples.
    Source: Axon.instance_norm/2; Ulyanov et al. 2016, arXiv:1607.08022.
    """
    values = {
        "channel_index": channel_index,
        "epsilon": epsilon,
        "momentum": momentum,
        "gamma_initializer": gamma_initializer,
        "beta_initializer": beta_initializer,
    }
    return extend(INSTANCE_NORM, [x], values, name)


LAYER_NORM = Op(
    "layer_norm",
    apply=F.layer_norm,
    params=lambda values: _scale_params("layer_norm", values),
    options=_SCALES,
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


GROUP_NORM = Op(
    "group_norm",
    apply=F.group_norm,
    params=lambda values: _scale_params("group_norm", values),
    options={"num_groups": options.positive, **_SCALES},
    apply_options={option: option for option in ("num_groups", "channel_index", "epsilon")},
    mixes_rows=_channel_is_batch,
)


def group_norm(
    x: Model,
    num_groups: int,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    gamma_initializer: Any = "ones",
    beta_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Normalise every sample over groups of channels and all spatial axes.

    Args:
        x: `[batch, ..., channels]`.
        num_groups: how many groups; divides the channels.
    Other arguments, parameters as `layer_norm`. Raises: at build `ShapeError` when it does not divide.
    Source: Axon.group_norm/3; Wu and He 2018, arXiv:1803.08494.
    """
    values = {
        "num_groups": num_groups,
        "channel_index": channel_index,
        "epsilon": epsilon,
        "gamma_initializer": gamma_initializer,
        "beta_initializer": beta_initializer,
    }
    return extend(GROUP_NORM, [x], values, name)


RMS_NORM = Op(
    "rms_norm",
    apply=F.rms_norm,
    params=lambda values: (_channels_spec("rms_norm", values, "gamma"),),
    options={
        "channel_index": options.integer(-16, 15),
        "epsilon": options.number(0),
        "shift": options.number(),
        "upcast": options.choice("normalization", "all"),
        "gamma_initializer": options.initializer,
    },
    apply_options={option: option for option in ("channel_index", "epsilon", "shift", "upcast")},
    mixes_rows=_channel_is_batch,
)


def rms_norm(
    x: Model,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-6,
    shift: float = 0.0,
    upcast: str = "normalization",
    gamma_initializer: Any = "ones",
    name: Namer = None,
) -> Model:
    r"""Root-mean-square normalisation: $y = x / \sqrt{mean(x^2) + \epsilon} \cdot (shift + \gamma)$.

    Args:
        x: `[batch, ..., channels]`; the mean is taken over `channel_index` alone.
        upcast: `normalization` scales in the input's type, `all` in f32.
    Returns: the shape of x. Parameters: gamma `[channels]`.
    Source: Axon.rms_norm/2; Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    values = {
        "channel_index": channel_index,
        "epsilon": epsilon,
        "shift": shift,
        "upcast": upcast,
        "gamma_initializer": gamma_initializer,
    }
    return extend(RMS_NORM, [x], values, name)
