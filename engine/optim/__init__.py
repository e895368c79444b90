"""Optimizers, learning-rate schedules and update transforms over Optax, for any pytree."""

from engine.optim import schedules, transforms
from engine.optim.optimizers import (
    OPTIMIZERS,
    adabelief,
    adagrad,
    adam,
    adamw,
    from_spec,
    lamb,
    noisy_sgd,
    radam,
    rmsprop,
    sgd,
    yogi,
)
from engine.optim.schedules import SCHEDULES
from engine.optim.transforms import apply_updates, multiply_scale

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "adabelief",
    "adagrad",
    "adam",
    "adamw",
    "apply_updates",
    "from_spec",
    "lamb",
    "multiply_scale",
    "noisy_sgd",
    "radam",
    "rmsprop",
    "schedules",
    "sgd",
    "transforms",
    "yogi",
]
