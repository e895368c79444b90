"""The extension classification: the largest values as texts, checked against Python's own sorting."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.core.classification import MAX_TEXTS, largest
from service.core.errors import InvalidRequest, TooLarge


def test_highest_first_per_row() -> None:
    """`value:index`, one row of texts per row."""
    scores = np.array([[0.1, 0.7, 0.2], [3, 1, 2]], np.float32)
    assert largest(scores, 2, "y", batched=True).tolist() == [[b"0.7:1", b"0.2:2"], [b"3.0:0", b"2.0:2"]]
    assert largest(scores, 9, "y", batched=True).shape == (2, 3)


def test_whole_output_without_a_batch() -> None:
    """One list over all elements, numbered as they lie."""
    assert largest(np.array([[1, 4], [3, 2]], np.int64), 3, "y", batched=False).tolist() == [b"4:1", b"3:2", b"2:3"]
    assert largest(np.zeros((0, 3), np.float32), 3, "y", batched=True).shape == (0, 3)
    assert largest(np.float32([]), 3, "y", batched=False).shape == (0,)
    assert largest(np.array(5.0), 1, "y", batched=False).tolist() == [b"5.0:0"]
    assert largest(np.array([5.0, 6.0]), 1, "y", batched=True).tolist() == [[b"5.0:0"], [b"6.0:0"]]


@given(
    hnp.arrays(
        st.sampled_from([np.int8, np.int64, np.uint64, np.float16, np.float32, np.float64]),
        st.tuples(st.integers(1, 3), st.integers(1, 6)),
    ),
    st.integers(1, 8),
)
def test_order_is_that_of_python(array: np.ndarray, count: int) -> None:
    """Ties by index, NaN last, the limits of every datatype."""
    for row, texts in zip(array, largest(array, count, "y", batched=True), strict=True):
        values = row.tolist()
        nan_last = sorted(
            range(len(values)), key=lambda i, v=values: (math.isnan(v[i]), 0 if math.isnan(v[i]) else -v[i])
        )
        parts = [text.decode().split(":") for text in texts]
        assert [int(index) for _, index in parts] == nan_last[:count]
        for value, index in parts:
            assert np.array_equal(row.dtype.type(value), row[int(index)], equal_nan=row.dtype.kind == "f")


def test_bfloat16_is_widened() -> None:
    """Its values are FP32's."""
    array = np.array([1.5, -np.inf, 2.5], ml_dtypes.bfloat16)
    assert largest(array, 3, "y", batched=False).tolist() == [b"2.5:2", b"1.5:0", b"-inf:1"]


def test_what_has_no_order_or_too_many_is_refused() -> None:
    """Truth values and bytes; more texts than a reply may have."""
    for array in (np.array([True]), np.array([b"a"], object)):
        with pytest.raises(InvalidRequest, match="expected classification of numbers"):
            largest(array, 1, "y", batched=False)
    many = np.zeros((2, MAX_TEXTS), np.int8)
    with pytest.raises(TooLarge, match="got 2 rows of 50001"):
        largest(many, MAX_TEXTS // 2 + 1, "y", batched=True)
    assert largest(many, 1, "y", batched=True).shape == (2, 1)
