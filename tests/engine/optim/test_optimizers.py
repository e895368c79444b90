"""Optimizers and transforms: options, what they share, and formulas beside a NumPy rendering of the papers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import optim
from engine.errors import OptionError
from engine.optim import transforms

GRADIENTS = [{"w": np.array([0.5, -1.0, 2.0], np.float32)}, {"w": np.array([-0.25, 0.5, 1.0], np.float32)}] * 3


def run(optimizer: Any, params: Any = None, gradients: list[Any] = GRADIENTS) -> Any:
    """Parameters and optimizer state after all gradients."""
    params = {"w": jnp.array([1.0, -2.0, 3.0])} if params is None else params
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_follows_its_formula(nesterov: bool) -> None:
    """t = m t + g; the step is t, or m t + g with Nesterov's correction."""
    w, trace = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for gradient in GRADIENTS:
        trace = 0.9 * trace + gradient["w"]
        w = w - 0.1 * (0.9 * trace + gradient["w"] if nesterov else trace)
    params, _ = run(optim.sgd(0.1, momentum=0.9, nesterov=nesterov))
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_adamw_decays_weights_before_the_learning_rate() -> None:
    """u = -lr (adam(g) + decay p), with Kingma and Ba's bias corrections."""
    w, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient["w"].astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t) + 1e-15) + 1e-8)
        w = w - 0.05 * (direction + 0.01 * w)
    params, _ = run(optim.adamw(0.05, decay=0.01))
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_adabelief_uses_the_deviation_from_the_mean() -> None:
    """s = b2 s + (1 - b2) (g - m)^2 + eps, as in Zhuang et al., 2020, not Adam's second moment."""
    w, m, s = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = gradient["w"].astype(np.float64)
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-8
        w = w - 0.05 * (m / (1 - 0.9**t)) / np.sqrt(s / (1 - 0.999**t))
    params, _ = run(optim.adabelief(0.05, eps_root=1e-8))
    np.testing.assert_allclose(params["w"], w, rtol=1e-4)


def test_accumulate_gradients_applies_the_mean_of_each_group() -> None:
    """Gradients 1, 2, 3, 10, 20, 30 in pairs move by their means, on every second call."""
    optimizer = transforms.accumulate_gradients(optim.sgd(1.0), 2)
    params = {"w": jnp.zeros(())}
    state, seen = optimizer.init(params), []
    for g in (1.0, 2.0, 3.0, 10.0, 20.0, 30.0):
        updates, state = optimizer.update({"w": jnp.float32(g)}, state, params)
        params = optim.apply_updates(params, updates)
        seen.append(float(params["w"]))
    assert seen == [0.0, -1.5, -1.5, -8.0, -8.0, -33.0]


def test_accumulate_gradients_weighs_and_keeps_the_inner_state() -> None:
    """Calls of weight 1 and 3 give the mean of four rows; Adam counts one step per group, with the group's mean."""
    optimizer = transforms.accumulate_gradients(optim.adam(0.1), 2)
    params = {"w": jnp.array([1.0, 2.0])}
    small, large = np.array([[0.3, -0.6]], np.float32), np.array([[1, 2], [0, 4], [-1, 1]], np.float32)
    state = optimizer.init(params)
    for _ in range(3):
        for rows in (small, large):
            before = params
            updates, state = optimizer.update({"w": jnp.mean(rows, axis=0)}, state, params, weight=len(rows))
            params = optim.apply_updates(params, updates)
            if rows is small:
                np.testing.assert_array_equal(params["w"], before["w"])
    mean = np.concatenate([small, large]).mean(axis=0)
    expected, inner = run(optim.adam(0.1), {"w": jnp.array([1.0, 2.0])}, [{"w": mean}] * 3)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5), state.inner, inner)


@pytest.mark.parametrize("scheduled", [False, True])
def test_fromage_is_that_of_its_paper(scheduled: bool) -> None:
    """As optax.fromage, and each leaf keeps its norm but for the component along itself."""
    schedule = optim.schedules.exponential_decay(0.2, transition_steps=2)
    params = {"w": jnp.array([1.0, -2.0, 3.0]), "zero": jnp.zeros(2)}
    gradients = [{**g, "zero": np.ones(2, np.float32)} for g in GRADIENTS]
    got, _ = run(optim.fromage(schedule if scheduled else 0.2), params, gradients)
    expected, _ = run(optax.fromage(schedule if scheduled else 0.2, min_norm=0.0), params, gradients)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5), got, expected)
    w, g = np.array([1.0, -2.0, 3.0]), GRADIENTS[0]["w"].astype(np.float64)
    step = (w - 0.2 * g * np.linalg.norm(w) / np.linalg.norm(g)) / np.sqrt(1 + 0.2**2)
    first, _ = run(optim.fromage(0.2), {"w": jnp.array([1.0, -2.0, 3.0])}, GRADIENTS[:1])
    np.testing.assert_allclose(first["w"], step, rtol=1e-5)


