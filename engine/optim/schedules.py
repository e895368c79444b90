"""Learning-rate schedules: constructors of `count -> rate`, where `count` is 0 at the first update.

A schedule is a pure function of the number of updates made so far, so it works inside a compiled step
and needs no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.functional.options import as_integer, require_number

Schedule = Callable[[Any], Any]


def constant(init_value: float) -> Schedule:
    r"""$r(t) = r_0$. Source: Polaris.Schedules.constant/2."""
    require_number("constant", "init_value", init_value)
    return optax.constant_schedule(init_value)  # type: ignore[no-any-return]


def cosine_decay(init_value: float, *, decay_steps: int = 10, alpha: float = 0.0) -> Schedule:
    r"""Half a cosine from $r_0$ down to $\alpha r_0$, then flat.

    $r(t) = r_0 ((1 - \alpha) \tfrac12 (1 + \cos(\pi \min(t, K) / K)) + \alpha)$, $K$ = `decay_steps`.
    Source: Polaris.Schedules.cosine_decay/2; Loshchilov and Hutter, 2017, arXiv:1608.03983.
    """
    require_number("cosine_decay", "init_value", init_value)
    as_integer("cosine_decay", "decay_steps", decay_steps, at_least=1)
    require_number("cosine_decay", "alpha", alpha)
    return optax.cosine_decay_schedule(init_value, decay_steps, alpha)  # type: ignore[no-any-return]


def exponential_decay(
    init_value: float,
    *,
    decay_rate: float = 0.95,
    transition_steps: int = 10,
    transition_begin: int = 0,
    staircase: bool = False,
) -> Schedule:
    r"""Geometric decay, smooth or in steps.

    $r(t) = r_0$ for $t \le b$, else $r_0 \gamma^{(t - b) / K}$ with the exponent floored when `staircase`;
    $\gamma$ = `decay_rate` above 0, $K$ = `transition_steps`, $b$ = `transition_begin`.
    Source: Polaris.Schedules.exponential_decay/2.
    """
    require_number("exponential_decay", "init_value", init_value)
    require_number("exponential_decay", "decay_rate", decay_rate, at_least=0.0)
    if decay_rate == 0.0:
        raise OptionError(f"exponential_decay: expected decay_rate above 0, got {decay_rate}")
    as_integer("exponential_decay", "transition_steps", transition_steps, at_least=1)
    as_integer("exponential_decay", "transition_begin", transition_begin, at_least=0)
    return optax.exponential_decay(  # type: ignore[no-any-return]
        init_value, transition_steps, decay_rate, transition_begin, staircase
    )


def linear_decay(init_value: float, *, warmup: int = 0, steps: int = 1000) -> Schedule:
    r"""Linear warm-up from zero, then linear decay to zero.

    $r(t) = r_0 t / \max(1, w)$ for $t < w$, else $r_0 \max(0, (K - t) / \max(1, K - w))$; $w$ = `warmup`,
    $K$ = `steps`. The very first rate of a warm-up is zero. Source: Polaris.Schedules.linear_decay/2.
    """
    require_number("linear_decay", "init_value", init_value)
    as_integer("linear_decay", "warmup", warmup, at_least=0)
    as_integer("linear_decay", "steps", steps, at_least=1)

    def schedule(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        rising = t / max(1, warmup)
        falling = jnp.maximum(0.0, (steps - t) / max(1, steps - warmup))
        return init_value * jnp.where(t < warmup, rising, falling)

    return schedule


def polynomial_decay(
    init_value: float,
    *,
    end_value: float = 0.001,
    power: float = 2,
    transition_steps: int = 10,
    transition_begin: int = 0,
) -> Schedule:
    r"""A polynomial from $r_0$ to $r_1$.

    $r(t) = r_1 + (r_0 - r_1) (1 - \mathrm{clip}(t - b, 0, K) / K)^p$; $r_1$ = `end_value`, $p$ = `power`,
    $K$ = `transition_steps`, $b$ = `transition_begin`. Source: Polaris.Schedules.polynomial_decay/2.
    """
    require_number("polynomial_decay", "init_value", init_value)
    require_number("polynomial_decay", "end_value", end_value)
    require_number("polynomial_decay", "power", power, at_least=0.0)
    as_integer("polynomial_decay", "transition_steps", transition_steps, at_least=1)
    as_integer("polynomial_decay", "transition_begin", transition_begin, at_least=0)
    return optax.polynomial_schedule(  # type: ignore[no-any-return]
        init_value, end_value, power, transition_steps, transition_begin
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    build.__name__: build for build in (constant, cosine_decay, exponential_decay, linear_decay, polynomial_decay)
}
