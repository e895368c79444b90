"""Activations: derivatives, extremes, dtypes, and the errors of their options."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from engine.errors import OptionError, ShapeError
from engine.functional.activations import (
    ACTIVATIONS,
    celu,
    check_softmax,
    gelu,
    hard_sigmoid,
    log_sumexp,
    softmax,
    softplus,
    swiglu,
)
from tests.engine.functional.support import assert_gradient, values

GROWING = ("exp",)


def test_all_activations_are_listed() -> None:
    """The mapping holds the 22 activations of Axon."""
    assert len(ACTIVATIONS) == 22


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_matches_central_differences(name: str) -> None:
    """The derivative is that of the function, away from its kinks."""
    assert_gradient(ACTIVATIONS[name], 3.7 * values(3, 4))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in GROWING])
def test_value_and_gradient_stay_finite_far_from_zero(name: str) -> None:
    """Nothing overflows into NaN, in the branch not taken neither."""
    x = jnp.asarray([-1e4, -200.0, -0.0, 0.0, 200.0, 1e4], jnp.float32)
    value, gradient = jax.vjp(ACTIVATIONS[name], x)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient(jnp.ones_like(value))[0]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float_dtype_is_kept(name: str, dtype: jnp.dtype) -> None:
    """A result has the dtype of its input, under jit too."""
    assert jax.jit(ACTIVATIONS[name])(jnp.ones((2, 3), dtype)).dtype == dtype


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_vmap_equals_loop(name: str) -> None:
    """Mapping over the batch gives what the rows give one by one."""
    x = jnp.asarray(values(3, 4), jnp.float32)
    np.testing.assert_allclose(
        jax.vmap(ACTIVATIONS[name])(x), jnp.stack([ACTIVATIONS[name](row) for row in x]), rtol=1e-6
    )


def test_gelu_is_the_exact_form() -> None:
    """The error function is used, not its tanh approximation."""
    x = values(50, low=-4, high=4)
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), x * special.ndtr(x), rtol=1e-5, atol=1e-6)


def test_gelu_may_be_approximated_by_tanh() -> None:
    """The formula of GPT-2, in float64."""
    x = values(50, low=-4, high=4)
    expected = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32), approximate=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
def test_swiglu_gates_one_half_by_the_other(axis: int) -> None:
    """`silu(a) * b`, its derivative, and an error for odd sizes."""
    x = values(3, 4, 6)
    a, b = np.split(x, 2, axis)
    actual = swiglu(jnp.asarray(x, jnp.float32), axis=axis)
    np.testing.assert_allclose(actual, a * special.expit(a) * b, rtol=1e-5, atol=1e-6)
    assert_gradient(lambda x: swiglu(x, axis=axis), x)
    with pytest.raises(ShapeError, match="swiglu: expected an even size of axis 0, got 3"):
        swiglu(x, axis=0)


def test_hard_sigmoid_of_zero_is_beta() -> None:
    """The default offset is 0.2, as in Axon."""
    assert hard_sigmoid(jnp.zeros(())) == pytest.approx(0.2)


def test_softplus_has_half_slope_at_zero() -> None:
    """The derivative at 0 is sigmoid(0)."""
    assert jax.grad(softplus)(0.0) == 0.5


def test_softmax_over_several_axes_sums_to_one() -> None:
    """A list of axes is normalized jointly."""
    x = values(2, 3, 4)
    np.testing.assert_allclose(softmax(jnp.asarray(x), axis=[1, 2]), special.softmax(x, axis=(1, 2)), rtol=1e-5)


def test_log_sumexp_keeps_its_axis_and_takes_infinities() -> None:
    """All minus infinity gives minus infinity, without NaN."""
    result = log_sumexp(jnp.asarray([[-jnp.inf, -jnp.inf], [0.0, 0.0]]))
    np.testing.assert_allclose(result, [[-np.inf], [np.log(2)]], rtol=1e-6)


@pytest.mark.parametrize("axis", [2, -3, [0, 0]])
def test_wrong_axis_raises(axis: int | list[int]) -> None:
    """An axis outside the rank, or one named twice, is an option error."""
    with pytest.raises(OptionError, match=r"softmax: expected .*axis|axes"):
        check_softmax((2, 3), axis=axis)
    with pytest.raises(OptionError):
        softmax(jnp.zeros((2, 3)), axis=axis)


def test_celu_without_alpha_raises() -> None:
    """Alpha 0 would divide by zero."""
    with pytest.raises(OptionError, match="celu: expected alpha other than zero, got 0"):
        celu(jnp.zeros(3), alpha=0)
