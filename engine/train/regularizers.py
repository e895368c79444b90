r"""Regularizers: what is added to a loss to keep parameters small. Each is a function of the parameters.

`paths` are patterns of the parameters it is for, `exclude` of those it is not (see `engine.optim.paths`); frozen
parameters count too, without a gradient. Values are float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from engine.errors import OptionError
from engine.functional.options import require_number
from engine.model.state import Tree
from engine.optim.options import named
from engine.optim.paths import Paths, as_patterns, require_matches, selected

Regularizer = Callable[[Tree], jax.Array]
RegularizerSpec = Mapping[str, Any] | Regularizer

MAX_REGULARIZERS = 64


def l1(factor: float, *, paths: Paths = "*", exclude: Paths = ()) -> Regularizer:
    r"""$f \sum |w|$. Source: Tibshirani, 1996, "Regression shrinkage and selection via the lasso"."""
    return _sum_of("l1", jnp.abs, factor, paths, exclude)


def l2(factor: float, *, paths: Paths = "*", exclude: Paths = ()) -> Regularizer:
    r"""$f \sum w^2$; its gradient is $2 f w$. Source: Krogh and Hertz, 1991, "A simple weight decay"."""
    return _sum_of("l2", jnp.square, factor, paths, exclude)


def _sum_of(
    name: str, measure: Callable[[jax.Array], jax.Array], factor: float, paths: Paths, exclude: Paths
) -> Regularizer:
    require_number(name, "factor", factor, at_least=0.0)
    patterns, but = as_patterns(name, "paths", paths), as_patterns(name, "exclude", exclude)

    def penalty(parameters: Tree) -> jax.Array:
        require_matches(name, parameters, patterns)
        pairs = zip(jax.tree.leaves(parameters), jax.tree.leaves(selected(parameters, patterns, but)), strict=True)
        return factor * sum((_total(measure, w) for w, chosen in pairs if chosen), start=jnp.zeros(()))

    return penalty


def _total(measure: Callable[[jax.Array], jax.Array], w: jax.Array) -> jax.Array:
    return jnp.sum(measure(w.astype(jnp.promote_types(w.dtype, jnp.float32))))


REGULARIZERS: dict[str, Callable[..., Regularizer]] = {"l1": l1, "l2": l2}
"""Name -> constructor."""


def from_specs(specs: Any) -> tuple[Regularizer, ...]:
    """Regularizers from a list of `{"name": ..., "factor": ..., ...}` and functions of the parameters.

    Raises:
        OptionError: no such list, an unknown name or option, or a value outside its domain.
    """
    if not isinstance(specs, list | tuple) or len(specs) > MAX_REGULARIZERS:
        raise OptionError(f"regularizers: expected a list of at most {MAX_REGULARIZERS}, got {specs!r:.200}")
    return tuple(_from_spec(index, spec) for index, spec in enumerate(specs))


def _from_spec(index: int, spec: Any) -> Regularizer:
    if callable(spec):
        return spec  # type: ignore[no-any-return]
    if not isinstance(spec, Mapping):
        raise OptionError(f"regularizers[{index}]: expected an object with a name, or a function, got {spec!r:.200}")
    regularizer: Regularizer = named(f"regularizers[{index}]", REGULARIZERS, spec)
    return regularizer
