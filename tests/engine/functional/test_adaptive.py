"""Pooling to a fixed size, and blur pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from engine.errors import OptionError, ShapeError
from engine.functional import adaptive_avg_pool, adaptive_lp_pool, adaptive_max_pool, blur_pool
from tests.effort import examples
from tests.engine.functional.support import assert_gradient, values

REDUCTIONS = [
    (adaptive_avg_pool, np.mean),
    (adaptive_max_pool, np.max),
    (adaptive_lp_pool, lambda x, axis: np.sqrt((x**2).sum(axis))),
]


@given(st.data())
@settings(max_examples=examples(60), deadline=None)
def test_output_has_the_size_asked_for(data: st.DataObject) -> None:
    """Any size up to the input's, in both layouts."""
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    output = [data.draw(st.integers(1, size)) for size in sizes]
    x = jax.ShapeDtypeStruct((2, *sizes, 3), np.float32)
    assert jax.eval_shape(lambda x: adaptive_avg_pool(x, output_size=output), x).shape == (2, *output, 3)
    x = jax.ShapeDtypeStruct((2, 3, *sizes), np.float32)
    shape = jax.eval_shape(lambda x: adaptive_max_pool(x, output_size=output, channels="first"), x).shape
    assert shape == (2, 3, *output)


@pytest.mark.parametrize(("op", "reduce"), REDUCTIONS)
@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_windows_are_equal_and_cover_the_input(op: Callable[..., Any], reduce: Callable[..., Any], size: int) -> None:
    """Windows of `in - (out - 1) * (in // out)` elements at distances of `in // out`."""
    x = values(2, 7, 3).astype(np.float32)
    step = 7 // size
    window = 7 - (size - 1) * step
    expected = np.stack([reduce(x[:, i * step : i * step + window], axis=1) for i in range(size)], 1)
    np.testing.assert_allclose(op(x, output_size=size), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [op for op, _ in REDUCTIONS])
def test_no_size_keeps_the_input(op: Callable[..., Any]) -> None:
    """Windows of one element."""
    x = np.abs(values(2, 3, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(op(x), x, rtol=1e-6)
    assert_gradient(lambda x: op(x, output_size=(2, 3)), x)


def test_wrong_sizes_raise() -> None:
    """More outputs than inputs are refused."""
    with pytest.raises(ShapeError, match=r"expected spatial sizes of at least the output_size \(4,\)"):
        adaptive_avg_pool(values(2, 3, 1), output_size=4)
    with pytest.raises(OptionError, match="expected output_size to be an integer of at least 1, got 0"):
        adaptive_avg_pool(values(2, 3, 1), output_size=0)


@pytest.mark.parametrize("channels", ["first", "last"])
def test_blur_pool_is_a_binomial_filter(channels: Any) -> None:
    """SciPy's correlation with zeros outside, channel by channel."""
    x = values(2, 4, 5, 3).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1])[None, :, :, None] / 16
    expected = ndimage.correlate(x, kernel, mode="constant")
    moved = x if channels == "last" else np.moveaxis(x, -1, 1)
    actual = blur_pool(moved, channels=channels)
    np.testing.assert_allclose(
        actual if channels == "last" else np.moveaxis(actual, 1, -1), expected, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ShapeError, match="blur_pool: expected an input of rank 4"):
        blur_pool(x[0], channels=channels)
