"""Optimizers, learning-rate schedules, constraints and update transforms over Optax, for any pytree."""

from engine.optim import constraints, loss_scale, schedules, transforms
from engine.optim.averaging import ema, ema_parameters
from engine.optim.grouping import groups
from engine.optim.kept_gradients import keep_gradients, kept_gradients
from engine.optim.masked import masked_optimizer
from engine.optim.optimizers import (
    OPTIMIZERS,
    adabelief,
    adagrad,
    adam,
    adamw,
    fromage,
    lamb,
    noisy_sgd,
    radam,
    rmsprop,
    sgd,
    yogi,
)
from engine.optim.schedules import SCHEDULES
from engine.optim.specs import TRANSFORMS, Spec, from_spec, keeps_averages
from engine.optim.transforms import (
    accumulate_gradients,
    apply_updates,
    chain,
    multiply_scale,
    set_learning_rate,
    set_to_zero,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "TRANSFORMS",
    "Spec",
    "accumulate_gradients",
    "adabelief",
    "adagrad",
    "adam",
    "adamw",
    "apply_updates",
    "chain",
    "constraints",
    "ema",
    "ema_parameters",
    "from_spec",
    "fromage",
    "groups",
    "keep_gradients",
    "keeps_averages",
    "kept_gradients",
    "lamb",
    "loss_scale",
    "masked_optimizer",
    "multiply_scale",
    "noisy_sgd",
    "radam",
    "rmsprop",
    "schedules",
    "set_learning_rate",
    "set_to_zero",
    "sgd",
    "transforms",
    "yogi",
]
