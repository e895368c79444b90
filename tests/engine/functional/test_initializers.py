"""Initializers: distributions, fans, specs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import DtypeError, OptionError, ShapeError
from engine.functional import keys
from engine.functional.initializers import (
    INITIALIZERS,
    fans,
    from_spec,
    full,
    glorot_uniform,
    identity,
    normal,
    orthogonal,
    uniform,
    variance_scaling,
)

KEY = keys.from_seed(42)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((), "last", (1, 1)),
        ((7,), "last", (1, 1)),
        ((3, 5), "last", (3, 5)),
        ((3, 3, 2, 4), "last", (18, 36)),
        ((4, 2, 3, 3), "first", (18, 36)),
    ],
)
def test_fans_follow_the_layout(shape: tuple[int, ...], layout: Any, expected: tuple[int, int]) -> None:
    """A kernel has the same fans in both layouts."""
    assert fans(shape, layout) == expected


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize(("mode", "variance"), [("fan_in", 2 / 50), ("fan_out", 2 / 400), ("fan_avg", 2 / 225)])
def test_variance_scaling_has_the_variance(distribution: Any, mode: Any, variance: float) -> None:
    """20,000 draws have mean 0 and the stated variance, and respect the distribution's bounds."""
    draws = np.asarray(variance_scaling(2.0, mode, distribution)((50, 400), jnp.float32, KEY))
    assert draws.mean() == pytest.approx(0, abs=0.05 * np.sqrt(variance))
    assert draws.var() == pytest.approx(variance, rel=0.05)
    bound = {"normal": np.inf, "truncated_normal": 2 / 0.8796256610342398, "uniform": np.sqrt(3)}[distribution]
    assert np.abs(draws).max() <= bound * np.sqrt(variance) * (1 + 1e-6)


def test_uniform_and_normal_have_their_scales() -> None:
    """`scale` is the bound of the one and the standard deviation of the other."""
    draws = np.asarray(uniform(0.5)((20000,), jnp.float32, KEY))
    assert 0.49 < draws.max() <= 0.5
    assert -0.5 <= draws.min() < -0.49
    draws = np.asarray(normal(mean=1.0, scale=0.5)((20000,), jnp.float32, KEY))
    assert draws.mean() == pytest.approx(1, abs=0.02)
    assert draws.std() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name not in ("full", "identity", "orthogonal")])
def test_same_key_gives_the_same_values_in_any_precision(name: str) -> None:
    """Half-precision values are the float32 ones, rounded."""
    shape = (4, 6)
    wide = from_spec(name)(shape, jnp.float32, KEY)
    np.testing.assert_array_equal(from_spec(name)(shape, jnp.float32, keys.wrap(KEY)), wide)
    np.testing.assert_array_equal(from_spec(name)(shape, jnp.bfloat16, KEY), wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("shape", [(3, 3), (6, 3), (3, 6), (2, 3, 4)])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_orthogonal_is_orthonormal(shape: tuple[int, ...], distribution: Any) -> None:
    """The shorter side of the flattened matrix is orthonormal."""
    matrix = np.asarray(orthogonal(distribution)(shape, jnp.float32, KEY)).reshape(-1, shape[-1])
    matrix = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-5)


def test_orthogonal_is_distributed_by_the_haar_measure() -> None:
    """The trace of random orthogonal matrices has mean 0 and variance 1, as under the Haar measure."""
    draw = jax.vmap(lambda key: jnp.trace(orthogonal()((3, 3), jnp.float32, key)))
    traces = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert traces.mean() == pytest.approx(0, abs=0.08)
    assert traces.var() == pytest.approx(1, abs=0.1)


def test_full_casts_its_value() -> None:
    """A fraction is cut off in an integer dtype; no key is needed."""
    assert full(2.75)((2,), jnp.int32, None).tolist() == [2, 2]


def test_identity_needs_a_matrix() -> None:
    """Rectangular shapes are fine, other ranks are not."""
    np.testing.assert_array_equal(identity()((2, 3), jnp.float32, None), np.eye(2, 3))
    with pytest.raises(ShapeError, match="identity: expected a shape of rank 2"):
        identity()((3,), jnp.float32, None)


def test_random_initializer_demands_a_key_and_a_float_dtype() -> None:
    """Neither a default seed nor rounded integers are made up."""
    with pytest.raises(OptionError, match="expected a random key, got None"):
        glorot_uniform()((2, 2), jnp.float32, None)
    with pytest.raises(DtypeError, match="expected a float dtype, got int32"):
        glorot_uniform()((2, 2), jnp.int32, KEY)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("glorot", "expected a name among zeros, .*, got 'glorot'"),
        ({"scale": 1.0}, "expected a name among .*, got None"),
        ({"name": "uniform", "sale": 1.0}, r"initializer uniform: expected options among \['scale'\], got 'sale'"),
        ("full", "initializer full: expected option 'value'"),
        ({"name": "uniform", "scale": "big"}, "uniform: expected scale to be a finite number of at least 0, got 'big'"),
        ({"name": "normal", "mean": float("nan")}, "normal: expected mean to be a finite number, got nan"),
        ({"name": "variance_scaling", "mode": "fan"}, "expected mode to be one of 'fan_in', .*, got 'fan'"),
        ({"name": ["uniform"]}, "expected a name among"),
    ],
)
def test_wrong_spec_raises(spec: Any, message: str) -> None:
    """Names, options and values are checked, and the message says which."""
    with pytest.raises(OptionError, match=message):
        from_spec(spec)


def test_spec_may_be_a_function_or_carry_options() -> None:
    """A function passes through; an object's options are used; a layout reaches the fans."""
    initialize = uniform()
    assert from_spec(initialize) is initialize
    assert from_spec({"name": "full", "value": 3})((1,), jnp.float32, None) == 3
    kernel = (64, 2, 3, 3)
    first = from_spec("he_uniform", layout="first")(kernel, jnp.float32, KEY)
    assert np.abs(first).max() == pytest.approx(np.sqrt(6 / 18), rel=0.02)


def test_keys_are_checked() -> None:
    """A raw key is two unsigned 32-bit integers."""
    with pytest.raises(DtypeError, match="expected dtype uint32"):
        keys.split(jnp.zeros(2, jnp.int32))
    with pytest.raises(ShapeError, match=r"expected shape \(2,\)"):
        keys.split(jnp.zeros(3, jnp.uint32))
    with pytest.raises(OptionError, match="expected a seed in"):
        keys.from_seed(-1)
    assert keys.from_seed(2**32 + 5).tolist() == [1, 5]
