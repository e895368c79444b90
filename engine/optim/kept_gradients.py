"""The last gradients, kept in the optimizer's state for whoever wants to look at them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.optim.transforms import GradientTransformation

Tree = Any


class KeptGradients(NamedTuple):
    """State of `keep_gradients`: what came last."""

    gradients: Tree


def keep_gradients() -> GradientTransformation:
    """Keep what passes in the state and change nothing.

    In front of a chain that is the gradient; behind `clip_by_global_norm` the clipped one. Zeros before the first
    update. A handler reads it with `kept_gradients(state.optimizer_state)`.
    """

    def init(params: Tree) -> KeptGradients:
        return KeptGradients(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Tree, state: KeptGradients, params: Tree | None = None) -> tuple[Tree, KeptGradients]:
        del params
        return updates, KeptGradients(jax.tree.map(lambda g, kept: g.astype(kept.dtype), updates, state.gradients))

    return optax.GradientTransformation(init, update)


def kept_gradients(optimizer_state: Tree) -> Tree:
    """What `keep_gradients` kept; raises `OptionError` unless the optimizer has exactly one."""

    def is_kept(node: Any) -> bool:
        return isinstance(node, KeptGradients)

    found = [node.gradients for node in jax.tree.leaves(optimizer_state, is_leaf=is_kept) if is_kept(node)]
    if len(found) != 1:
        raise OptionError(f"kept_gradients: expected an optimizer with one keep_gradients, got {len(found)}")
    return found[0]
