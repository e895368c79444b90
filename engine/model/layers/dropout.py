"""Dropout layers: they act in training only and keep their own random key in the model's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import functional as F
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend

if TYPE_CHECKING:
    from engine.model.model import Model


DROPOUT = Op(
    "dropout",
    apply=F.dropout,
    params=lambda values: (ParamSpec("key", lambda x: (2,), "key", kind="state", dtype="u32"),),
    options={"rate": options.number(0, 1, open_high=True)},
    apply_options={"rate": "rate"},
    has_modes=True,
    train_only=True,
)


def dropout(x: Model, *, rate: float = 0.5, name: Namer = None) -> Model:
    r"""Zero every element with probability `rate` and divide the others by $1 - rate$; training only.

    Args:
        x: any shape.
        rate: in [0, 1).
    Returns: the shape of x. State: key u32`[2]`, drawn from the model's seed and split by every training call.
    Source: Axon.dropout/2; Srivastava et al. 2014.
    """
    return extend(DROPOUT, [x], {"rate": rate}, name)
