"""Resizing images; the values are in the reference cases."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.image
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import resize
from engine.functional.resize import METHODS, _products_pay
from tests.engine.functional.support import assert_gradient, values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(3, 2), (5, 6), (8, 9)])
def test_constant_image_stays_constant(method: Any, size: tuple[int, int]) -> None:
    """Weights sum to one everywhere, at the borders too, in both layouts and all dtypes."""
    for dtype in (jnp.float32, jnp.bfloat16):
        last = resize(jnp.full((1, 5, 6, 2), 3, dtype), size=size, method=method)
        assert (last.shape, last.dtype) == ((1, *size, 2), dtype)
        np.testing.assert_allclose(np.asarray(last, np.float32), 3, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5)
    assert resize(jnp.ones((1, 2, 5, 6)), size=size, method=method, channels="first").shape == (1, 2, *size)


def test_bilinear_enlargement_interpolates_between_pixel_centres() -> None:
    """Doubling a ramp gives quarters and three quarters, and holds the edges."""
    row = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    assert resize(row, size=(1, 4), method="bilinear").ravel().tolist() == [0, 1, 3, 4]


def test_antialias_averages_when_shrinking() -> None:
    """With it every pixel counts, without it only the nearest ones."""
    row = jnp.asarray([0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 1, 8, 1)
    assert resize(row, size=(1, 2), method="bilinear").sum() > 0
    assert resize(row, size=(1, 2), method="bilinear", antialias=False).sum() == 0


@pytest.mark.parametrize("method", [method for method in METHODS if method != "nearest"])
@pytest.mark.parametrize(
    ("shape", "size", "channels", "antialias"),
    [
        ((2, 5, 6, 16), (10, 12), "last", True),
        ((2, 5, 6, 16), (5, 7), "last", True),
        ((2, 8, 9, 64), (3, 4), "last", True),
        ((2, 8, 9, 64), (6, 4), "last", False),
        ((2, 3, 2, 2), (40, 31), "first", True),
        ((0, 5, 6, 16), (10, 12), "last", True),
    ],
)
def test_products_of_matrices_are_those_of_jax(
    method: Any, shape: tuple[int, ...], size: tuple[int, int], channels: Any, antialias: bool
) -> None:
    """Value and gradient, over shrinking and enlarging, in both layouts."""
    full = (*shape[:2], *size) if channels == "first" else (shape[0], *size, shape[3])
    x, cotangent = jnp.asarray(values(*shape), jnp.float32), jnp.asarray(values(*full, seed=1), jnp.float32)
    ours = partial(resize, size=size, method=method, antialias=antialias, channels=channels)
    theirs = partial(jax.image.resize, shape=full, method=method, antialias=antialias)
    (y, vjp), (expected, expected_vjp) = jax.vjp(ours, x), jax.vjp(theirs, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vjp(cotangent)[0], expected_vjp(cotangent)[0], rtol=1e-4, atol=1e-5)


def test_products_are_for_the_cpu_and_for_weights_no_larger_than_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is JAX's own."""
    few, many = (1, 32, 32, 3), (1, 32, 32, 64)
    assert not _products_pay(few, (1, 64, 64, 3), "bilinear")
    assert not _products_pay(many, (1, 64, 64, 64), "nearest")
    assert _products_pay(many, (1, 64, 64, 64), "bilinear")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not _products_pay(many, (1, 64, 64, 64), "bilinear")


def test_gradient_matches_central_differences() -> None:
    """Linear in the image."""
    assert_gradient(lambda x: resize(x, size=(3, 7), method="bicubic"), values(1, 5, 4, 2))


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((5, 6, 2), {}, ShapeError, "resize: expected an input of rank 4"),
        ((1, 5, 6, 2), {"method": "cubic"}, OptionError, "expected method to be one of 'nearest', .*, got 'cubic'"),
        ((1, 5, 6, 2), {"size": (0, 3)}, OptionError, "expected size to be an integer of at least 1"),
        ((1, 5, 6, 2), {"size": (3,)}, OptionError, "expected size to be an integer or 2 integers"),
    ],
)
def test_wrong_arguments_raise(
    shape: tuple[int, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Rank, method and size are checked."""
    with pytest.raises(error, match=message):
        resize(jnp.ones(shape), **{"size": (3, 3), **options})
