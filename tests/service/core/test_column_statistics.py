"""Statistics of columns, against NumPy over all values at once."""

from __future__ import annotations

import numpy as np
import pytest

from service.core.column_statistics import MAX_CLASSES, Collector


def collect(values: np.ndarray, pieces: int):
    """The statistics of values fed in pieces."""
    collector = Collector(classes=values.dtype.kind in "biu")
    for piece in np.array_split(values, pieces):
        collector.feed(piece)
    return collector.result()


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_pieces_give_the_statistics_of_the_whole(dtype, pieces):
    """However the values are cut; far from zero, where a sum of squares would lose every digit."""
    values = (np.random.default_rng(0).integers(0, 100, 999) + 10**9 * (dtype in ("i8", "f8"))).astype(dtype)
    found = collect(values, pieces)
    wide = values.astype(np.float64)
    assert (found.count, found.missing, found.min, found.max) == (999, 0, wide.min(), wide.max())
    np.testing.assert_allclose([found.mean, found.std], [wide.mean(), wide.std()], rtol=1e-9)
    if values.dtype.kind != "f":
        numbers, counts = np.unique(values, return_counts=True)
        assert found.classes == dict(zip(map(int, numbers), map(int, counts), strict=True))


def test_gaps_are_counted_and_left_out():
    """NaN and infinities are no values."""
    found = collect(np.float32([1, np.nan, 3, np.inf, -np.inf]), 2)
    assert (found.count, found.missing, found.min, found.max, found.mean, found.std) == (2, 3, 1, 3, 2, 1)
    nothing = collect(np.float32([np.nan]), 1)
    assert (nothing.count, nothing.missing, nothing.min, nothing.std) == (0, 1, None, None)


def test_numbers_that_do_not_fit_are_none():
    """The deviation of the largest numbers is beyond FP64; everything that is given is a number of JSON."""
    found = collect(np.float64([1.7e308, -1.7e308, 1.7e308]), 1)
    assert (found.min, found.max, found.std) == (-1.7e308, 1.7e308, None)


def test_many_different_values_are_no_classes():
    """Beyond the limit nothing is kept per value, in one piece or in several."""
    for pieces in (1, 5):
        assert collect(np.arange(MAX_CLASSES + 1), pieces).classes is None
        assert len(collect(np.arange(MAX_CLASSES), pieces).classes) == MAX_CLASSES