def test_set_learning_rate_replaces_the_number() -> None:
    """The next step is as long as a new optimizer's."""
    params, state = run(optim.sgd(0.5), gradients=[])
    updates, _ = optim.sgd(0.5).update(GRADIENTS[0], optim.set_learning_rate(state, 0.125), params)
    np.testing.assert_allclose(updates["w"], -0.125 * GRADIENTS[0]["w"])


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_keeps_parameter_types_and_full_precision_moments(name: str) -> None:
    """bfloat16 parameters stay bfloat16; what the optimizer remembers is float32."""
    optimizer = optim.from_spec({"name": name, "learning_rate": 0.1})
    gradients = [jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), g) for g in GRADIENTS]
    params, state = run(optimizer, {"w": jnp.ones(3, jnp.bfloat16)}, gradients)
    assert params["w"].dtype == jnp.bfloat16
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == jnp.float32 for leaf in floats)
    assert np.isfinite(np.asarray(params["w"], np.float32)).all()


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_takes_a_schedule(name: str) -> None:
    """A schedule of constant value steps as the number does."""
    fixed, _ = run(optim.from_spec({"name": name, "learning_rate": 0.1}))
    scheduled, _ = run(optim.from_spec({"name": name, "learning_rate": {"name": "constant", "init_value": 0.1}}))
    np.testing.assert_allclose(fixed["w"], scheduled["w"], rtol=1e-6)


def test_multiply_scale_changes_the_learning_rate() -> None:
    """After halving, a plain step is half as long; nothing else of the state changes."""
    optimizer = optim.sgd(0.5)
    params, state = run(optimizer, gradients=[])
    updates, _ = optimizer.update(GRADIENTS[0], optim.multiply_scale(state, 0.5), params)
    np.testing.assert_allclose(updates["w"], -0.25 * GRADIENTS[0]["w"])


def test_multiply_scale_refuses_a_schedule() -> None:
    """A schedule's rate is not part of the state."""
    optimizer = optim.sgd(optim.schedules.constant(0.1))
    with pytest.raises(OptionError, match="expected an optimizer with a number as learning rate"):
        optim.multiply_scale(optimizer.init({"w": jnp.zeros(2)}), 0.1)


def test_from_spec_keeps_a_transformation() -> None:
    """An Optax transformation passes as it is."""
    given = optax.lion(1e-3)
    assert optim.from_spec(given) is given


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adamm", "expected one of .*adam.*got 'adamm'"),
        ({"name": "sgd", "momentun": 0.9}, "options out of .*momentum.*got momentun"),
        ({"name": "sgd", "learning_rate": "fast"}, "learning_rate to be a finite number"),
        ({"name": "sgd", "learning_rate": float("nan")}, "learning_rate to be a finite number"),
        ({"name": "sgd", "learning_rate": -1.0}, "learning_rate to be a finite number"),
        ({"name": "sgd", "nesterov": "yes"}, "nesterov to be true or false"),
        ({"name": "adam", "b1": 1.0}, "b1 to be a finite number"),
        ({"name": "adam", "learning_rate": {"name": "cosine"}}, "schedule: expected one of"),
        ({"name": "adam", "learning_rate": {"name": "constant"}}, "expected a value for init_value"),
        ({"learning_rate": 0.1}, "expected an object with a name"),
        (3, "expected a name, an object or a transformation, got int"),
    ],
)
def test_from_spec_explains_what_is_wrong(spec: Any, message: str) -> None:
    """Unknown names, options and values say what was expected and what came."""
    with pytest.raises(OptionError, match=message):
        optim.from_spec(spec)


@pytest.mark.parametrize("name", sorted(optim.SCHEDULES.keys() - {"join"}))
def test_every_schedule_works_under_jit(name: str) -> None:
    """A traced count gives the value of a plain one."""
    schedule = optim.SCHEDULES[name](0.1)
    for step in (0, 3, 50):
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), schedule(step), rtol=1e-6)
