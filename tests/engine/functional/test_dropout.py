"""Dropout: masks, moments, keys, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import StatefulOutput, alpha_dropout, dropout, feature_alpha_dropout, keys, spatial_dropout
from tests.engine.functional.support import values

KEY = keys.from_seed(7)
OPS = [dropout, spatial_dropout, alpha_dropout, feature_alpha_dropout]


def train(op: Callable[..., Any], x: Any, **options: Any) -> StatefulOutput:
    """A training call."""
    result = op(jnp.asarray(x), KEY, mode="train", **options)
    assert isinstance(result, StatefulOutput)
    return result


@pytest.mark.parametrize("op", OPS)
def test_inference_passes_the_input(op: Callable[..., Any]) -> None:
    """Without training nothing is dropped and no state comes back."""
    x = jnp.ones((2, 3, 4))
    assert op(x, KEY, rate=0.9) is x


@pytest.mark.parametrize("op", OPS)
def test_training_returns_a_new_key_and_is_reproducible(op: Callable[..., Any]) -> None:
    """The same key gives the same mask; the next key is another, of the same form."""
    x = values(4, 50, 6).astype(np.float32)
    first, state = train(op, x)
    np.testing.assert_array_equal(first, train(op, x).output)
    assert (state["key"].shape, state["key"].dtype) == ((2,), jnp.uint32)
    following = op(x, state["key"], mode="train").output
    assert (np.asarray(following) != np.asarray(first)).any()


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_rescales(rate: float) -> None:
    """The dropped share is the rate, the rest is divided by what is kept."""
    output = np.asarray(train(dropout, np.ones((200, 200), np.float32), rate=rate).output)
    assert (output == 0).mean() == pytest.approx(rate, abs=0.01)
    np.testing.assert_allclose(output[output != 0], 1 / (1 - rate), rtol=1e-6)


def test_noise_shape_shares_draws() -> None:
    """An axis of size 1 in the mask is dropped as a whole."""
    output = np.asarray(train(dropout, np.ones((30, 40), np.float32), noise_shape=(30, 1)).output)
    assert ((output == 0).all(1) | (output != 0).all(1)).all()
    assert 0 < (output == 0).mean() < 1


@pytest.mark.parametrize("op", [spatial_dropout, feature_alpha_dropout])
@pytest.mark.parametrize("channels", ["first", "last"])
def test_feature_maps_are_dropped_as_a_whole(op: Callable[..., Any], channels: Any) -> None:
    """Every position of a sample's channel shares its fate; channels have their own."""
    axis = 1 if channels == "first" else -1
    x = np.moveaxis(np.ones((20, 30, 5, 5), np.float32), 1, axis)
    maps = np.moveaxis(np.asarray(train(op, x, channels=channels).output), axis, 1).reshape(20, 30, -1)
    assert (maps == maps[:, :, :1]).all()
    assert len(np.unique(maps)) == 2
    assert len(np.unique(maps[:, :, 0], axis=0)) > 1


@pytest.mark.parametrize("op", [alpha_dropout, feature_alpha_dropout])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(op: Callable[..., Any], rate: float) -> None:
    """Standard normal inputs stay standardized, which is what the correction is for."""
    x = np.random.default_rng(0).standard_normal((400, 4, 100)).astype(np.float32)
    output = np.asarray(train(op, x, rate=rate).output)
    assert output.mean() == pytest.approx(0, abs=0.02)
    assert output.var() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(op: Callable[..., Any], dtype: Any) -> None:
    """A result has the dtype of its input."""
    assert train(op, jnp.ones((2, 3, 4), dtype)).output.dtype == dtype


def test_gradient_passes_where_kept() -> None:
    """The derivative is the mask, rescaled."""
    x = jnp.ones((20, 20))
    output = train(dropout, x, rate=0.25).output
    gradient = jax.grad(lambda x: dropout(x, KEY, rate=0.25, mode="train").output.sum())(x)
    np.testing.assert_allclose(gradient, output, rtol=1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), "half", True])
def test_rate_outside_its_domain_raises(op: Callable[..., Any], rate: Any) -> None:
    """A rate of 1 would drop everything and divide by zero."""
    with pytest.raises(OptionError, match=r"expected rate to be a finite number of at least 0 below 1"):
        op(jnp.ones((2, 3, 4)), KEY, rate=rate)


def test_wrong_shapes_and_options_raise() -> None:
    """Masks that do not fit and inputs without feature maps are refused."""
    with pytest.raises(OptionError, match="expected a noise_shape of 1 or the size"):
        dropout(jnp.ones((2, 3)), KEY, noise_shape=(2, 2))
    with pytest.raises(ShapeError, match="spatial_dropout: expected an input of rank 3"):
        spatial_dropout(jnp.ones((2, 3)), KEY)
    with pytest.raises(OptionError, match="expected mode"):
        dropout(jnp.ones((2, 3)), KEY, mode="training")  # type: ignore[arg-type]
