r"""Optimizers: gradient transformations that end with minus the learning rate.

Every constructor takes the learning rate as a number or as a schedule `count -> rate` and returns an
`optax.GradientTransformation`. A number is kept in the optimizer's state as `ScaleByState`, so that a handler
can change it while training (`multiply_scale`) without compiling again. Names and defaults are those of
Polaris.Optimizers; the inventory's "effective" defaults are meant where its documentation says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from engine.functional.options import require_boolean, require_number
from engine.optim import transforms as t
from engine.optim.paths import Paths
from engine.optim.schedules import Schedule
from engine.optim.transforms import GradientTransformation, ScaleByState

LearningRate = float | Schedule


def sgd(
    learning_rate: LearningRate = 0.01, *, momentum: float | None = None, nesterov: bool = False
) -> GradientTransformation:
    r"""Stochastic gradient descent, $u = -\eta g$, with optional momentum.

    With momentum $\mu$: $t = \mu t + g$, $u = -\eta t$; with `nesterov` $u = -\eta (\mu t + g)$. Without
    momentum `nesterov` changes nothing. Raises `OptionError` for values outside their domain, as all here.
    """
    require_boolean("sgd", "nesterov", nesterov)
    rate = t.scale_by_learning_rate(learning_rate)
    if momentum is None:
        return t.chain(rate)
    require_number("sgd", "momentum", momentum, at_least=0.0, at_most=1.0)
    return t.chain(t.trace(decay=momentum, nesterov=nesterov), rate)


def adam(
    learning_rate: LearningRate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 1e-15,
) -> GradientTransformation:
    r"""Adam: $u = -\eta\, \hat m / (\sqrt{\hat v + \epsilon_r} + \epsilon)$; see `transforms.scale_by_adam`."""
    direction = t.scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return t.chain(direction, t.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: LearningRate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 1e-15,
    decay: float = 0.0,
    exclude: Paths = (),
) -> GradientTransformation:
    r"""Adam with decoupled weight decay: $u = -\eta (\mathrm{adam}(g) + d\, p)$.

    The decay applies to every trainable leaf, biases and scales included, but those whose paths match `exclude`
    (such as `["*.bias", "*.gamma"]`); its default is none.
    Source: Loshchilov and Hutter, 2017, arXiv:1711.05101.
    """
    return t.chain(
        t.scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        t.add_decayed_weights(decay=decay, exclude=exclude),
        t.scale_by_learning_rate(learning_rate),
    )


def adabelief(
    learning_rate: LearningRate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 0.0,
    eps_root: float = 1e-16,
) -> GradientTransformation:
    """AdaBelief, as in its paper; see `transforms.scale_by_belief`."""
    direction = t.scale_by_belief(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return t.chain(direction, t.scale_by_learning_rate(learning_rate))


def adagrad(
    learning_rate: LearningRate = 1e-3, *, eps: float = 1e-7, initial_accumulator_value: float = 0.1
) -> GradientTransformation:
    """Adagrad: divides by the root of the sum of squared gradients; see `transforms.scale_by_rss`."""
    direction = t.scale_by_rss(initial_accumulator_value=initial_accumulator_value, eps=eps)
    return t.chain(direction, t.scale_by_learning_rate(learning_rate))


def fromage(learning_rate: LearningRate, *, min_norm: float = 0.0) -> GradientTransformation:
    r"""Fromage: $u = -\eta m\, g |p| / |g| + (m - 1) p$ with $m = 1 / \sqrt{1 + \eta^2}$, leaf by leaf.

    The ratio is 1 where either norm is zero; norms below `min_norm` count as `min_norm`.
    Source: Bernstein et al., 2020, arXiv:2002.03432; Axon.Optimizers.fromage/2 of Axon 0.1.
    """
    t.require_learning_rate(learning_rate)

    def step(updates: Any, params: Any, rate: Any) -> Any:
        shrink = 1 / jnp.sqrt(1 + jnp.square(rate))

        def one(g: jax.Array, p: jax.Array) -> jax.Array:
            return jnp.asarray(-rate * shrink * g + (shrink - 1) * p, g.dtype)

        return jax.tree.map(one, updates, params)

    def init(params: Any) -> Any:
        del params
        if callable(learning_rate):
            return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return ScaleByState(jnp.asarray(-learning_rate, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not callable(learning_rate):
            return step(updates, params, -state.scale), state
        rate = learning_rate(state.count)
        return step(updates, params, rate), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return t.chain(t.scale_by_trust_ratio(min_norm=min_norm), optax.GradientTransformation(init, update))


def lamb(
    learning_rate: LearningRate = 0.01,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 1e-15,
    decay: float = 0.0,
    min_norm: float = 0.0,
    exclude: Paths = (),
) -> GradientTransformation:
    r"""LAMB: $r = \mathrm{adam}(g) + d\, p$, $u = -\eta\, r\, |p| / |r|$ leaf by leaf.

    The ratio is 1 where either norm is zero; paths that match `exclude` do not decay.
    Source: You et al., 2019, arXiv:1904.00962.
    """
    return t.chain(
        t.scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        t.add_decayed_weights(decay=decay, exclude=exclude),
        t.scale_by_trust_ratio(min_norm=min_norm),
        t.scale_by_learning_rate(learning_rate),
    )


def noisy_sgd(
    learning_rate: LearningRate = 0.01, *, eta: float = 0.01, gamma: float = 0.55, seed: int = 0
) -> GradientTransformation:
    r"""$u = -\alpha g + \mathcal N(0, 1)\, \eta / t^\gamma$ with learning rate $\alpha$, which leaves the noise alone.

    The random key is part of the state. Source: Neelakantan et al., 2015, arXiv:1511.06807.
    """
    noise = t.add_noise(eta=eta, gamma=gamma, seed=seed)
    return t.chain(t.scale_by_learning_rate(learning_rate), noise)


def radam(
    learning_rate: LearningRate = 1e-3,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
) -> GradientTransformation:
    """Rectified Adam, as in its paper; see `transforms.scale_by_radam`."""
    direction = t.scale_by_radam(b1=b1, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold)
    return t.chain(direction, t.scale_by_learning_rate(learning_rate))


def rmsprop(
    learning_rate: LearningRate = 0.01,
    *,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    initial_scale: float = 0.0,
    decay: float = 0.9,
    eps: float = 1e-8,
) -> GradientTransformation:
    r"""RMSProp: $u = -\eta\, g / \sqrt{v + \epsilon}$; with `centered` $v - m^2$ stands for $v$.

    Momentum, if any, is applied after the learning rate.
    """
    require_boolean("rmsprop", "centered", centered)
    require_boolean("rmsprop", "nesterov", nesterov)
    direction = t.scale_by_stddev if centered else t.scale_by_rms
    scaled = direction(initial_scale=initial_scale, decay=decay, eps=eps)
    rate = t.scale_by_learning_rate(learning_rate)
    if momentum is None:
        return t.chain(scaled, rate)
    require_number("rmsprop", "momentum", momentum, at_least=0.0, at_most=1.0)
    return t.chain(scaled, rate, t.trace(decay=momentum, nesterov=nesterov))


def yogi(
    learning_rate: LearningRate = 0.01,
    *,
    initial_accumulator_value: float = 1e-6,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
) -> GradientTransformation:
    """Yogi: Adam with an additive second moment; see `transforms.scale_by_yogi`."""
    direction = t.scale_by_yogi(
        initial_accumulator_value=initial_accumulator_value, b1=b1, b2=b2, eps=eps, eps_root=eps_root
    )
    return t.chain(direction, t.scale_by_learning_rate(learning_rate))


OPTIMIZERS: dict[str, Callable[..., GradientTransformation]] = {
    build.__name__: build
    for build in (sgd, adam, adamw, adabelief, adagrad, fromage, lamb, noisy_sgd, radam, rmsprop, yogi)
}
"""Name -> constructor."""
