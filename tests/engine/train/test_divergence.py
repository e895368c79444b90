"""A loss that is not finite: the error says which iteration, which layer, and where the last checkpoint is."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import DivergedError
from engine.train import trainer


def _data(rows: int = 40, size: int = 4) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return [({"x": x[i : i + size]}, np.ones((size, 2), np.float32)) for i in range(0, rows, size)]


def _input() -> ax.Model:
    return ax.input("x", shape=(None, 3))


def _error(model: ax.Model, data: object, learning_rate: float = 0.01, folder: Path | None = None) -> str:
    loop = trainer(model, "mean_squared_error", {"name": "sgd", "learning_rate": learning_rate})
    if folder is not None:
        loop = loop.checkpoint(folder, event="iteration_completed", every=2)
    with pytest.raises(DivergedError) as caught:
        loop.run(data, epochs=2)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_batch_that_is_not_finite_is_named():
    """The seventh batch holds an infinity."""
    data = _data()
    data[6][0]["x"][1, 2] = np.inf
    text = _error(_input().dense(2), data)
    assert "first in iteration 6 of epoch 0: the batch has values that are not finite" in text
    assert "there is no checkpoint before it" in text


def test_the_first_layer_whose_output_is_not_finite_is_named():
    """The second layer of a block takes the logarithm of what is negative in the fourth batch alone."""
    data = [({"x": np.full((4, 3), -1 if i == 3 else 1, np.float32)}, y) for i, (_, y) in enumerate(_data())]
    inner = ax.block(lambda x: x.nx(lambda v: v * 2).nx(jnp.log).dense(2), name="inner")
    assert "iteration 3 of epoch 0: the output of layer 'inner.nx_1' is the first" in _error(inner(_input()), data)


def test_parameters_spoilt_by_a_gradient_are_named():
    """The root of 0 has an infinite derivative: the loss of iteration 2 is finite, its update is not."""
    data = [({"x": np.full((4, 3), 0 if i == 2 else 1, np.float32)}, y) for i, (_, y) in enumerate(_data())]
    model = _input().dense(2, use_bias=False, name="first").nx(lambda v: jnp.sqrt(jnp.abs(v)))
    text = _error(model, data)
    assert "first in iteration 3 of epoch 0: parameters are not finite since the update before: first.kernel" in text


def test_steps_that_grow_without_bound_end_at_the_first_that_overflows(tmp_path: Path):
    """A learning rate of 1e12; the checkpoint named is one before, and restores."""
    text = _error(_input().dense(2), _data(), 1e12, tmp_path)
    assert "first in iteration " in text
    saved = Path(text.rsplit("the last checkpoint before it is ")[1])
    assert saved.parent == tmp_path
    assert saved.is_dir()


def test_a_generator_cannot_give_its_batch_again():
    """The iteration is known all the same."""
    data = _data()
    data[1][0]["x"][:] = np.nan
    assert "first in iteration 1 of epoch 0: its batch is not to be had again" in _error(_input().dense(2), iter(data))


def test_watching_changes_no_number():
    """Loops that raise and loops that ignore end with the same parameters, but for rounding in another fusion."""
    results = []
    for on_nonfinite in ("raise", "ignore"):
        model = _input().dense(8, activation="relu").dropout(rate=0.3).batch_norm().dense(2)
        loop = trainer(model, "mean_squared_error", "adam", on_nonfinite=on_nonfinite)  # type: ignore[arg-type]
        results.append(jax.tree.leaves(loop.run(_data(), epochs=3).step_state))
    for watched, plain in zip(*results, strict=True):
        np.testing.assert_allclose(watched, plain, rtol=1e-5, atol=1e-7)
