"""Losses and metrics of one's own in bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import BundleError, GraphError, ShapeError
from tests.engine.bundle.test_programs import _with_graph

RNG = np.random.default_rng(0)


def squares(y_true: Any, y_pred: Any, *, rows: Any = None) -> Any:
    """A loss that takes row weights."""
    errors = jnp.mean((y_true - y_pred) ** 2, axis=-1)
    return jnp.mean(errors) if rows is None else jnp.sum(errors * rows) / jnp.sum(rows)


def accuracy(y_true: Any, y_pred: Any) -> Any:
    """A metric of class indices."""
    return jnp.mean(jnp.argmax(y_pred, -1) == y_true)


FUNCTIONS = [
    ax.bundle.Function("squares", squares, ax.bundle.Template((None, 3))),
    ax.bundle.Function("accuracy", accuracy, ax.bundle.Template((None,), "s32"), kind="metric"),
]


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 4)).dense(3)


def _bundle(path: Path, functions: Any = FUNCTIONS) -> Any:
    model = _model()
    ax.bundle.write(path, model, ax.build(model)[0](seed=1), functions=functions)
    return ax.bundle.read(path, trusted=True)


def test_functions_that_travelled_compute_the_same(tmp_path: Path):
    """Values with and without row weights, and gradients."""
    functions = _bundle(tmp_path / "m.axon").functions
    y, p, rows = RNG.standard_normal((5, 3)), RNG.standard_normal((5, 3)), np.array([1, 0, 2, 1, 1])
    y, p = y.astype(np.float32), p.astype(np.float32)
    np.testing.assert_allclose(functions["squares"](y, p), squares(y, p), rtol=1e-6)
    np.testing.assert_allclose(functions["squares"](y, p, rows=rows), squares(y, p, rows=rows), rtol=1e-6)
    got = jax.grad(functions["squares"], argnums=1)(y, p)
    np.testing.assert_allclose(got, 2 * (p - y) / 15, rtol=1e-5, atol=1e-7)
    assert functions["accuracy"](np.argmax(p, -1).astype(np.int32), p) == 1


def test_a_trainer_takes_a_loss_that_travelled(tmp_path: Path):
    """As a loss and as a metric, with row weights too: the same parameters as with the function."""
    bundle = _bundle(tmp_path / "m.axon")
    x = RNG.standard_normal((16, 4)).astype(np.float32)
    y = (x @ RNG.standard_normal((4, 3))).astype(np.float32)
    batches = [(x, y, np.r_[np.ones(12), np.zeros(4)].astype(np.float32))] * 3
    states = [
        ax.train.trainer(_model(), loss, "adam").run(batches, epochs=2, state=bundle.state).model_state
        for loss in (squares, bundle.functions["squares"])
    ]
    for one, other in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    run = ax.train.trainer(bundle.model, "mean_squared_error", "adam").metric(bundle.functions["squares"], "squares")
    history = run.run([(x, y)] * 3, epochs=1, state=bundle.state).history
    np.testing.assert_allclose(history[0]["squares"], history[0]["loss"], rtol=1e-5)


def test_functions_are_written_again_byte_for_byte(tmp_path: Path):
    """Without the Python functions."""
    bundle = _bundle(tmp_path / "a.axon")
    ax.bundle.write(tmp_path / "b.axon", bundle.model, bundle.state, functions=list(bundle.functions.values()))
    assert (tmp_path / "a.axon").read_bytes() == (tmp_path / "b.axon").read_bytes()


def test_wrong_shapes_and_weights_are_refused(tmp_path: Path):
    """A loss without row weights says so by its signature, as a function does."""
    functions = _bundle(tmp_path / "m.axon").functions
    with pytest.raises(ShapeError, match="squares: expected arguments"):
        functions["squares"](np.ones((5, 4), np.float32), np.ones((5, 3), np.float32))
    with pytest.raises(TypeError, match="rows"):
        functions["accuracy"](np.zeros(5, np.int32), np.ones((5, 3), np.float32), rows=np.ones(5))


def test_functions_that_cannot_travel_are_refused(tmp_path: Path):
    """By name and with the reason."""
    template = ax.bundle.Template((None, 3))
    for function, reason in (
        (ax.bundle.Function("f", lambda t, p: jax.debug.print("x") or t.sum(), template), "'f'.*debug_print"),
        (ax.bundle.Function("f", lambda t, p: float(p.sum()), template), "'f'.*Concretization"),
        (ax.bundle.Function("f.g", squares, template), "distinct names"),
        (ax.bundle.Function("f", squares, (None, 3)), "expected targets as a Template"),
    ):
        with pytest.raises(GraphError, match=reason):
            _bundle(tmp_path / "m.axon", [function])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, m: g.update(functions=[1]), "losses and metrics"),
        (lambda g, m: g["functions"].update(others={}), "losses and metrics"),
        (lambda g, m: g["functions"].update(losses=3), "an object of at most"),
        (lambda g, m: g["functions"]["losses"].update({"a.b": {"program": "squares_0"}}), "distinct names"),
        (lambda g, m: g["functions"]["losses"]["squares"].update(program="x"), "the name of an artifact"),
        (lambda g, m: g["functions"]["losses"]["squares"].update(rows="squares_0"), "a program of 3 arguments"),
        (lambda g, m: g["functions"]["losses"]["squares"].update(more=1), "an object with program"),
    ],
)
def test_functions_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path):
    """Every mismatch is a problem of the bundle."""
    _bundle(tmp_path / "m.axon")
    with pytest.raises(BundleError, match=message):
        ax.bundle.read(_with_graph(tmp_path / "m.axon", tmp_path / "n.axon", change), trusted=True)
