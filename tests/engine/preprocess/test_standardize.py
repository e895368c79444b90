"""Standardisation and one-hot vectors."""

from __future__ import annotations

import fractions
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError, OptionError
from engine.preprocess import OneHot, Standardize, fit_standardize
from tests.effort import examples


def exact(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation in exact arithmetic."""
    numbers = [fractions.Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return float(mean), float(sum((n - mean) ** 2 for n in numbers) / len(numbers)) ** 0.5


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    st.sampled_from([0.0, 1e6]),
    st.integers(1, 7),
)
@settings(max_examples=examples(50), deadline=None)
def test_statistics_are_those_of_exact_arithmetic(values: list[float], offset: float, size: int) -> None:
    """However the rows come in chunks, and far from zero, where a sum of squares would have no digits left."""
    column = np.asarray(values) + offset
    mean, std = exact(column.tolist())
    found = fit_standardize(column[start : start + size, None] for start in range(0, len(column), size))
    assert found.mean[0] == pytest.approx(mean, rel=1e-12, abs=1e-9)
    if std > 1e-6:
        assert found.std[0] == pytest.approx(std, rel=1e-6)


def test_each_feature_has_statistics_of_its_own() -> None:
    """The last axis; or one for all; against NumPy."""
    x = np.random.default_rng(0).random((50, 4, 4, 3)).astype("f4") * [1, 10, 100]
    found = fit_standardize([x[:20], x[20:]])
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.std((0, 1, 2)), rtol=1e-12)
    whole = fit_standardize([x[:20], x[20:]], per="all")
    np.testing.assert_allclose([whole.mean[0], whole.std[0]], [x.mean(), x.std()], rtol=1e-12)
    scaled = found.apply(x)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, rtol=1e-5)


def test_a_feature_that_never_varies_stays_finite() -> None:
    """Its standard deviation counts as 1."""
    found = fit_standardize([np.full((5, 2), 7)])
    assert found == Standardize((7.0, 7.0), (1.0, 1.0))
    np.testing.assert_array_equal(found.apply(np.full((1, 2), 7)), [[0, 0]])


def test_unfit_values_are_refused() -> None:
    """The row is named."""
    with pytest.raises(DataError, match=r"expected finite numbers of float32, got .*in row 3"):
        fit_standardize([np.ones((2, 1)), np.array([[1.0], [np.nan]])])
    with pytest.raises(DataError, match="expected at least one row"):
        fit_standardize([])
    with pytest.raises(DataError, match="expected rows of 2 features"):
        fit_standardize([np.ones((2, 2)), np.ones((2, 3))])
    with pytest.raises(OptionError, match="'feature' or 'all'"):
        fit_standardize([np.ones((2, 2))], per="row")
    with pytest.raises(DataError, match=r"expected a last axis of 2, got shape \(3,\)"):
        Standardize((0, 0), (1, 1)).apply(np.ones(3))
    with pytest.raises(DataError, match="expected numbers"):
        Standardize((0,), (1,)).apply(np.array(["a"]))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,), (0.0,)),
        ((0.0,), (-1.0,)),
        ((0.0,), (1e-40,)),
        ((float("nan"),), (1.0,)),
        ((0.0,), (float("inf"),)),
        ((1e39,), (1.0,)),
        ((0.0, 0.0), (1.0,)),
        ((), ()),
        ("a", "b"),
        ((True,), (1.0,)),
        (None, None),
    ],
)
def test_unfit_statistics_are_refused(mean: Any, std: Any) -> None:
    """Every number is a finite float32, every std positive."""
    with pytest.raises(OptionError, match="standardize: expected"):
        Standardize(mean, std)


def test_one_hot_vectors() -> None:
    """1 at the class; anything that is no class is an error."""
    np.testing.assert_array_equal(OneHot(3).apply([[0, 2]]), [[[1, 0, 0], [0, 0, 1]]])
    assert OneHot(3).apply(np.zeros((0, 2), int)).shape == (0, 2, 3)
    for bad in ([3], [-1], [0.5]):
        with pytest.raises(DataError, match="one_hot: expected"):
            OneHot(3).apply(bad)
    for classes in (0, 2**30, "3", True):
        with pytest.raises(OptionError, match="one_hot: expected classes"):
            OneHot(classes)  # type: ignore[arg-type]
