"""Steps asked for by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.errors import DataError, OptionError
from engine.preprocess import (
    OneHot,
    Standardize,
    Vocabulary,
    apply_to_column,
    check_asked,
    column_shape,
    fit_asked,
)

X = np.random.default_rng(1).normal(5, 3, (50, 2))
WORDS = {"name": "vocabulary", "tokens": ["a", "b"], "length": 3, "padding": 0}


def test_steps_are_fitted_on_chunks() -> None:
    """Mean and standard deviation of all of them, per feature or for all; classes are the input's last axis."""
    step = fit_asked({"name": "standardize"}, (None, 2), lambda: [X[:20], X[20:]])
    assert isinstance(step, Standardize)
    np.testing.assert_allclose(step.mean, X.mean(axis=0))
    np.testing.assert_allclose(step.std, X.std(axis=0))
    whole = fit_asked({"name": "standardize", "per": "all"}, (None, 2), lambda: [X])
    assert isinstance(whole, Standardize)
    np.testing.assert_allclose(whole.mean, [X.mean()])
    assert fit_asked({"name": "one_hot"}, (None, 4), list) == OneHot(4)
    assert fit_asked(WORDS, (None, 3), list) == Vocabulary(("a", "b"), length=3, padding=0)
    with pytest.raises(DataError, match="at least one row"):
        fit_asked({"name": "standardize"}, (None, 2), list)


@pytest.mark.parametrize(
    ("asked", "shape", "message"),
    [
        ({}, (None, 2), "expected name to be one of 'standardize', 'one_hot', 'vocabulary', got None"),
        ({"name": []}, (None, 2), "expected name to be one of"),
        ({"name": "eval"}, (None, 2), "expected name to be one of"),
        ({"name": "standardize", "mean": [1]}, (None, 2), "standardize: expected options out of per, got 'mean'"),
        ({"name": "standardize", "per": 3}, (None, 2), "expected per to be 'feature' or 'all', got 3"),
        ({"name": "one_hot", "classes": 3}, (None, 2), "one_hot: expected options out of none, got 'classes'"),
        ({"name": "one_hot"}, (), "last axis of a known size"),
        ({"name": "one_hot"}, (4,), "one_hot: expected a model's input with a last axis of 4"),
        ({"name": "vocabulary"}, (None, 2), "vocabulary: expected tokens, got none"),
        (WORDS, (None, 2), r"vocabulary: expected a model's input of shape \(rows, 3\)"),
        ({**WORDS, "tokens": "ab"}, (None, 3), "expected tokens to be a list"),
    ],
)
def test_what_cannot_be_had_is_refused(asked: dict[str, Any], shape: tuple[int | None, ...], message: str) -> None:
    """Without any data."""
    with pytest.raises(OptionError, match=message):
        check_asked("x", asked, shape)


def test_columns_hold_numbers() -> None:
    """Also where a vocabulary makes them of texts."""
    scale, words = Standardize((1.0,), (2.0,)), Vocabulary(("a", "b"), length=3, padding=0)
    assert column_shape((scale,), "x", (None, 2)) == (None, 2)
    assert column_shape((OneHot(3),), "x", (None, 3)) == (None,)
    assert column_shape((words,), "x", (None, 3)) == (None, 3)
    tokens = np.int32([[1, 0, 1]])
    np.testing.assert_array_equal(apply_to_column((words,), tokens), tokens)
    np.testing.assert_array_equal(apply_to_column((OneHot(2),), tokens), [[[0, 1], [1, 0], [0, 1]]])
    np.testing.assert_array_equal(apply_to_column((scale,), tokens), [[0, -0.5, 0]])
