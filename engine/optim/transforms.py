"""Update transforms: composable gradient transformations over any pytree.

Each constructor returns an `optax.GradientTransformation`, a pair of pure functions `init(params) -> state`
and `update(updates, state, params) -> (updates, state)`. `chain` runs them in order. Updates are added to
the parameters, so an optimizer ends with a negative factor. Moments of half-precision parameters are kept
in float32. Sources: Polaris.Updates, whose names and defaults these are; the arithmetic is Optax's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from engine.errors import OptionError
from engine.functional.options import require_boolean, require_number
from engine.optim.options import count
from engine.optim.paths import Paths, as_patterns, require_matches, selected
from engine.optim.schedules import Schedule

GradientTransformation: TypeAlias = optax.GradientTransformation
Tree = Any

_HALF = (jnp.float16, jnp.bfloat16)


def _widen(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype in _HALF else x, tree)


def _full_precision(inner: GradientTransformation) -> GradientTransformation:
    """`inner` with half-precision leaves seen as float32, so that its state is float32."""

    def init(params: Tree) -> Tree:
        return inner.init(_widen(params))

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        wide = None if params is None else _widen(params)
        updates, state = inner.update(_widen(updates), state, wide)
        return updates, state

    return optax.GradientTransformation(init, update)


def identity() -> GradientTransformation:
    """Updates as they come."""
    return optax.identity()


def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Run `transforms` one after the other; the state is the tuple of theirs."""
    return optax.chain(*transforms)


def compose(first: GradientTransformation, second: GradientTransformation) -> GradientTransformation:
    """`second` after `first`; `chain` of two. Source: Polaris.Updates.compose/2."""
    return chain(first, second)


def set_to_zero() -> GradientTransformation:
    """No update at all: what it is for stays as it is."""
    return optax.set_to_zero()


def stateless(apply_fn: Callable[[Tree, Tree], Tree]) -> GradientTransformation:
    """A transform without state out of `apply_fn(updates, params) -> updates`."""
    return optax.stateless(apply_fn)


def stateful(
    init_fn: Callable[[Tree], Tree], apply_fn: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
) -> GradientTransformation:
    """A transform out of `init_fn(params) -> state`, `apply_fn(updates, state, params) -> (updates, state)`."""
    return optax.GradientTransformation(init_fn, apply_fn)


def scale(step_size: float) -> GradientTransformation:
    r"""$u = s\, g$."""
    require_number("scale", "step_size", step_size)
    return optax.scale(step_size)


class ScaleByState(NamedTuple):
    """State of `scale_by_state`: the factor, a float32 scalar."""

    scale: jax.Array


def scale_by_state(step_size: float) -> GradientTransformation:
    r"""$u = s\, g$ where $s$ is part of the state, so that `multiply_scale` can change it while training."""
    require_number("scale_by_state", "step_size", step_size)

    def init(params: Tree) -> ScaleByState:
        del params
        return ScaleByState(jnp.asarray(step_size, jnp.float32))

    def update(updates: Tree, state: ScaleByState, params: Tree | None = None) -> tuple[Tree, ScaleByState]:
        del params
        return jax.tree.map(lambda g: (state.scale * g).astype(g.dtype), updates), state

    return optax.GradientTransformation(init, update)


def multiply_scale(optimizer_state: Tree, factor: float) -> Tree:
    """The same optimizer state with every `scale_by_state` factor, such as a learning rate, times `factor`.

    Raises:
        OptionError: the state has no such factor, as with a schedule.
    """
    require_number("multiply_scale", "factor", factor)
    if not any(_is_scale(node) for node in jax.tree.leaves(optimizer_state, is_leaf=_is_scale)):
        raise OptionError("multiply_scale: expected an optimizer with a number as learning rate, got a schedule")
    return jax.tree.map(
        lambda node: ScaleByState(node.scale * factor) if _is_scale(node) else node,
        optimizer_state,
        is_leaf=_is_scale,
    )


def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """Multiply by `schedule(count)`; the count starts at 0."""
    return optax.scale_by_schedule(schedule)


