"""Traces: a model's functions as text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError

X = np.ones((2, 3), np.float32)


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 3)).dense(4, activation="tanh").dropout(rate=0.5).dense(1)


def _loss(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    return jnp.mean((y_true - y_pred) ** 2)


def test_init_draws_every_parameter():
    """From a key, into the shapes of the template."""
    text = ax.trace_init(_model(), X)
    assert "f32[3,4]" in text
    assert "random_bits" in text
    assert "func.func public @main" in ax.trace_init(_model(), X, form="stablehlo")


def test_forward_shows_the_mode():
    """Training draws a mask, inference does not; the arguments are state and inputs."""
    state = ax.build(_model())[0]()
    inference, train = (ax.trace_forward(_model(), {"x": X}, state, mode) for mode in ("inference", "train"))
    assert "tanh" in inference
    assert "random_split" not in inference
    assert "random_split" in train
    assert "stablehlo.dot_general" in ax.trace_forward(_model(), X, state, form="stablehlo")


def test_backward_gives_a_gradient_per_trainable_parameter():
    """Frozen ones have none; targets have the prediction's shape."""
    state = ax.build(_model())[0]()
    text = ax.trace_backward(_model(), X, state.freeze(lambda path: path.startswith("dense_0.")), _loss)
    assert text.count("f32[2,1]") > 0
    main = ax.trace_backward(_model(), X, state, _loss, form="stablehlo")
    results = main[main.index("@main") :].split("->", 1)[1].split("{\n")[0]
    assert [results.count(f"tensor<{shape}xf32>") for shape in ("3x4", "4x1", "4", "1")] == [1, 1, 1, 1]


def test_abstract_values_and_wide_graphs_are_traced():
    """Nothing is computed: shapes and types are enough; a 64-bit graph is traced in 64 bits."""
    model = ax.apply_policy(_model(), ax.Policy("f64", "f64", "f64"))
    state = ax.build(model)[0]()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    text = ax.trace_forward(model, jax.ShapeDtypeStruct((2, 3), np.float32), abstract)
    assert "f64[2,1]" in text
    assert "f64[3,4]" in ax.trace_backward(model, X, abstract, _loss)


def test_unknown_form_is_refused():
    """Two forms exist."""
    with pytest.raises(OptionError, match="'jaxpr', 'stablehlo', got 'hlo'"):
        ax.trace_init(_model(), X, form="hlo")  # type: ignore[arg-type]
