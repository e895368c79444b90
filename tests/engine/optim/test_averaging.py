"""Averages of parameters and kept gradients: what the optimizer's state holds beside the moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import optim
from engine.errors import OptionError

GRADIENTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def descend(optimizer: Any, params: Any) -> tuple[Any, Any, list[Any]]:
    """Parameters, state and all parameters on the way."""
    state, path = optimizer.init(params), []
    for row in GRADIENTS:
        gradients = jax.tree.map(lambda p, row=row: jnp.asarray(row, p.dtype), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optim.apply_updates(params, updates)
        path.append(params)
    return params, state, path


def test_ema_follows_its_recurrence_and_changes_nothing() -> None:
    """a = d a + (1 - d) p from the first parameters on, as optax.incremental_update computes it."""
    start = {"dense": {"kernel": jnp.array([1.0, -2.0, 3.0])}}
    params, state, path = descend(optim.chain(optim.sgd(0.1), optim.ema(decay=0.8)), start)
    plain, _, _ = descend(optim.sgd(0.1), start)
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    expected = start
    for following in path:
        expected = optax.incremental_update(following, expected, 0.2)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6), optim.ema_parameters(state), expected)


def test_ema_warms_up() -> None:
    """The decay of step t is min(d, (1 + t) / (10 + t))."""
    start = {"w": jnp.zeros(3)}
    _, state, path = descend(optim.chain(optim.sgd(0.1), optim.ema(decay=0.25, warmup=True)), start)
    average = np.zeros(3)
    for t, following in enumerate(path):
        d = min(0.25, (1 + t) / (10 + t))
        average = d * average + (1 - d) * np.asarray(following["w"])
    np.testing.assert_allclose(optim.ema_parameters(state)["w"], average, rtol=1e-5)


def test_ema_of_half_precision_is_float32() -> None:
    """Small steps are not lost to rounding."""
    _, state, _ = descend(optim.chain(optim.sgd(0.1), optim.ema()), {"w": jnp.ones(3, jnp.bfloat16)})
    assert optim.ema_parameters(state)["w"].dtype == jnp.float32


def test_ema_of_groups_is_one_tree() -> None:
    """Each group averages its own; a group without an average is left out."""
    averaged = optim.chain(optim.sgd(0.1), optim.ema(decay=0.5))
    optimizer = optim.groups([("a.*", averaged), ("b.*", averaged), ("c.*", optim.sgd(0.1))])
    start = {name: {"kernel": jnp.zeros(3)} for name in "abc"}
    _, state, _ = descend(optimizer, start)
    found = optim.ema_parameters(state)
    _, alone, _ = descend(averaged, {"a": start["a"]})
    assert set(found) == {"a", "b"}
    np.testing.assert_allclose(found["b"]["kernel"], optim.ema_parameters(alone)["a"]["kernel"], rtol=1e-6)


def test_ema_parameters_need_one_average() -> None:
    """None, or two of one parameter, is an error."""
    with pytest.raises(OptionError, match="expected an optimizer with an ema"):
        optim.ema_parameters(optim.sgd(0.1).init({"w": jnp.zeros(2)}))
    twice = optim.chain(optim.sgd(0.1), optim.ema(), optim.ema(decay=0.5))
    with pytest.raises(OptionError, match="expected one average of w, got two"):
        optim.ema_parameters(twice.init({"w": jnp.zeros(2)}))


def test_kept_gradients_are_the_last_ones() -> None:
    """In front of the clipping the gradient itself, behind it the clipped one."""
    start = {"w": jnp.zeros(3)}
    clipped = optim.transforms.clip(delta=0.1)
    _, before, _ = descend(optim.chain(optim.keep_gradients(), clipped, optim.sgd(0.1)), start)
    _, behind, _ = descend(optim.chain(clipped, optim.keep_gradients(), optim.sgd(0.1)), start)
    np.testing.assert_array_equal(optim.kept_gradients(before)["w"], GRADIENTS[-1])
    np.testing.assert_array_equal(optim.kept_gradients(behind)["w"], np.clip(GRADIENTS[-1], -0.1, 0.1))
    with pytest.raises(OptionError, match="one keep_gradients, got 0"):
        optim.kept_gradients(optim.sgd(0.1).init(start))
