"""Structures of models and of inputs: dicts, tuples and dataclass instances, nested at will."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError


@dataclass(frozen=True)
class Pair:
    """Two of something."""

    first: Any
    second: Any


class Point(NamedTuple):
    """A tuple with names."""

    x: Any
    y: Any


X = np.array([[1.0, -2.0]], np.float32)


def test_dataclasses_in_containers_become_dicts_by_their_fields():
    """At any depth, in predictions and for the layers that take parts."""
    x = ax.input("x", shape=(None, 2))
    model = ax.container({"pair": Pair(x, (x.relu(), Pair(x.tanh(), x)))})
    value = ax.build(model)[1](ax.ModelState.empty(), X)
    assert set(value) == {"pair"}
    assert set(value["pair"]) == {"first", "second"}
    relu, deep = value["pair"]["second"]
    np.testing.assert_array_equal(relu, [[1, 0]])
    np.testing.assert_allclose(deep["first"], np.tanh(X), rtol=1e-6)
    part = model.elem(["pair", "second", 1, "second"])
    np.testing.assert_array_equal(ax.build(part)[1](ax.ModelState.empty(), X), X)


def test_dataclasses_and_named_tuples_are_taken_as_inputs():
    """All inputs of a model at once, and the structured value of one."""
    model = ax.subtract(ax.input("first", shape=(None, 2)), ax.input("second", shape=(None, 2)))
    predict = ax.build(model)[1]
    np.testing.assert_array_equal(predict(ax.ModelState.empty(), Pair(X, 2 * X)), -X)
    whole = ax.input("whole")
    model = ax.add(whole.elem("first"), whole.elem(["second", 1]))
    init, predict = ax.build(model)
    value = {"whole": Pair(X, Point(X, 3 * X))}
    np.testing.assert_array_equal(predict(init(value), value), 4 * X)


def test_a_container_of_other_things_says_where():
    """The path leads into the dataclass."""
    x = ax.input("x", shape=(None, 2))
    with pytest.raises(GraphError, match=r"container: expected a model at \.pair\.second\[1\], got int"):
        ax.container({"pair": Pair(x, (x, 3))})
