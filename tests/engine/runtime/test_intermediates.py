"""Executables that give the values of layers besides the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError, OptionError
from engine.runtime import Executable, intermediates

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 4)).dense(3, activation="relu").dense(2)


def test_exposed_layers_come_with_every_call():
    """Outputs as before, and the layers by their names, in each bucket."""
    model = _model()
    state = ax.build(model)[0]()
    plain = Executable(model, state, buckets=[2])({"x": X})
    executable = Executable(model, state, buckets=[1, 2], exposed=["relu_0"])
    assert [(s.name, s.shape, s.dtype) for s in executable.intermediates] == [("relu_0", (None, 3), np.float32)]
    assert [s.name for s in executable.outputs] == ["dense_1"]
    assert executable.mixes_rows is None
    found = executable({"x": X})
    assert found.keys() == {"dense_1", "relu_0"}
    np.testing.assert_allclose(found["dense_1"], plain["dense_1"], rtol=1e-6)
    wanted = np.maximum(X @ np.asarray(state.parameters["dense_0"]["kernel"]), 0)
    np.testing.assert_allclose(found["relu_0"], wanted, rtol=1e-5)
    np.testing.assert_allclose(executable({"x": X[:1]})["relu_0"], wanted[:1], rtol=1e-5)


def test_true_means_all_that_have_a_row_per_row():
    """Not inputs, not outputs, not structures, not constants; containers keep the names of their parts."""
    x = ax.input("x", shape=(None, 2, 4))
    sequence, _ = x.lstm(3, name="cell")
    model = ax.container({"cell": sequence.flatten(), "b": ax.add(x, ax.constant(np.ones((2, 4), np.float32)))})
    names = [s.name for s in intermediates(model, True)]
    assert "x" not in names
    assert "cell" not in names
    assert not any(name.startswith("constant") for name in names)
    assert {"flatten_0", "add_0"} <= set(names)
    found = Executable(model, ax.build(model)[0](), buckets=[2], exposed=True)({"x": np.ones((2, 2, 4), np.float32)})
    np.testing.assert_array_equal(found["flatten_0"], found["cell"])
    assert found.keys() == {"cell", "b", *names}


def test_nothing_is_exposed_unless_asked_for():
    """No name, no cost: the program of the model itself."""
    assert intermediates(_model(), False) == intermediates(_model(), []) == []
    assert Executable(_model(), ax.build(_model())[0](), buckets=[1]).intermediates == []


@pytest.mark.parametrize(
    ("exposed", "kind", "message"),
    [
        (["dense_7"], GraphError, "expected the name of a layer"),
        (["constant_0"], OptionError, r"layer 'constant_0': expected an array with a row per row.*got shape \(4,\)"),
        (["cell"], OptionError, "layer 'cell': .*got a structure"),
    ],
)
def test_layers_that_cannot_be_split_into_rows_are_refused(
    exposed: list[str], kind: type[Exception], message: str
) -> None:
    """By name and reason."""
    x = ax.input("x", shape=(None, 2, 4))
    model: Any = ax.container((x.lstm(3, name="cell")[0], ax.add(x, ax.constant(np.ones(4, np.float32)))))
    with pytest.raises(kind, match=message):
        intermediates(model, exposed)


def test_intermediates_that_mix_rows_end_batching():
    """A layer in which callers' rows meet is no less a leak for being asked by name."""
    model = ax.layer(lambda x: x - x.mean(0), ax.input("x", shape=(None, 4)), name="centred").relu()
    assert Executable(model, ax.build(model)[0](), buckets=[2], exposed=["centred"]).mixes_rows is not None
