"""Postprocessing: what it computes, its JSON, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BundleError, DataError, OptionError
from engine.postprocess import OutputSteps, Postprocess, from_json, largest, to_json
from engine.preprocess import Standardize

PRICE = Standardize((100.0,), (20.0,))


def test_a_standardised_target_comes_back_in_its_units() -> None:
    """In float64 and rounded once, one standardisation for all or one per feature."""
    values = np.float32([[-1.5], [0.1]])
    given = Postprocess({"price": OutputSteps(unstandardize=PRICE)}).apply({"price": values, "other": 3})
    assert given["price"].dtype == np.float32
    np.testing.assert_array_equal(given["price"], (values.astype(np.float64) * 20 + 100).astype(np.float32))
    assert given["other"] == 3
    pair = Standardize((1.0, 2.0), (3.0, 4.0))
    half = np.array([[1, 2]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(pair.invert(half), np.array([[4, 10]], ml_dtypes.bfloat16))
    with pytest.raises(DataError, match="expected a last axis of 2"):
        pair.invert(np.zeros((2, 3)))


def test_standardising_and_back_is_the_same() -> None:
    """Within float32's rounding, of the mean's size."""
    raw = np.random.default_rng(0).normal(50, 7, (100, 1)).astype(np.float32)
    steps = Standardize((50.0,), (7.0,))
    np.testing.assert_allclose(steps.invert(steps.apply(raw)), raw, rtol=1e-6)


def test_top_k_gives_the_largest_with_their_labels() -> None:
    """Equal ones by their place, NaN last; a class without a label has its number."""
    scores = np.float32([[0.1, 0.7, 0.2, 0.7], [np.nan, 1, 3, -np.inf]])
    steps = OutputSteps(labels=("cat", "dög", "mouse"), top_k=3)
    found = steps.apply("y", scores)
    assert list(found) == ["y_scores", "y_labels"]
    np.testing.assert_array_equal(found["y_scores"], np.float32([[0.7, 0.7, 0.2], [3, 1, -np.inf]]))
    assert found["y_labels"].tolist() == [["dög", "3", "mouse"], ["mouse", "dög", "3"]]
    with pytest.raises(DataError, match=r"output 'y': expected \[rows, classes\] of 3 or more"):
        steps.apply("y", np.zeros((2, 2)))


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_largest_is_pythons_own_sorting(rows: list[list[int]]) -> None:
    """To the limits of 64 bits."""
    values, places = largest(np.array(rows, np.int64), 3)
    for row, got, at in zip(rows, values.tolist(), places.tolist(), strict=True):
        expected = sorted(range(4), key=lambda place: (-row[place], place))[:3]
        assert (at, got) == (expected, [row[place] for place in expected])


NUMBERS = st.floats(-1e30, 1e30)


@st.composite
def output_steps(draw: st.DrawFn) -> OutputSteps:
    """Any that can be made."""
    size = draw(st.integers(1, 4))
    mean = draw(st.lists(NUMBERS, min_size=size, max_size=size))
    std = draw(st.lists(st.floats(1e-20, 1e20), min_size=size, max_size=size))
    labels = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
    scale = draw(st.none() | st.just(Standardize(tuple(mean), tuple(std))))
    top_k = draw(st.none() | st.integers(1, 100)) if labels else None
    return OutputSteps(scale, tuple(labels), top_k)


@given(st.dictionaries(st.text(min_size=1, max_size=10), output_steps().filter(lambda s: s != OutputSteps())))
def test_json_round_trip(outputs: dict[str, OutputSteps]) -> None:
    """Through text."""
    steps = Postprocess(outputs)
    assert from_json(json.loads(json.dumps(to_json(steps)))) == steps


@pytest.mark.parametrize(
    ("steps", "shape", "dtype", "message"),
    [
        (OutputSteps(unstandardize=PRICE), (None, 1), np.int32, "floating-point numbers, got int32"),
        (OutputSteps(unstandardize=Standardize((1.0, 2.0), (1.0, 1.0))), (None, 3), np.float32, "last axis of 2"),
        (OutputSteps(labels=("a", "b")), (None, 1), np.float32, "an output with 2 or more classes"),
        (OutputSteps(labels=("a",)), (None,), np.float32, "an output with 1 or more classes"),
        (OutputSteps(labels=("a",), top_k=2), (None, 4, 5), np.float32, r"top_k: expected an output \[rows, classes\]"),
        (OutputSteps(labels=("a",), top_k=6), (None, 5), np.float32, "of 6 or more"),
    ],
)
def test_what_does_not_fit_an_output_is_refused(
    steps: OutputSteps, shape: tuple[int | None, ...], dtype: Any, message: str
) -> None:
    """By shape and type."""
    with pytest.raises(OptionError, match=message):
        steps.check(shape, np.dtype(dtype))


def test_what_fits_an_output_is_taken() -> None:
    """bfloat16 is a floating-point number, and there may be more classes than labels."""
    OutputSteps(PRICE).check((None, 7), np.dtype(ml_dtypes.bfloat16))
    OutputSteps(labels=("a", "b"), top_k=3).check((None, 3), np.dtype(np.float32))


def document(**outputs: Any) -> dict[str, Any]:
    """A document with these outputs."""
    return {"format": "axon.postprocess", "version": 1, "outputs": outputs}


HOSTILE = [
    None,
    [],
    {},
    {"format": "axon.postprocess", "version": 2, "outputs": {}},
    {"format": "axon.postprocess", "version": 1},
    {**document(), "more": 1},
    {**document(), "outputs": []},
    document(y=1),
    document(y={}),
    document(y={"eval": 1}),
    document(y={"unstandardize": 1}),
    document(y={"unstandardize": {"mean": [1]}}),
    document(y={"unstandardize": {"mean": [1], "std": [0]}}),
    document(y={"unstandardize": {"mean": [10**400], "std": [1]}}),
    document(y={"labels": "abc"}),
    document(y={"labels": [1]}),
    document(y={"labels": ["a" * 1001]}),
    document(y={"labels": ["a"] * 100_001}),
    document(y={"labels": ["ä" * 1000] * 1100}),
    document(y={"labels": ["\ud800"]}),
    document(y={"labels": {"a": 1}}),
    document(y={"top_k": 1}),
    document(y={"labels": ["a"], "top_k": 0}),
    document(y={"labels": ["a"], "top_k": True}),
    document(y={"labels": ["a"], "top_k": 1.5}),
    document(**{"": {"labels": ["a"]}}),
    document(**{"a" * 300: {"labels": ["a"]}}),
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused(value: Any) -> None:
    """One error that says where."""
    with pytest.raises(BundleError, match=r"postprocess\.json"):
        from_json(value)


def test_what_is_no_steps_is_refused() -> None:
    """Names and values, when made in Python."""
    with pytest.raises(OptionError, match="expected names of outputs"):
        Postprocess({"": OutputSteps(labels=("a",))})
    with pytest.raises(OptionError, match="expected OutputSteps for 'y'"):
        Postprocess({"y": ("a",)})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="expected unstandardize to be a Standardize"):
        OutputSteps(unstandardize=1)  # type: ignore[arg-type]
