"""Flatten, reshape, transpose, pad against NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from engine.errors import OptionError, ShapeError
from engine.functional import flatten, pad, reshape, transpose
from engine.shapes import Shape
from tests.engine.functional.support import values


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 3, 4), (2, 12)), ((2, 3), (2, 3)), ((3,), (3, 1)), ((0, 2), (0, 2))]
)
def test_flatten_keeps_the_batch(shape: Shape, expected: Shape) -> None:
    """All axes but the first become one."""
    x = values(*shape)
    np.testing.assert_allclose(flatten(x), x.reshape(expected), rtol=1e-6)


@pytest.mark.parametrize(
    ("new_shape", "expected"),
    [((3, 4), (3, 4)), (("batch", 3, "auto"), (2, 3, 2)), (("auto",), (12,)), ([2, "batch", 3], (2, 2, 3))],
)
def test_reshape_fills_placeholders(new_shape: Any, expected: Shape) -> None:
    """`batch` is the first size, `auto` what is left."""
    x = values(2, 6)
    np.testing.assert_allclose(reshape(x, new_shape=new_shape), x.reshape(expected), rtol=1e-6)


def test_reshape_takes_a_batch_of_unknown_or_no_size() -> None:
    """The batch's own size need not be known, and may be zero."""
    (batch,) = export.symbolic_shape("batch")
    program = export.export(jax.jit(lambda x: reshape(x, new_shape=("batch", "auto", 2))))
    assert program(jax.ShapeDtypeStruct((batch, 6), jnp.float32)).out_avals[0].shape == (batch, 3, 2)
    assert reshape(jnp.ones((0, 6)), new_shape=("batch", "auto", 2)).shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("new_shape", "error", "message"),
    [
        ((5, 2), ShapeError, r"expected as many elements as in shape \(2, 6\), got \(5, 2\)"),
        ((5, "auto"), ShapeError, "expected sizes that divide"),
        ((0, "auto"), ShapeError, "expected sizes that divide"),
        (("auto", "auto"), OptionError, "expected at most one 'auto'"),
        ((-1, 12), OptionError, "expected new_shape to be an integer of at least 0, got -1"),
        (("rest", 2), OptionError, "got 'rest'"),
        ("auto", OptionError, "expected new_shape to be a sequence"),
    ],
)
def test_reshape_that_does_not_fit_raises(new_shape: Any, error: type[Exception], message: str) -> None:
    """Sizes that do not multiply to the input's, and entries that are no sizes."""
    with pytest.raises(error, match=message):
        reshape(jnp.ones((2, 6)), new_shape=new_shape)


@pytest.mark.parametrize("permutation", [None, (0, 2, 1), (-1, 0, 1)])
def test_transpose_is_that_of_numpy(permutation: Any) -> None:
    """`None` reverses all axes, the batch too."""
    x = values(2, 3, 4)
    np.testing.assert_allclose(transpose(x, permutation=permutation), x.transpose(permutation), rtol=1e-6)


@pytest.mark.parametrize("permutation", [(0, 1), (0, 0, 1), (0, 1, 3)])
def test_transpose_demands_a_permutation(permutation: Any) -> None:
    """Every axis is named once."""
    with pytest.raises(OptionError, match="transpose: expected"):
        transpose(jnp.ones((2, 3, 4)), permutation=permutation)


@pytest.mark.parametrize("channels", ["first", "last"])
def test_pad_pads_and_crops_spatial_axes(channels: Any) -> None:
    """Positive numbers pad, negative ones crop, batch and channels stay."""
    x = values(2, 5, 6, 3)
    expected = np.pad(x[:, 1:], ((0, 0), (0, 2), (1, 0), (0, 0)), constant_values=1.5)
    moved = x if channels == "last" else np.moveaxis(x, -1, 1)
    actual = pad(jnp.asarray(moved), config=[(-1, 2), (1, 0)], value=1.5, channels=channels)
    np.testing.assert_allclose(actual if channels == "last" else np.moveaxis(actual, 1, -1), expected, rtol=1e-6)


def test_pad_that_does_not_fit_raises() -> None:
    """A pair per spatial axis, and no more cropped than there is."""
    with pytest.raises(OptionError, match="pad: expected config of 1 pairs"):
        pad(jnp.ones((2, 5, 3)), config=[(1, 1), (1, 1)])
    with pytest.raises(ShapeError, match="pad: expected to crop at most"):
        pad(jnp.ones((2, 5, 3)), config=[(-3, -3)])
