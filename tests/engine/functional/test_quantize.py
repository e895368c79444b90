"""8-bit arithmetic: rounding errors within their bounds, and the products of integers exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from engine import functional as F
from engine.errors import DtypeError, ShapeError
from engine.functional.quantize import MAX_PRODUCTS, quantize, scale_of
from tests.engine.functional.support import values


@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((5, 4), -1), ((3, 2, 5, 4), 3), ((6, 5, 3, 3), 0)])
def test_no_value_is_off_by_more_than_half_a_scale(shape, axis):
    """The largest ones included, which are half a step beyond the end of int8."""
    x = values(*shape).astype(np.float32)
    q = F.QTensor.from_tensor(x, axis=axis)
    assert q.value.dtype == jnp.int8
    assert q.scale.shape == (shape[axis],)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    np.testing.assert_allclose(q.scale, np.abs(x).max(others) / 127.5, rtol=1e-6)
    error = np.abs(np.asarray(q.to_tensor(axis=axis), np.float64) - x)
    assert (error <= np.expand_dims(np.asarray(q.scale, np.float64), others) * 0.5 * (1 + 1e-4)).all()


def test_zeros_and_nothing_have_a_scale():
    """A unit of zeros stays zero, and an empty tensor stays empty."""
    q = F.QTensor.from_tensor(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(q.to_tensor(), np.zeros((3, 2)))
    assert F.QTensor.from_tensor(jnp.zeros((0, 2))).value.shape == (0, 2)
    with pytest.raises(DtypeError, match="expected a float dtype, got int32"):
        F.QTensor.from_tensor(jnp.zeros((3, 2), jnp.int32))


def test_weight_only_dense_stays_within_its_bound():
    """Half a scale times the sum of the inputs' sizes, per output."""
    x, w, b = values(4, 6, 20), values(20, 7, seed=1), values(7, seed=2)
    kernel = F.QTensor.from_tensor(w.astype(np.float32))
    y = np.asarray(F.weight_only_quantized_dense(x.astype(np.float32), kernel, b.astype(np.float32)), np.float64)
    bound = np.abs(x).sum(-1, keepdims=True) * np.asarray(kernel.scale, np.float64) / 2
    error = np.abs(y - (x @ w + b))
    assert (error <= bound + 1e-5).all()
    assert error.max() > 0.01 * bound.max()


def test_static_dense_is_the_product_of_the_rounded_and_stays_within_its_bound():
    """Integers are multiplied and summed exactly; both roundings are bounded by half a scale."""
    x, w = values(9, 300, low=-3, high=3), values(300, 8, seed=1)
    kernel, input_scale = F.QTensor.from_tensor(w.astype(np.float32)), scale_of(jnp.float32(3))
    y = np.asarray(F.quantized_dense(x.astype(np.float32), kernel, input_scale), np.float64)
    q = np.asarray(quantize(x.astype(np.float32), input_scale)).astype(np.int64)
    scales = np.asarray(kernel.scale, np.float64) * float(input_scale)
    np.testing.assert_allclose(y, (q @ np.asarray(kernel.value).astype(np.int64)) * scales, rtol=1e-6)
    rounded = np.abs(np.asarray(kernel.to_tensor(), np.float64)).sum(0)
    bound = np.abs(x).sum(-1, keepdims=True) * np.asarray(kernel.scale) / 2 + rounded * float(input_scale) / 2
    assert (np.abs(y - x @ w) <= bound + 1e-5).all()


@pytest.mark.parametrize("channels", ["last", "first"])
def test_convolutions_equal_those_of_the_rounded_kernel(channels):
    """With strides, dilations, padding and groups: `conv` of what the int8 tensors stand for is the reference."""
    x, w, b = (v.astype(np.float32) for v in (values(2, 9, 8, 4), values(3, 2, 2, 6, seed=1), values(6, seed=2)))
    if channels == "first":
        x, w = np.moveaxis(x, -1, 1), np.transpose(w, (3, 2, 0, 1))
    axis = -1 if channels == "last" else 0
    options = {"strides": (2, 1), "padding": "same", "input_dilation": 2, "kernel_dilation": (1, 2)}
    options |= {"feature_group_size": 2, "channels": channels}
    kernel = F.QTensor.from_tensor(w, axis=axis)
    got = F.weight_only_quantized_conv(x, kernel, b, **options)
    np.testing.assert_allclose(got, F.conv(x, kernel.to_tensor(axis=axis), b, **options), rtol=1e-5, atol=1e-5)
    input_scale = scale_of(jnp.max(jnp.abs(x)))
    got = F.quantized_conv(x, kernel, input_scale, b, **options)
    rounded = quantize(x, input_scale).astype(jnp.float32) * input_scale
    np.testing.assert_allclose(got, F.conv(rounded, kernel.to_tensor(axis=axis), b, **options), rtol=1e-5, atol=1e-5)


def test_half_precision_sums_do_not_overflow():
    """2,000 products of 8 and 127 exceed float16 before they are scaled back."""
    kernel = F.QTensor(jnp.full((2000, 1), 127, jnp.int8), jnp.full((1,), 1e-4, jnp.float32))
    y = F.weight_only_quantized_dense(jnp.full((1, 2000), 8, jnp.float16), kernel)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, 2000 * 8 * 127e-4, rtol=1e-3)


def test_wrong_kernels_are_refused():
    """A scale per unit, int8 values, and sums that fit into 32 bits."""
    kernel = F.QTensor.from_tensor(jnp.ones((3, 2)))
    x = jnp.ones((1, 3))
    with pytest.raises(ShapeError, match=r"expected scales of shape \(2,\), got \(3,\)"):
        F.weight_only_quantized_dense(x, kernel._replace(scale=jnp.ones(3)))
    with pytest.raises(DtypeError, match="expected a kernel of int8 values, got float32"):
        F.quantized_dense(x, kernel._replace(value=jnp.ones((3, 2))), jnp.ones(()))
    with pytest.raises(ShapeError, match=f"expected at most {MAX_PRODUCTS} products"):
        F.check_quantized_dense((1, MAX_PRODUCTS + 1), (MAX_PRODUCTS + 1, 1), (1,))
    with pytest.raises(ShapeError, match=f"expected at most {MAX_PRODUCTS} products"):
        F.check_quantized_conv((1, 400, 400, 1), (400, 400, 1, 1), (1,))


def test_batch_size_may_stay_unknown():
    """One exported program serves all batches, on both platforms."""
    kernel, scale = F.QTensor.from_tensor(jnp.ones((3, 3, 4, 2))), jnp.ones(())
    (batch,) = export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 8, 8, 4), jnp.float32)
    program = export.export(jax.jit(lambda x: F.quantized_conv(x, kernel, scale)), platforms=("cpu", "cuda"))(x)
    assert program.in_avals[0].shape[0] == batch
