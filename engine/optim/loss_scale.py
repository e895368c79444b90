"""Loss scaling: gradients of a scaled loss do not vanish in float16, and steps whose gradients overflow are skipped.

Each constructor returns a `LossScale`, three pure functions. A training step differentiates `scale(loss, state)` and
calls `unscale` on the gradients; where those are not finite (`all_finite`) it leaves parameters, optimizer and layer
state as they were. Source: Micikevicius et al. 2018, arXiv:1710.03740; Axon.LossScale, which takes only infinities for
not finite and applies their updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.options import as_integer, require_number
from engine.optim.options import named

Tree = Any
State = dict[str, jax.Array]


@dataclass(frozen=True, slots=True)
class LossScale:
    """`init() -> state`, `scale(tree, state) -> tree`, `unscale(gradients, state) -> (gradients, state)`.

    A scaled value is float32 at least; gradients keep their type.
    """

    init: Callable[[], State]
    scale: Callable[[Tree, State], Tree]
    unscale: Callable[[Tree, State], tuple[Tree, State]]


LossScaleSpec = str | Mapping[str, Any] | LossScale
"""A loss scale by name, by `{"name": ..., options}`, or as it is."""


def identity() -> LossScale:
    """A factor of 1: steps that are not finite are skipped, nothing else. State: none."""
    return LossScale(dict, lambda tree, state: tree, lambda gradients, state: (gradients, state))


def static(init_scale: float = 2**15) -> LossScale:
    """The same factor for ever. State: `loss_scale`, float32."""
    first = _positive("static", "init_scale", init_scale)

    def init() -> State:
        return {"loss_scale": jnp.asarray(first, jnp.float32)}

    return LossScale(init, _scale, lambda gradients, state: (_unscale(gradients, state), state))


def dynamic(init_scale: float = 2**15, period: int = 2000, factor: float = 2, min_loss_scale: float = 1) -> LossScale:
    """A factor that grows while gradients are finite and shrinks when they are not.

    Args:
        init_scale: the first factor.
        period: after so many finite steps in a row it is multiplied by `factor`, unless that overflows.
        factor: above 1; after a step that is not finite the scale is divided by it.
        min_loss_scale: it never gets smaller than this.
    Returns: a `LossScale` with the state `loss_scale` (float32) and `counter` (int32, finite steps since a change).
    Raises: `OptionError` for an option outside its domain.
    """
    first, least = (
        _positive("dynamic", "init_scale", init_scale),
        _positive("dynamic", "min_loss_scale", min_loss_scale),
    )
    steps = as_integer("dynamic", "period", period, at_least=1)
    require_number("dynamic", "factor", factor)
    if factor <= 1:
        raise OptionError(f"dynamic: expected factor above 1, got {factor!r}")

    def init() -> State:
        return {"loss_scale": jnp.asarray(first, jnp.float32), "counter": jnp.zeros((), jnp.int32)}

    def unscale(gradients: Tree, state: State) -> tuple[Tree, State]:
        scale, counter = state["loss_scale"], state["counter"]
        finite = all_finite(gradients)
        grown = jnp.where(jnp.isfinite(scale * factor), scale * factor, scale)
        kept = jnp.where(counter == steps - 1, grown, scale)
        following = {
            "loss_scale": jnp.where(finite, kept, jnp.maximum(least, scale / factor)),
            "counter": jnp.where(finite, (counter + 1) % steps, 0),
        }
        return _unscale(gradients, state), following

    return LossScale(init, _scale, unscale)


LOSS_SCALES: dict[str, Callable[..., LossScale]] = {"dynamic": dynamic, "identity": identity, "static": static}


def from_spec(spec: LossScaleSpec) -> LossScale:
    """The loss scale of a specification; raises `OptionError` for an unknown name or option."""
    if isinstance(spec, LossScale):
        return spec
    if not isinstance(spec, str | Mapping):
        raise OptionError(f"loss_scale: expected a name, an object or a LossScale, got {type(spec).__name__}")
    scale: LossScale = named("loss_scale", LOSS_SCALES, {"name": spec} if isinstance(spec, str) else spec)
    return scale


def all_finite(tree: Tree) -> jax.Array:
    """Whether a tree holds neither NaN nor an infinity; a scalar."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.asarray(True)


def _positive(op: str, option: str, value: float) -> float:
    require_number(op, option, value)
    if value <= 0:
        raise OptionError(f"{op}: expected {option} above 0, got {value!r}")
    return value


def _scale(tree: Tree, state: State) -> Tree:
    return jax.tree.map(lambda leaf: _wide(leaf) * state["loss_scale"], tree)


def _unscale(gradients: Tree, state: State) -> Tree:
    return jax.tree.map(lambda leaf: (_wide(leaf) / state["loss_scale"]).astype(leaf.dtype), gradients)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
