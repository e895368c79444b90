"""Resizing images; the values are in the reference cases."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import resize
from engine.functional.resize import METHODS
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
