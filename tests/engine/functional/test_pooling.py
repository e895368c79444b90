"""Pooling: output sizes against jax.lax, the gradient of max_pool, layouts, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional import (
    avg_pool,
    check_max_pool,
    global_avg_pool,
    global_lp_pool,
    global_max_pool,
    lp_pool,
    max_pool,
)
from engine.shapes import Shape
from tests.effort import examples
from tests.engine.functional.support import assert_gradient, values


@st.composite
def problems(draw: st.DrawFn) -> tuple[Shape, dict[str, Any]]:
    """An input and options, of one to three spatial axes, channels last."""
    rank = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    window, dilations = per_axis(1, 4), per_axis(1, 3)
    pads = tuple(
        draw(st.tuples(*[st.integers(0, (size - 1) * hole)] * 2)) for size, hole in zip(window, dilations, strict=True)
    )
    options = {"kernel_size": window, "strides": per_axis(1, 3), "padding": pads, "window_dilations": dilations}
    return (2, *per_axis(1, 8), 3), options


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@given(problem=problems())
@settings(max_examples=examples(60), deadline=None)
def test_output_shape_is_that_of_lax(pool: Callable[..., jax.Array], problem: tuple[Shape, dict[str, Any]]) -> None:
    """Sizes follow lax for all windows, strides, paddings and dilations; where no window fits, an error says so."""
    shape, options = problem
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    expected = jax.eval_shape(
        lambda x: lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, *options["kernel_size"], 1),
            (1, *options["strides"], 1),
            ((0, 0), *options["padding"], (0, 0)),
            window_dilation=(1, *options["window_dilations"], 1),
        ),
        x,
    ).shape
    if 0 in expected:
        with pytest.raises(ShapeError, match="expected spatial sizes of at least the window"):
            jax.eval_shape(partial(pool, **options), x)
    else:
        assert jax.eval_shape(partial(pool, **options), x).shape == expected


def scattered(g: jax.Array, x: jax.Array, window: Shape) -> jax.Array:
    """The gradient as XLA gives it: by select-and-scatter."""
    _, gradient = jax.vjp(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"), x)
    return gradient(g)[0]


def gradient_of(pool: Callable[[jax.Array], jax.Array], g: jax.Array, x: jax.Array) -> jax.Array:
    """The gradient for a cotangent."""
    return jax.vjp(pool, x)[1](g)[0]


@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    [((3, 8, 2), 2), ((2, 9, 7, 3), (2, 3)), ((2, 5, 4, 6, 2), 2), ((2, 12, 4, 1), (4, 4)), ((1, 4, 4, 2), 1)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_of_tiling_windows_is_that_of_xla(shape: Shape, kernel_size: Any, dtype: Any) -> None:
    """Bit for bit, with ties, both zeros, infinities and cropped edges."""
    x = values(*shape, low=-2, high=2).round()
    x.flat[::7] = -np.inf
    x = jnp.asarray(x * np.where(values(*shape, seed=3) > 0, 1, -1), dtype)
    pool = partial(max_pool, kernel_size=kernel_size)
    y = pool(x)
    rank = len(shape) - 2
    window = (1, *((kernel_size,) * rank if isinstance(kernel_size, int) else kernel_size), 1)
    g = jnp.asarray(values(*y.shape, seed=1), dtype)
    np.testing.assert_array_equal(y, lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"))
    expected = jax.jit(partial(scattered, window=window))(g, x)
    np.testing.assert_array_equal(jax.jit(partial(gradient_of, pool))(g, x), expected)
    batched = jax.jit(jax.vmap(lambda g, x: gradient_of(pool, g[None], x[None])[0]))
    np.testing.assert_array_equal(batched(g, x), expected)


@pytest.mark.parametrize(
    ("shape", "kernel_size", "strides", "padding"),
    [
        ((2, 9, 8, 3), 3, 2, ((1, 1), (0, 2))),
        ((2, 6, 5, 3), 2, 1, ((0, 0), (0, 0))),
        ((3, 12, 2), 5, 3, ((4, 0),)),
        ((2, 9, 9, 3), 2, 3, ((0, 0), (0, 0))),
        ((0, 6, 5, 3), 2, 1, ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_of_overlapping_windows_is_that_of_xla(
    shape: Shape, kernel_size: int, strides: int, padding: Any, dtype: Any
) -> None:
    """Bit for bit, with ties; cotangents are small integers, whose sums are exact in any order."""
    x = jnp.asarray(values(*shape, low=-2, high=2).round(), dtype)
    rank = len(shape) - 2
    window, steps = (1, *(kernel_size,) * rank, 1), (1, *(strides,) * rank, 1)
    pads = ((0, 0), *padding, (0, 0))
    pool = partial(max_pool, kernel_size=kernel_size, strides=strides, padding=padding)
    y, vjp = jax.vjp(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, steps, pads), x)
    g = jnp.asarray(values(*y.shape, seed=1, low=-3, high=3).round(), dtype)
    np.testing.assert_array_equal(pool(x), y)
    np.testing.assert_array_equal(jax.jit(partial(gradient_of, pool))(g, x), vjp(g)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 5},
        {"kernel_size": 2, "padding": "same"},
        {"kernel_size": 3, "strides": 2},
        {"kernel_size": 2, "strides": 1, "window_dilations": 2},
        {"kernel_size": 2, "padding": [(1, 0), (0, 1)]},
        {"kernel_size": (2, 3), "channels": "first"},
    ],
)
@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_gradient_matches_central_differences(pool: Callable[..., jax.Array], options: dict[str, Any]) -> None:
    """Windows that tile, overlap, are padded or dilated have their derivative, forwards and backwards."""
    assert_gradient(
        partial(pool, **options), np.random.default_rng(0).permutation(2 * 7 * 6 * 8).reshape(2, 7, 6, 8) / 50
    )


@pytest.mark.parametrize("pool", [global_avg_pool, global_max_pool])
@pytest.mark.parametrize("channels", ["first", "last"])
@pytest.mark.parametrize("keep_axes", [False, True])
def test_global_pool_reduces_spatial_axes(pool: Callable[..., jax.Array], channels: Any, keep_axes: bool) -> None:
    """NumPy's mean or maximum over the spatial axes, kept with size 1 if asked; derivative included."""
    x = values(2, 3, 4, 5).astype(np.float32)
    axes = (1, 2) if channels == "last" else (2, 3)
    reduce = np.mean if pool is global_avg_pool else np.max
    function = partial(pool, channels=channels, keep_axes=keep_axes)
    np.testing.assert_allclose(function(x), reduce(x, axis=axes, keepdims=keep_axes), rtol=1e-6)
    assert_gradient(function, x)


