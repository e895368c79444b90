"""Dense, bias, bilinear, embedding: values against NumPy, derivatives, errors."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import DtypeError, ShapeError
from engine.functional import bias, bilinear, check_bilinear, check_dense, check_embedding, dense, embedding, scale
from engine.shapes import Shape
from tests.engine.functional.support import assert_gradient, values

KERNEL, BIAS = values(3, 4, seed=1), values(4, seed=2)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 3), (2, 1, 5, 3)])
def test_dense_maps_the_last_axis(shape: Shape) -> None:
    """x W + b at any rank, with its derivative."""
    x = values(*shape)
    np.testing.assert_allclose(dense(x, KERNEL, BIAS), x @ KERNEL + BIAS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense(x, KERNEL), x @ KERNEL, rtol=1e-5, atol=1e-6)
    assert_gradient(dense, x, KERNEL, BIAS)


def test_bias_is_added_to_the_last_axis() -> None:
    """One value per unit."""
    x = values(2, 3, 4)
    np.testing.assert_allclose(bias(x, BIAS), x + BIAS, rtol=1e-6)


@pytest.mark.parametrize("channel_index", [-1, 0, 1])
def test_scale_multiplies_channels(channel_index: int) -> None:
    """One factor per channel, wherever the channels are."""
    x, factors = values(2, 3, 4), values((2, 3, 4)[channel_index], seed=1)
    shape = np.where(np.arange(3) == channel_index % 3, -1, 1)
    np.testing.assert_allclose(scale(x, factors, channel_index=channel_index), x * factors.reshape(shape), rtol=1e-6)
    with pytest.raises(ShapeError, match="scale: expected"):
        scale(x, np.ones(5), channel_index=channel_index)


@pytest.mark.parametrize("leading", [(5,), (2, 5)])
def test_bilinear_is_a_form_per_unit(leading: Shape) -> None:
    """x1^T K x2 + b at any rank, with its derivative."""
    x1, x2, kernel = values(*leading, 3), values(*leading, 2, seed=3), values(4, 3, 2, seed=4)
    expected = np.stack([((x1 @ k) * x2).sum(-1) for k in kernel], -1) + BIAS
    np.testing.assert_allclose(bilinear(x1, x2, kernel, BIAS), expected, rtol=1e-5, atol=1e-6)
    assert_gradient(bilinear, x1, x2, kernel, BIAS)


def test_embedding_looks_up_rows_and_stays_inside() -> None:
    """Indices outside the vocabulary take its first or last row."""
    rows = embedding(np.array([[0, 2], [-5, 99]]), KERNEL)
    np.testing.assert_allclose(rows, KERNEL[[[0, 2], [0, 2]]], rtol=1e-6)
    assert_gradient(lambda kernel: embedding(jnp.array([0, 2, 2]), kernel), KERNEL)


def test_embedding_of_floats_raises() -> None:
    """Token ids are integers."""
    with pytest.raises(DtypeError, match="embedding: expected integer indices, got dtype float32"):
        embedding(jnp.ones((2, 2)), KERNEL)


@pytest.mark.parametrize(
    ("x", "kernel", "bias_shape", "message"),
    [
        ((3,), (3, 4), None, "dense: expected an input of rank 2 or more"),
        ((2, 5), (3, 4), None, r"dense: expected a kernel of shape \(5, units\) for x of shape \(2, 5\), got \(3, 4\)"),
        ((2, 3), (3, 4), (3,), r"dense: expected a bias of shape \(4,\), got \(3,\)"),
    ],
)
def test_dense_shapes_that_do_not_fit_raise(x: Shape, kernel: Shape, bias_shape: Shape | None, message: str) -> None:
    """The message names what was expected and what came."""
    with pytest.raises(ShapeError, match=message):
        check_dense(x, kernel, bias_shape)


def test_other_shapes_that_do_not_fit_raise() -> None:
    """Inputs of a bilinear form share their leading axes; kernels have their ranks."""
    with pytest.raises(ShapeError, match="expected inputs of equal leading sizes"):
        check_bilinear((2, 3), (4, 2), (4, 3, 2))
    with pytest.raises(ShapeError, match=r"expected a kernel of shape \(units, 3, 2\)"):
        check_bilinear((2, 3), (2, 2), (4, 2, 3))
    with pytest.raises(ShapeError, match="expected a kernel of shape"):
        check_embedding((2,), (3,))
    with pytest.raises(ShapeError, match="bias: expected a bias"):
        bias(jnp.ones((2, 3)), jnp.ones(2))
