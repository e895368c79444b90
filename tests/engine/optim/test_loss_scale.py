"""Loss scales as pure functions: how the factor moves, what counts as finite."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError
from engine.optim.loss_scale import LossScale, all_finite, dynamic, from_spec, identity, static

GRADIENTS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def _scales(scale: LossScale, steps: list[float]) -> list[float]:
    """The factor after each step whose gradient has this value."""
    state, found = scale.init(), []
    for value in steps:
        _, state = jax.jit(scale.unscale)({"w": jnp.array([1.0, value])}, state)
        found.append(float(state["loss_scale"]))
    return found


def test_unscaled_gradients_are_those_of_the_unscaled_loss():
    """Powers of two are exact."""
    for scale in (identity(), static(), dynamic(), static(2**20)):
        state = scale.init()
        scaled = scale.scale(GRADIENTS, state)
        found, _ = scale.unscale(scaled, state)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), found, GRADIENTS))


def test_static_never_changes():
    """Whatever happens."""
    assert _scales(static(8), [1, np.inf, np.nan, 1]) == [8, 8, 8, 8]


def test_dynamic_grows_after_a_period_and_shrinks_at_once():
    """Every second finite step in a row doubles it, every other step halves it, down to the least."""
    scale = dynamic(init_scale=8, period=2, factor=2, min_loss_scale=4)
    assert _scales(scale, [1, 1, 1, np.inf, 1, 1]) == [8, 16, 16, 8, 8, 16]
    assert _scales(scale, [np.inf, np.inf, np.inf]) == [4, 4, 4]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_every_kind_of_nonfinite_shrinks_it(value: float) -> None:
    """NaN too, which upstream takes for finite."""
    assert _scales(dynamic(init_scale=8), [value]) == [4]


def test_growth_stops_before_it_overflows():
    """A factor that would not be finite is not taken."""
    assert _scales(dynamic(init_scale=2.0**127, period=1), [1, 1]) == [2.0**127, 2.0**127]


def test_half_precision_gradients_survive_factors_beyond_their_range():
    """In f16 even 2**17 itself is infinite."""
    scale = static(2**17)
    gradients = {"w": jnp.array([1.0], jnp.float16)}
    found, _ = scale.unscale(gradients, scale.init())
    assert found["w"].dtype == jnp.float16
    np.testing.assert_allclose(found["w"].astype(jnp.float32), [2.0**-17])
    assert scale.scale(jnp.array(2.0, jnp.float16), scale.init()) == 2**18


def test_all_finite_looks_at_every_leaf():
    """One NaN anywhere is enough; nothing at all is finite."""
    assert all_finite(GRADIENTS)
    assert all_finite({})
    for bad, key in itertools.product((np.nan, np.inf), GRADIENTS):
        assert not all_finite(GRADIENTS | {key: GRADIENTS[key] + bad})


def test_specs_name_what_is_scaled():
    """A name, a name with options, the thing itself."""
    mine = static(4)
    assert from_spec(mine) is mine
    assert float(from_spec("dynamic").init()["loss_scale"]) == 2**15
    assert float(from_spec({"name": "static", "init_scale": 2}).init()["loss_scale"]) == 2
    assert from_spec("identity").init() == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fixed", "expected one of dynamic, identity, static, got 'fixed'"),
        ({"name": "static", "period": 2}, "expected options out of init_scale; got period"),
        ({"name": "static", "init_scale": 0}, "expected init_scale above 0, got 0"),
        ({"name": "dynamic", "factor": 1}, "expected factor above 1, got 1"),
        ({"name": "dynamic", "period": 0}, "period to be an integer of at least 1"),
        ({"name": "dynamic", "min_loss_scale": float("nan")}, "min_loss_scale"),
        (7, "expected a name, an object or a LossScale, got int"),
    ],
)
def test_wrong_specs_are_refused(spec: Any, message: str) -> None:
    """What is wrong, and what was expected."""
    with pytest.raises(OptionError, match=message):
        from_spec(spec)
