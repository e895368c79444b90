"""Normalization: statistics against NumPy, running state, derivatives, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import StatefulOutput, batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from tests.engine.functional.support import assert_gradient, values

X = values(3, 4, 5, 6)
GAMMA, BETA, MEAN, VAR = values(4, 6, seed=1, low=0.5, high=2.0)


def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float = 1e-5) -> np.ndarray:
    """The formula in float64."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def train(norm: Callable[..., Any], *arrays: Any, **options: Any) -> StatefulOutput:
    """A training call, whose result is stateful."""
    result = norm(*(jnp.asarray(array, jnp.float32) for array in arrays), mode="train", **options)
    assert isinstance(result, StatefulOutput)
    return result


@pytest.mark.parametrize(("norm", "axes"), [(batch_norm, (0, 1, 2)), (instance_norm, (1, 2))])
def test_training_uses_the_batch_and_updates_the_state(norm: Callable[..., Any], axes: tuple[int, ...]) -> None:
    """Output by the batch's statistics; state a tenth of the old and nine of the new, without a batch axis."""
    output, state = train(norm, X, GAMMA, BETA, MEAN, VAR)
    np.testing.assert_allclose(output, normalized(X, axes) * GAMMA + BETA, rtol=1e-4, atol=1e-5)
    batch_mean, batch_var = X.mean(axes), X.var(axes)
    if norm is instance_norm:
        batch_mean, batch_var = batch_mean.mean(0), batch_var.mean(0)
    np.testing.assert_allclose(state["mean"], 0.1 * MEAN + 0.9 * batch_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["var"], 0.1 * VAR + 0.9 * batch_var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [batch_norm, instance_norm])
@pytest.mark.parametrize("channel_index", [1, -1])
def test_inference_uses_the_running_statistics(norm: Callable[..., Any], channel_index: int) -> None:
    """The state's mean and variance along the channel axis, wherever it is."""
    x = np.moveaxis(X, -1, channel_index)
    expected = np.moveaxis((X - MEAN) / np.sqrt(VAR + 1e-5) * GAMMA + BETA, -1, channel_index)
    actual = norm(*map(jnp.asarray, (x, GAMMA, BETA, MEAN, VAR)), channel_index=channel_index)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_momentum_weights_the_old_statistics() -> None:
    """Momentum 1 keeps them, momentum 0 forgets them."""
    args = (X, GAMMA, BETA, MEAN, VAR)
    np.testing.assert_allclose(train(batch_norm, *args, momentum=1.0).state["mean"], MEAN, rtol=1e-6)
    np.testing.assert_allclose(train(batch_norm, *args, momentum=0.0).state["mean"], X.mean((0, 1, 2)), atol=1e-6)


@pytest.mark.parametrize("norm", [batch_norm, instance_norm])
def test_state_keeps_shape_and_dtype_of_its_parameters(norm: Callable[..., Any]) -> None:
    """One channel stays an axis, and half-precision inputs leave a float32 state."""
    one = jnp.ones(1)
    output, state = norm(jnp.ones((2, 3, 1), jnp.bfloat16), one, one, one, one, mode="train")
    assert output.dtype == jnp.bfloat16
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == {
        "mean": ((1,), jnp.float32),
        "var": ((1,), jnp.float32),
    }


def test_state_carries_no_gradient() -> None:
    """Running statistics do not reach the loss's derivative."""

    def total(x: jax.Array) -> jax.Array:
        _, state = train(batch_norm, x, GAMMA, BETA, MEAN, VAR)
        return state["mean"].sum() + state["var"].sum()

    assert not np.asarray(jax.grad(total)(jnp.asarray(X, jnp.float32))).any()


