r"""Constraints: projections of the parameters after each update.

A constraint is a transform that ends a chain, behind the learning rate: it changes the update so that the parameters it
leads to satisfy the constraint. `paths` are patterns (see `engine.optim.paths`) of the parameters it is for, `exclude`
of those it is not; frozen parameters and state never pass through an optimizer, and nothing happens before the first
update. Norms are over `axes`, axis 0 unless said otherwise: of a dense kernel `[in, out]` that gives one norm per
unit; of a convolution's `[*window, in, out]` it takes all axes but the last. Computed in float32 at least, with
$\epsilon = 10^{-7}$. Sources: Srivastava et al., 2014, "Dropout"; Keras' constraints, whose formulas these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.functional.options import as_integer, require_number
from engine.optim.paths import Paths, as_patterns, path_of, require_matches, selected
from engine.optim.transforms import GradientTransformation
from engine.shapes import normalize_axis

Tree = Any
_EPSILON = 1e-7


def max_norm(
    *, max: float = 2.0, axes: Sequence[int] = (0,), paths: Paths = "*", exclude: Paths = ()
) -> GradientTransformation:
    r"""Norms of at most $M$: $w \min(|w|, M) / (\epsilon + |w|)$."""
    require_number("max_norm", "max", max, at_least=0.0)

    def project(w: jax.Array, norm: jax.Array) -> jax.Array:
        return w * (jnp.minimum(norm, max) / (_EPSILON + norm))

    return _constraint("max_norm", project, axes, paths, exclude)


def non_neg(*, paths: Paths = "*", exclude: Paths = ()) -> GradientTransformation:
    r"""No negative weights: $\max(w, 0)$."""
    return _constraint("non_neg", lambda w, norm: jnp.maximum(w, 0), (), paths, exclude)


def unit_norm(*, axes: Sequence[int] = (0,), paths: Paths = "*", exclude: Paths = ()) -> GradientTransformation:
    r"""Norms of one: $w / (\epsilon + |w|)$."""
    return _constraint("unit_norm", lambda w, norm: w / (_EPSILON + norm), axes, paths, exclude)


def min_max_norm(
    *,
    min: float = 0.0,
    max: float = 1.0,
    rate: float = 1.0,
    axes: Sequence[int] = (0,),
    paths: Paths = "*",
    exclude: Paths = (),
) -> GradientTransformation:
    r"""Norms drawn into $[m, M]$ at rate $r$: $w (r\, \mathrm{clip}(|w|, m, M) + (1 - r) |w|) / (\epsilon + |w|)$."""
    require_number("min_max_norm", "min", min, at_least=0.0)
    require_number("min_max_norm", "max", max, at_least=min)
    require_number("min_max_norm", "rate", rate, at_least=0.0, at_most=1.0)

    def project(w: jax.Array, norm: jax.Array) -> jax.Array:
        return w * ((rate * jnp.clip(norm, min, max) + (1 - rate) * norm) / (_EPSILON + norm))

    return _constraint("min_max_norm", project, axes, paths, exclude)


def _constraint(
    name: str,
    project: Callable[[jax.Array, jax.Array], jax.Array],
    axes: Sequence[int],
    paths: Paths,
    exclude: Paths,
) -> GradientTransformation:
    if not isinstance(axes, list | tuple) or len(axes) > _MAX_AXES:
        raise OptionError(f"{name}: expected axes to be a list of axes, got {axes!r:.200}")
    axes = [as_integer(name, "axes", axis, at_least=-_MAX_AXES) for axis in axes]
    patterns, but = as_patterns(name, "paths", paths), as_patterns(name, "exclude", exclude)

    def init(params: Tree) -> optax.EmptyState:
        require_matches(name, params, patterns)
        for (keys, leaf), chosen in zip(
            jax.tree_util.tree_leaves_with_path(params),
            jax.tree.leaves(selected(params, patterns, but)),
            strict=True,
        ):
            if chosen:
                _check_axes(name, axes, path_of(keys), jnp.ndim(leaf))
        return optax.EmptyState()

    def constrained(update: jax.Array, param: jax.Array, chosen: bool) -> jax.Array:
        if not chosen:
            return update
        wide = param.astype(jnp.promote_types(param.dtype, jnp.float32))
        following = wide + update
        return project(following, _norm(following, axes)) - wide

    def update(updates: Tree, state: optax.EmptyState, params: Tree | None = None) -> tuple[Tree, optax.EmptyState]:
        if params is None:
            raise OptionError(f"{name}: expected the parameters beside their updates, got none")
        return jax.tree.map(constrained, updates, params, selected(params, patterns, but)), state

    return optax.GradientTransformation(init, update)


_MAX_AXES = 32


def _check_axes(name: str, axes: Sequence[int], path: str, rank: int) -> None:
    found = [normalize_axis(f"{name} of {path!r}", axis, rank) for axis in axes]
    if len(set(found)) < len(found):
        raise OptionError(f"{name} of {path!r}: expected different axes, got {list(axes)}")


def _norm(w: jax.Array, axes: Sequence[int]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=tuple(axes), keepdims=True))