def require_learning_rate(learning_rate: float | Schedule) -> None:
    """Raise `OptionError` unless it is a schedule or a finite number of 0 or more."""
    if not callable(learning_rate):
        require_number("optimizer", "learning_rate", learning_rate, at_least=0.0)


def set_learning_rate(optimizer_state: Tree, learning_rate: float | jax.Array) -> Tree:
    """The same optimizer state with another learning rate.

    Raises:
        OptionError: the optimizer has no learning rate that is a number, or several.
    """
    factors = [node for node in jax.tree.leaves(optimizer_state, is_leaf=_is_scale) if _is_scale(node)]
    if len(factors) != 1:
        raise OptionError(
            f"set_learning_rate: expected an optimizer with one number as learning rate, got {len(factors)} of them"
        )
    rate = -jnp.asarray(learning_rate, jnp.float32)
    return jax.tree.map(
        lambda node: ScaleByState(rate) if _is_scale(node) else node, optimizer_state, is_leaf=_is_scale
    )


def _is_scale(node: Any) -> bool:
    return isinstance(node, ScaleByState)


def scale_by_learning_rate(learning_rate: float | Schedule) -> GradientTransformation:
    """Multiply by minus the learning rate: a number (kept in the state) or a schedule."""
    require_learning_rate(learning_rate)
    if not callable(learning_rate):
        return scale_by_state(-learning_rate)
    schedule = learning_rate
    return optax.scale_by_schedule(lambda count: -schedule(count))


def _moments(owner: str, b1: float, b2: float, eps: float, eps_root: float) -> dict[str, float]:
    require_number(owner, "b1", b1, at_least=0.0, less_than=1.0)
    require_number(owner, "b2", b2, at_least=0.0, less_than=1.0)
    require_number(owner, "eps", eps, at_least=0.0)
    require_number(owner, "eps_root", eps_root, at_least=0.0)
    return {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}


def scale_by_adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 1e-15
) -> GradientTransformation:
    r"""Adam's direction $\hat m / (\sqrt{\hat v + \epsilon_r} + \epsilon)$.

    $m = \beta_1 m + (1 - \beta_1) g$, $v = \beta_2 v + (1 - \beta_2) g^2$, $\hat m = m / (1 - \beta_1^t)$ and
    $\hat v$ likewise. Source: Kingma and Ba, 2014, arXiv:1412.6980.
    """
    return _full_precision(optax.scale_by_adam(**_moments("scale_by_adam", b1, b2, eps, eps_root)))


def scale_by_belief(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 0.0, eps_root: float = 1e-16
) -> GradientTransformation:
    r"""AdaBelief's direction: as Adam's, with $v = \beta_2 v + (1 - \beta_2) (g - m)^2 + \epsilon_r$.

    Source: Zhuang et al., 2020, arXiv:2010.07468.
    """
    return _full_precision(optax.scale_by_belief(**_moments("scale_by_belief", b1, b2, eps, eps_root)))


def scale_by_radam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, threshold: float = 5.0
) -> GradientTransformation:
    r"""Rectified Adam's direction.

    With $\rho_\infty = 2 / (1 - \beta_2) - 1$ and $\rho = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)$: Adam's
    direction times $\sqrt{(\rho - 4)(\rho - 2)\rho_\infty / ((\rho_\infty - 4)(\rho_\infty - 2)\rho)}$ where
    $\rho \ge$ `threshold`, else $\hat m$. Source: Liu et al., 2019, arXiv:1908.03265.
    """
    require_number("scale_by_radam", "threshold", threshold)
    moments = _moments("scale_by_radam", b1, b2, eps, eps_root)
    return _full_precision(optax.scale_by_radam(**moments, threshold=threshold))


def scale_by_yogi(
    *,
    initial_accumulator_value: float = 1e-6,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
) -> GradientTransformation:
    r"""Yogi's direction: as Adam's, with $v = v - (1 - \beta_2) \mathrm{sign}(v - g^2) g^2$.

    Both moments start at `initial_accumulator_value`. Source: Zaheer et al., 2018, "Adaptive Methods for
    Nonconvex Optimization".
    """
    require_number("scale_by_yogi", "initial_accumulator_value", initial_accumulator_value, at_least=0.0)
    moments = _moments("scale_by_yogi", b1, b2, eps, eps_root)
    return _full_precision(optax.scale_by_yogi(**moments, initial_accumulator_value=initial_accumulator_value))