@pytest.mark.parametrize("channel_index", [1, -1])
def test_layer_norm_normalizes_one_axis(channel_index: int) -> None:
    """Only the channel axis, not all axes behind the batch."""
    x = np.moveaxis(X, -1, channel_index)
    expected = np.moveaxis(normalized(X, (-1,)) * GAMMA + BETA, -1, channel_index)
    actual = layer_norm(*map(jnp.asarray, (x, GAMMA, BETA)), channel_index=channel_index)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_group_norm_normalizes_groups(num_groups: int) -> None:
    """Each sample's groups of channels, over all positions."""
    grouped = X.reshape(3, 4, 5, num_groups, -1)
    expected = normalized(grouped, (1, 2, 4)).reshape(X.shape) * GAMMA + BETA
    actual = group_norm(*map(jnp.asarray, (X, GAMMA, BETA)), num_groups=num_groups)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    """The formula, with a shifted scale; `all` gives float32 for half-precision inputs."""
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6) * (1 + GAMMA)
    np.testing.assert_allclose(rms_norm(jnp.asarray(X), jnp.asarray(GAMMA), shift=1.0), expected, rtol=1e-4)
    half = (jnp.ones((2, 6), jnp.bfloat16), jnp.ones(6, jnp.bfloat16))
    assert rms_norm(*half).dtype == jnp.bfloat16
    assert rms_norm(*half, upcast="all").dtype == jnp.float32


def output_of(norm: Callable[..., Any], **options: Any) -> Callable[..., jax.Array]:
    """The output of a norm as a function of its arrays."""

    def function(*arrays: jax.Array) -> jax.Array:
        result = norm(*arrays, **options)
        output: jax.Array = result.output if isinstance(result, StatefulOutput) else result
        return output

    return function


@pytest.mark.parametrize(
    ("norm", "options", "count"),
    [
        (batch_norm, {"mode": "train"}, 4),
        (batch_norm, {}, 4),
        (instance_norm, {"mode": "train"}, 4),
        (layer_norm, {}, 2),
        (group_norm, {"num_groups": 2}, 2),
        (rms_norm, {}, 1),
    ],
)
def test_gradient_matches_central_differences(norm: Callable[..., Any], options: dict[str, Any], count: int) -> None:
    """Input and parameters get their derivatives."""
    assert_gradient(output_of(norm, **options), X[:2, :2, :2], *(GAMMA, BETA, MEAN, VAR)[:count])


@pytest.mark.parametrize("norm", [batch_norm, instance_norm, layer_norm, partial(group_norm, num_groups=2)])
def test_second_derivatives_match_central_differences(norm: Callable[..., Any]) -> None:
    """The written-out derivative of a normalization can itself be differentiated, by x and by gamma."""
    options = {"mode": "train"} if norm in (batch_norm, instance_norm) else {}
    running = (MEAN, VAR) if options else ()

    def gradient(x: jax.Array, gamma: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(output_of(norm, **options)(x, gamma, BETA, *running) ** 3))(x)

    assert_gradient(gradient, X[:2, :2, :2], GAMMA)


def test_half_precision_statistics_are_taken_in_float32() -> None:
    """A large offset does not drown the variance."""
    x = jnp.asarray(100 + values(64, 2), jnp.float16)
    y = layer_norm(x, jnp.ones(2), jnp.zeros(2))
    assert y.dtype == jnp.float16
    expected = normalized(np.asarray(x, np.float64), (-1,))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (partial(batch_norm, jnp.ones(3)), ShapeError, "batch_norm: expected an input of rank 2 or more"),
        (partial(batch_norm, jnp.ones((2, 4))), ShapeError, r"expected gamma of shape \(4,\) .*, got \(3,\)"),
        (partial(batch_norm, jnp.ones((2, 3)), mode="test"), OptionError, "expected mode to be one of"),
        (partial(batch_norm, jnp.ones((2, 3)), momentum=2.0), OptionError, "expected momentum"),
        (partial(batch_norm, jnp.ones((2, 3)), epsilon=-1.0), OptionError, "expected epsilon"),
        (partial(batch_norm, jnp.ones((2, 3)), channel_index=2), OptionError, "expected an axis in"),
        (partial(instance_norm, jnp.ones((2, 3))), ShapeError, "instance_norm: expected an input of rank 3"),
    ],
)
def test_wrong_arguments_raise(function: Callable[..., Any], error: type[Exception], message: str) -> None:
    """Shapes and options are checked before anything is computed."""
    with pytest.raises(error, match=message):
        function(*[jnp.ones(3)] * 4)


def test_groups_must_divide_the_channels() -> None:
    """Six channels make no four groups."""
    with pytest.raises(ShapeError, match="divisible by num_groups 4"):
        group_norm(*map(jnp.asarray, (X, GAMMA, BETA)), num_groups=4)
