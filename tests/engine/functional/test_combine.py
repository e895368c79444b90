"""Add, subtract, multiply, concatenate, split against NumPy."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import add, concatenate, multiply, split, stack_columns, subtract
from tests.engine.functional.support import assert_gradient, values

PARTS = [values(2, 3), values(1, 3, seed=1), values(2, 1, seed=2)]
ELEMENTWISE = [(add, operator.add), (subtract, operator.sub), (multiply, operator.mul)]


@pytest.mark.parametrize(("op", "reference"), ELEMENTWISE)
def test_elementwise_op_reduces_from_left_to_right(op: Callable[..., jax.Array], reference: Any) -> None:
    """Three inputs, broadcast, with their derivatives."""
    np.testing.assert_allclose(op(*PARTS), reduce(reference, PARTS), rtol=1e-5, atol=1e-6)
    assert_gradient(op, *PARTS)


@pytest.mark.parametrize("op", [op for op, _ in ELEMENTWISE])
def test_shapes_that_do_not_broadcast_raise(op: Callable[..., jax.Array]) -> None:
    """The message names both shapes."""
    with pytest.raises(ShapeError, match=r"expected shapes that broadcast, got \(2, 3\) and \(2, 2\)"):
        op(jnp.ones((2, 3)), jnp.ones((2, 2)))
    with pytest.raises(ShapeError, match="expected one input or more"):
        op()


def test_concatenate_joins_along_an_axis() -> None:
    """Any axis, promoted dtypes."""
    x, y = values(2, 3), values(2, 2)
    np.testing.assert_allclose(concatenate(x, y), np.concatenate([x, y], -1), rtol=1e-6)
    assert concatenate(jnp.ones((1, 2), jnp.int32), jnp.ones((2, 2)), axis=0).dtype == jnp.float32
    with pytest.raises(ShapeError, match="concatenate: expected inputs that differ along axis 0 only"):
        concatenate(x, y, axis=0)
    with pytest.raises(OptionError, match="expected an axis"):
        concatenate(x, x, axis=2)


@pytest.mark.parametrize(("splits", "sizes"), [(3, [2, 2, 2]), ([1, 2, 3], [1, 2, 3]), ([6], [6])])
@pytest.mark.parametrize("axis", [0, 1])
def test_split_parts_an_axis(splits: Any, sizes: list[int], axis: int) -> None:
    """Equal parts, or parts of given sizes; concatenated they are the whole."""
    x = values(6, 6)
    parts = split(jnp.asarray(x), splits=splits, axis=axis)
    assert [part.shape[axis] for part in parts] == sizes
    np.testing.assert_allclose(concatenate(*parts, axis=axis), x, rtol=1e-6)


def test_split_that_does_not_fit_raises() -> None:
    """Parts are equal or sum to the whole."""
    with pytest.raises(ShapeError, match="split: expected a size divisible by 4"):
        split(jnp.ones((2, 6)), splits=4)
    with pytest.raises(OptionError, match="expected splits that sum to 6"):
        split(jnp.ones((2, 6)), splits=[2, 2])


def test_stack_columns_joins_sorted_columns() -> None:
    """Vectors and matrices side by side, in the order of their names, without the ignored."""
    columns = {"b": jnp.asarray([1.0, 2.0]), "a": jnp.asarray([[3, 4], [5, 6]]), "c": jnp.zeros((2, 9))}
    assert stack_columns(columns, ignore=["c"]).tolist() == [[3, 4, 1], [5, 6, 2]]


@pytest.mark.parametrize("columns", [{"x": (2,)}, {"x": (2,), "y": (2, 3, 4)}, {"y": (2,), "z": (3,)}])
def test_stack_columns_that_do_not_fit_raise(columns: dict[str, tuple[int, ...]]) -> None:
    """A column at least, of rank 1 or 2, of one batch."""
    with pytest.raises(ShapeError):
        stack_columns({name: jnp.zeros(shape) for name, shape in columns.items()}, ignore=["x"])
