"""Learning-rate schedules: constructors of `count -> rate`, where `count` is 0 at the first update.

A schedule is a pure function of the number of updates made so far, so it works inside a compiled step
and needs no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.functional.options import require_boolean, require_number
from engine.optim.options import count, named

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
    count("cosine_decay", "decay_steps", decay_steps, at_least=1)
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
    require_boolean("exponential_decay", "staircase", staircase)
    count("exponential_decay", "transition_steps", transition_steps, at_least=1)
    count("exponential_decay", "transition_begin", transition_begin, at_least=0)
    return optax.exponential_decay(  # type: ignore[no-any-return]
        init_value, transition_steps, decay_rate, transition_begin, staircase
    )


def linear_decay(init_value: float, *, warmup: int = 0, steps: int = 1000) -> Schedule:
    r"""Linear warm-up from zero, then linear decay to zero.

    $r(t) = r_0 t / \max(1, w)$ for $t < w$, else $r_0 \max(0, (K - t) / \max(1, K - w))$; $w$ = `warmup`,
    $K$ = `steps`. The very first rate of a warm-up is zero. Source: Polaris.Schedules.linear_decay/2.
    """
    require_number("linear_decay", "init_value", init_value)
    count("linear_decay", "warmup", warmup, at_least=0)
    count("linear_decay", "steps", steps, at_least=1)

    def schedule(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
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
    count("polynomial_decay", "transition_steps", transition_steps, at_least=1)
    count("polynomial_decay", "transition_begin", transition_begin, at_least=0)
    return optax.polynomial_schedule(  # type: ignore[no-any-return]
        init_value, end_value, power, transition_steps, transition_begin
    )


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    r"""One schedule after the other: $r(t) = r_i(t - b_i)$ for $b_i \le t < b_{i+1}$, $b_0 = 0$.

    Args:
        schedules: at least one; each counts from 0 where it begins, so that a warm-up is
            `join([polynomial_decay(0.0, end_value=r, power=1, transition_steps=k), ...], [k])`.
        boundaries: where all but the first begin, rising; one fewer than there are schedules.
    """
    listed = isinstance(schedules, list | tuple) and 0 < len(schedules) <= MAX_PARTS
    if not listed or not all(map(callable, schedules)):
        raise OptionError(f"join: expected 1 to {MAX_PARTS} schedules, got {schedules!r:.200}")
    if not isinstance(boundaries, list | tuple) or len(boundaries) != len(schedules) - 1:
        raise OptionError(
            f"join: expected {len(schedules) - 1} boundaries for as many schedules but one, got {boundaries!r}"
        )
    begins = [count("join", "boundaries", begin, at_least=1) for begin in boundaries]
    if any(later <= earlier for earlier, later in pairwise(begins)):
        raise OptionError(f"join: expected rising boundaries, got {begins}")
    return optax.join_schedules(list(schedules), begins)  # type: ignore[no-any-return]


MAX_PARTS = 64
"""Schedules joined into one, at most."""

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    build.__name__: build for build in (constant, cosine_decay, exponential_decay, join, linear_decay, polynomial_decay)
}
"""Name -> constructor."""

_MAX_DEPTH = 8


def from_spec(spec: Mapping[str, Any] | Schedule, *, depth: int = 0) -> Schedule:
    """A schedule from `{"name": ..., option: value, ...}`, or as it is; `join` takes a list of such `schedules`.

    Raises:
        OptionError: an unknown name or option, or a value outside its domain.
    """
    if callable(spec):
        return spec
    if not isinstance(spec, Mapping) or depth > _MAX_DEPTH:
        raise OptionError(f"schedule: expected an object with a name or a function, got {spec!r:.200}")
    options = dict(spec)
    if isinstance(options.get("schedules"), list | tuple):
        options["schedules"] = [from_spec(part, depth=depth + 1) for part in options["schedules"]]
    schedule: Schedule = named("schedule", SCHEDULES, options)
    return schedule
