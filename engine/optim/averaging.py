"""An exponential moving average of the parameters, kept in the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.functional.options import require_boolean, require_number
from engine.optim.transforms import GradientTransformation

Tree = Any


class EmaState(NamedTuple):
    """State of `ema`: updates so far (int32), and the average, float32 at least."""

    steps: jax.Array
    average: Tree


def ema(*, decay: float = 0.999, warmup: bool = False) -> GradientTransformation:
    r"""Keep the average $a_t = d\, a_{t-1} + (1 - d)\, p_t$ of the parameters after each update; change nothing.

    It ends a chain, behind the learning rate. $a_0$ are the parameters at the start, $d$ = `decay`; with `warmup`
    $d = \min(\mathrm{decay}, (1 + t) / (10 + t))$ with $t$ counting from 0, which forgets the start sooner.
    `ema_parameters` reads the average. Source: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation
    by averaging"; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """
    require_number("ema", "decay", decay, at_least=0.0, at_most=1.0)
    require_boolean("ema", "warmup", warmup)

    def init(params: Tree) -> EmaState:
        return EmaState(jnp.zeros((), jnp.int32), jax.tree.map(lambda p: jnp.array(_wide(p)), params))

    def update(updates: Tree, state: EmaState, params: Tree | None = None) -> tuple[Tree, EmaState]:
        if params is None:
            raise OptionError("ema: expected the parameters beside their updates, got none")
        t = state.steps.astype(jnp.float32)
        share = 1 - (jnp.minimum(decay, (1 + t) / (10 + t)) if warmup else decay)
        following = jax.tree.map(lambda a, p, u: a + share * (_wide(p) + u - a), state.average, params, updates)
        following = jax.tree.map(lambda new, a: new.astype(a.dtype), following, state.average)
        return updates, EmaState(optax.safe_increment(state.steps), following)

    return optax.GradientTransformation(init, update)


def _wide(p: jax.Array) -> jax.Array:
    return jnp.asarray(p, jnp.promote_types(p.dtype, jnp.float32))


def ema_parameters(optimizer_state: Tree) -> Tree:
    """The averages that `ema` keeps in an optimizer's state, those of several groups together.

    Returns: nested dicts of the trainable parameters they are for, float32 at least. For evaluation and publishing
        `LoopState.averaged_model_state` puts them, in the parameters' own types, into the model's state.
    Raises:
        OptionError: there are none, or two of one parameter.
    """

    def is_ema(node: Any) -> bool:
        return isinstance(node, EmaState)

    found = [node.average for node in jax.tree.leaves(optimizer_state, is_leaf=is_ema) if is_ema(node)]
    if not found:
        raise OptionError("ema_parameters: expected an optimizer with an ema at the end of its chain, got none")
    merged: dict[str, Any] = {}
    for average in found:
        if not isinstance(average, Mapping):
            return average
        _merge(merged, average, "")
    return merged


def _merge(into: dict[str, Any], tree: Mapping[str, Any], prefix: str) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            branch = into.setdefault(key, {})
            _merge(branch, value, f"{prefix}{key}.")
            if not branch:
                del into[key]
        elif not isinstance(value, optax.MaskedNode):
            if key in into:
                raise OptionError(f"ema_parameters: expected one average of {prefix}{key}, got two")
            into[key] = value
