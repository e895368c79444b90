"""Models that give the values of layers within them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def test_layers_are_given_beside_the_output():
    """With the names and the state of the model itself, jitted or not."""
    model = ax.input("x", shape=(None, 3)).dense(4).relu().dense(2)
    state = ax.build(model)[0]()
    more = ax.with_outputs(model, ["relu_0", "dense_0", "relu_0"])
    assert list(more.names().values())[:-1] == list(model.names().values())
    found = jax.jit(ax.build(more)[1])(state, X)
    first = ax.build(ax.with_outputs(model, []))[1](state, X)
    np.testing.assert_allclose(found["outputs"], ax.build(model)[1](state, X), rtol=1e-6)
    assert found["intermediates"].keys() == {"relu_0", "dense_0"}
    assert first["intermediates"] == {}
    np.testing.assert_allclose(found["intermediates"]["dense_0"], X @ state.parameters["dense_0"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(
        found["intermediates"]["relu_0"], np.maximum(np.asarray(found["intermediates"]["dense_0"]), 0)
    )


def test_structured_outputs_stay_structured():
    """The output under its key is what the model gave."""
    x = ax.input("x", shape=(None, 3))
    model = ax.container({"a": x.dense(2), "b": (x.relu(),)})
    found = ax.build(ax.with_outputs(model, ["x"]))[1](ax.build(model)[0](), X)
    assert jax.tree.structure(found["outputs"]) == jax.tree.structure({"a": 0, "b": (0,)})
    np.testing.assert_array_equal(found["intermediates"]["x"], X)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dense_3", "expected the name of a layer, such as dense_0.*got 'dense_3'"),
        ("enc.dense_0", "got a layer of the block 'enc'; name the block"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    """A name of no layer, and one inside a block."""
    model = ax.block(lambda x: x.dense(3), name="enc")(ax.input("x", shape=(None, 3)).dense(3))
    with pytest.raises(GraphError, match=message):
        ax.with_outputs(model, [name])