def scale_by_rss(*, initial_accumulator_value: float = 0.1, eps: float = 1e-7) -> GradientTransformation:
    r"""Adagrad's direction: $s = s + g^2$, $u = g / \sqrt{s + \epsilon}$, zero where $s$ is zero.

    Source: Duchi et al., 2011, "Adaptive Subgradient Methods".
    """
    require_number("scale_by_rss", "initial_accumulator_value", initial_accumulator_value, at_least=0.0)
    require_number("scale_by_rss", "eps", eps, at_least=0.0)
    return _full_precision(optax.scale_by_rss(initial_accumulator_value, eps))


def _root_mean_square(owner: str, initial_scale: float, decay: float, eps: float) -> dict[str, Any]:
    require_number(owner, "initial_scale", initial_scale, at_least=0.0)
    require_number(owner, "decay", decay, at_least=0.0, at_most=1.0)
    require_number(owner, "eps", eps, at_least=0.0)
    return {"initial_scale": initial_scale, "decay": decay, "eps": eps, "eps_in_sqrt": True}


def scale_by_rms(*, initial_scale: float = 0.0, decay: float = 0.9, eps: float = 1e-8) -> GradientTransformation:
    r"""$v = d v + (1 - d) g^2$, $u = g / \sqrt{v + \epsilon}$. Source: Hinton, 2012, lecture 6e."""
    return _full_precision(optax.scale_by_rms(**_root_mean_square("scale_by_rms", initial_scale, decay, eps)))


def scale_by_stddev(*, initial_scale: float = 0.0, decay: float = 0.9, eps: float = 1e-8) -> GradientTransformation:
    r"""Centred `scale_by_rms`: $u = g / \sqrt{v - m^2 + \epsilon}$ with $m = d m + (1 - d) g$."""
    options = _root_mean_square("scale_by_stddev", initial_scale, decay, eps)
    return _full_precision(optax.scale_by_stddev(**options))


def scale_by_trust_ratio(
    *, min_norm: float = 0.0, trust_coefficient: float = 1.0, eps: float = 0.0
) -> GradientTransformation:
    r"""$u = g\, c |p| / (|g| + \epsilon)$ leaf by leaf, factor 1 where a norm is zero.

    Norms below `min_norm` count as `min_norm`. Source: You et al., 2019, arXiv:1904.00962.
    """
    require_number("scale_by_trust_ratio", "min_norm", min_norm, at_least=0.0)
    require_number("scale_by_trust_ratio", "trust_coefficient", trust_coefficient)
    require_number("scale_by_trust_ratio", "eps", eps, at_least=0.0)
    return _full_precision(optax.scale_by_trust_ratio(min_norm, trust_coefficient, eps))


def trace(*, decay: float = 0.9, nesterov: bool = False) -> GradientTransformation:
    r"""Momentum: $t = d t + g$; gives $t$, or $d t + g$ with `nesterov`.

    Source: Sutskever et al., 2013, "On the importance of initialization and momentum".
    """
    require_number("trace", "decay", decay, at_least=0.0, at_most=1.0)
    require_boolean("trace", "nesterov", nesterov)
    return _full_precision(optax.trace(decay, nesterov))


def clip(*, delta: float = 2.0) -> GradientTransformation:
    r"""Each element clipped to $[-\delta, \delta]$."""
    require_number("clip", "delta", delta, at_least=0.0)
    return optax.clip(delta)


def clip_by_global_norm(*, max_norm: float = 1.0) -> GradientTransformation:
    r"""$u = g \min(1, M / |g|)$, $|g|$ over all leaves. Source: Pascanu et al., 2013, arXiv:1211.5063."""
    require_number("clip_by_global_norm", "max_norm", max_norm, at_least=0.0)
    return optax.clip_by_global_norm(max_norm)


def centralize() -> GradientTransformation:
    """Subtract the mean over all axes but the first from leaves of rank two or more.

    Source: Yong et al., 2020, arXiv:2004.01461.
    """
    return optax.centralize()


