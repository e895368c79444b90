"""An optimizer that leaves pruned weights at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError, ShapeError
from engine.optim.specs import Spec, from_spec
from engine.optim.transforms import GradientTransformation

Tree = Any


class MaskedState(NamedTuple):
    """Masks of all parameters, a single True where there is none, and the optimizer's own state."""

    masks: Tree
    inner: Tree


def masked_optimizer(optimizer: Spec, masks: Mapping[str, Any]) -> GradientTransformation:
    """An optimizer under which weights whose mask is False become 0 and stay 0, exactly.

    Their gradients are 0 before the optimizer sees them, and their updates are what is missing to 0 afterwards, so that
    neither momentum nor weight decay nor noise moves them. Constraints and averages go inside.

    Args:
        optimizer: a transformation, or one as data (`from_spec`).
        masks: nested dicts `{layer: {name: bool array}}` as `engine.prune` gives them; parameters without a mask train
            as ever, masks of parameters that are not trained (frozen ones) have no effect.
    Raises: `OptionError` as `from_spec`; when its state is made `ShapeError` for a mask of another shape.
    Source: proposed for Axon (issue 120).
    """
    inner = optax.with_extra_args_support(from_spec(optimizer))

    def init(params: Tree) -> MaskedState:
        _check(masks, params)
        return MaskedState(_filled(masks, params), inner.init(params))

    def update(updates: Tree, state: MaskedState, params: Tree | None = None, **extra: Any) -> tuple[Tree, MaskedState]:
        if params is None:
            raise OptionError("masked_optimizer: expected the parameters in update, got none")
        gradients = jax.tree.map(lambda kept, g: jnp.where(kept, g, 0).astype(g.dtype), state.masks, updates)
        updates, following = inner.update(gradients, state.inner, params, **extra)
        moves = jax.tree.map(lambda kept, u, p: jnp.where(kept, u, -p.astype(u.dtype)), state.masks, updates, params)
        return moves, MaskedState(state.masks, following)

    return optax.GradientTransformationExtraArgs(init, update)


def _filled(masks: Any, params: Tree) -> Tree:
    """A mask for every parameter; copies, since a training step takes its state's memory over."""
    if not isinstance(params, Mapping):
        return jax.tree.map(lambda _: jnp.array(True), params)
    return {
        key: jnp.array(masks[key], bool)
        if key in masks and not isinstance(value, Mapping)
        else _filled(masks.get(key, {}), value)
        for key, value in params.items()
    }


def _check(masks: Mapping[str, Any], params: Tree, where: str = "") -> None:
    for key, mask in masks.items():
        if not isinstance(params, Mapping) or key not in params:
            continue
        if isinstance(mask, Mapping):
            _check(mask, params[key], f"{where}{key}.")
        elif jnp.shape(mask) != jnp.shape(params[key]):
            expected, got = jnp.shape(params[key]), jnp.shape(mask)
            raise ShapeError(f"masked_optimizer: expected a mask of shape {expected} for {where}{key}, got {got}")
