"""Dropout layers: they act in training only and keep their own random key in the model's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.model.options import Option

if TYPE_CHECKING:
    from engine.model.model import Model


def _op(name: str, apply: Callable[..., Any], **more: Option) -> Op:
    domains = {"rate": options.number(0, 1, open_high=True), **more}
    return Op(
        name,
        apply=apply,
        params=lambda values: (ParamSpec("key", lambda x: (2,), "key", kind="state", dtype="u32"),),
        options=domains,
        apply_options={option: option for option in domains},
        has_modes=True,
        train_only=True,
    )


_CHANNELS = options.choice("first", "last")
DROPOUT = _op("dropout", F.dropout)
SPATIAL_DROPOUT = _op("spatial_dropout", F.spatial_dropout, channels=_CHANNELS)
ALPHA_DROPOUT = _op("alpha_dropout", F.alpha_dropout)
FEATURE_ALPHA_DROPOUT = _op("feature_alpha_dropout", F.feature_alpha_dropout, channels=_CHANNELS)


def dropout(x: Model, *, rate: float = 0.5, name: Namer = None) -> Model:
    r"""Zero every element with probability `rate` and divide the others by $1 - rate$; training only.

    Args:
        x: any shape.
        rate: in [0, 1).
    Returns: the shape of x. State: key u32`[2]`, drawn from the model's seed and split by every training call.
    Source: Axon.dropout/2; Srivastava et al. 2014.
    """
    return extend(DROPOUT, [x], {"rate": rate}, name)


def spatial_dropout(x: Model, *, rate: float = 0.5, channels: str = "last", name: Namer = None) -> Model:
    """Dropout of whole feature maps: one draw per sample and channel; training only.

    Args:
        x: `[batch, *spatial, channels]`, or channels `first`.
    Raises: at build `ShapeError` below rank 3. Other arguments and state as `dropout`.
    Source: Tompson et al. 2014, arXiv:1411.4280; Axon.spatial_dropout/2 (which drops positions).
    """
    return extend(SPATIAL_DROPOUT, [x], {"rate": rate, "channels": channels}, name)


def alpha_dropout(x: Model, *, rate: float = 0.5, name: Namer = None) -> Model:
    """Dropout that keeps mean 0 and variance 1, for networks of SELUs; training only. Arguments as `dropout`.

    Source: Klambauer et al. 2017, arXiv:1706.02515; Axon.alpha_dropout/2.
    """
    return extend(ALPHA_DROPOUT, [x], {"rate": rate}, name)


def feature_alpha_dropout(x: Model, *, rate: float = 0.5, channels: str = "last", name: Namer = None) -> Model:
    """Alpha dropout of whole feature maps; training only. Arguments as `spatial_dropout`.

    Source: Klambauer et al. 2017; Axon.feature_alpha_dropout/2.
    """
    return extend(FEATURE_ALPHA_DROPOUT, [x], {"rate": rate, "channels": channels}, name)