def test_padding_never_wins_and_counts_as_zero() -> None:
    """A padded maximum is one of the elements; a padded mean divides by the whole window."""
    x = -jnp.ones((1, 3, 1))
    assert max_pool(x, kernel_size=2, padding="same").ravel().tolist() == [-1, -1]
    assert avg_pool(x, kernel_size=2, padding="same").ravel().tolist() == [-1, -0.5]


def test_integers_are_pooled() -> None:
    """The maximum keeps an integer dtype, the mean is a float; half precision stays."""
    x = jnp.arange(4).reshape(1, 4, 1)
    assert max_pool(x, kernel_size=2).ravel().tolist() == [1, 3]
    assert avg_pool(x, kernel_size=2).ravel().tolist() == [0.5, 2.5]
    assert avg_pool(x.astype(jnp.bfloat16), kernel_size=2).dtype == jnp.bfloat16


def test_half_precision_mean_is_summed_in_float32() -> None:
    """A thousand ones average to one, although half precision cannot count so far."""
    x = jnp.ones((1, 4096, 1), jnp.bfloat16)
    assert avg_pool(x, kernel_size=4096).item() == 1
    assert global_avg_pool(x).item() == 1


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((2, 5), {"kernel_size": 2}, ShapeError, "max_pool: expected an input of rank 3 or more"),
        ((2, 5, 1), {"kernel_size": 6}, ShapeError, "expected spatial sizes of at least the window's"),
        ((2, 5, 1), {"kernel_size": 0}, OptionError, "expected kernel_size to be an integer of at least 1, got 0"),
        ((2, 5, 1), {"kernel_size": (2, 2)}, OptionError, "expected kernel_size to be an integer or 1 integers"),
        ((2, 5, 1), {"kernel_size": 2, "strides": -1}, OptionError, "expected strides"),
        ((2, 5, 1), {"kernel_size": 2, "padding": [(2, 0)]}, OptionError, "expected padding below the window's"),
        ((2, 5, 1), {"kernel_size": 2, "channels": 1}, OptionError, "expected channels"),
    ],
)
def test_wrong_arguments_raise(shape: Shape, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """The check speaks before XLA can."""
    with pytest.raises(error, match=message):
        check_max_pool(shape, **options)


@pytest.mark.parametrize("norm", [1, 2, 3, 2.5])
def test_lp_pool_is_the_norm_of_each_window(norm: float) -> None:
    """NumPy's vector norm, of negative values too, with its derivative."""
    x = values(2, 6, 3)
    expected = np.linalg.norm(x.reshape(2, 3, 2, 3), norm, axis=2)
    np.testing.assert_allclose(lp_pool(jnp.asarray(x), kernel_size=2, norm=norm), expected, rtol=1e-5)
    np.testing.assert_allclose(global_lp_pool(jnp.asarray(x), norm=norm), np.linalg.norm(x, norm, axis=1), rtol=1e-5)
    for strides in (None, 1):
        assert_gradient(partial(lp_pool, kernel_size=2, strides=strides, norm=norm), x)
    assert_gradient(partial(global_lp_pool, norm=norm, channels="first", keep_axes=True), x)


def test_lp_pool_of_zeros_has_no_gradient() -> None:
    """The root's infinite slope at zero does not turn into NaN."""
    gradient = jax.grad(lambda x: lp_pool(x, kernel_size=2).sum())(jnp.zeros((1, 4, 1)))
    assert not np.asarray(gradient).any()
    with pytest.raises(OptionError, match="lp_pool: expected norm to be a finite number of at least 1"):
        lp_pool(jnp.zeros((1, 4, 1)), kernel_size=2, norm=0)