def add_decayed_weights(*, decay: float = 0.0, paths: Paths = "*", exclude: Paths = ()) -> GradientTransformation:
    r"""$u = g + d p$, where the path of $p$ matches `paths` and not `exclude` (see `engine.optim.paths`).

    Raises: `OptionError` when it meets parameters of which one of `paths` matches none.
    Source: Loshchilov and Hutter, 2017, arXiv:1711.05101.
    """
    require_number("add_decayed_weights", "decay", decay)
    patterns = as_patterns("add_decayed_weights", "paths", paths)
    but = as_patterns("add_decayed_weights", "exclude", exclude)

    def mask(tree: Tree) -> Tree:
        require_matches("add_decayed_weights", tree, patterns)
        return selected(tree, patterns, but)

    return optax.add_decayed_weights(decay, None if patterns == ("*",) and not but else mask)


def add_noise(*, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> GradientTransformation:
    r"""$u = g + \mathcal N(0, 1)\, \eta / t^\gamma$ with $t$ = 1, 2, ...; the key is split every step.

    Source: Neelakantan et al., 2015, arXiv:1511.06807.
    """
    require_number("add_noise", "eta", eta, at_least=0.0)
    require_number("add_noise", "gamma", gamma, at_least=0.0)
    count("add_noise", "seed", seed, at_least=0)
    return optax.add_noise(eta, gamma, seed)


class AccumulateGradients(NamedTuple):
    """State of `accumulate_gradients`: calls in the current group, their weight, and the weighted sum of gradients."""

    calls: jax.Array
    weight: jax.Array
    gradients: Tree
    inner: Tree


def accumulate_gradients(inner: GradientTransformation, steps: int) -> GradientTransformation:
    r"""Run `inner` on the mean of each `steps` gradients, on the last of them; zero updates in between.

    The mean is $\sum_i w_i g_i / \sum_i w_i$ with the weights $w_i$ that the calls give, `update(..., weight=w)`; a
    training step gives the number of the batch's rows, or the sum of their weights. So n batches are as one n times
    as large, for losses that average over rows, though their sizes and padding differ. The state of `inner` does not
    advance on the silent calls, nor do schedules in it. Sums are kept in float32.
    """
    if count("accumulate_gradients", "steps", steps, at_least=1) == 1:
        return inner
    wrapped = optax.with_extra_args_support(inner)

    def init(params: Tree) -> AccumulateGradients:
        zeros = jax.tree.map(jnp.zeros_like, _widen(params))
        return AccumulateGradients(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), zeros, inner.init(params))

    def update(
        updates: Tree, state: AccumulateGradients, params: Tree | None = None, *, weight: Any = 1.0, **extra: Any
    ) -> tuple[Tree, AccumulateGradients]:
        weight = jnp.asarray(weight, jnp.float32)
        total = state.weight + weight
        sums = jax.tree.map(lambda s, g: s + weight * g.astype(s.dtype), state.gradients, updates)

        def emit(sums: Tree) -> tuple[Tree, AccumulateGradients]:
            mean = jax.tree.map(lambda s: s / jnp.where(total > 0, total, 1), sums)
            given, following = wrapped.update(mean, state.inner, params, weight=total, **extra)
            given = jax.tree.map(lambda u, s: u.astype(s.dtype), given, sums)
            nothing = jax.tree.map(jnp.zeros_like, state._replace(inner=None))
            return given, nothing._replace(inner=following)

        def wait(sums: Tree) -> tuple[Tree, AccumulateGradients]:
            silent = jax.tree.map(jnp.zeros_like, sums)
            return silent, AccumulateGradients(state.calls + 1, total, sums, state.inner)

        return jax.lax.cond(state.calls + 1 >= steps, emit, wait, sums)  # type: ignore[no-any-return]

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(params: Tree, updates: Tree, state: Mapping[str, Any] | None = None) -> Tree:
    """`params + updates` leaf by leaf; a parameter keeps its dtype.

    `state` holds new values for some of the leaves (nested mappings), such as a layer's statistics; they
    replace the sums.
    """
    updated = optax.apply_updates(params, updates)
    return updated if state is None else _merged(updated, state)


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, Mapping) else value
    return merged
