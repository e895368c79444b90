"""What the tests of layers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

import engine as ax


def sequence(name: str = "x", *shape: int) -> ax.Model:
    """An input of rows `[4, 3]`, or of another shape."""
    return ax.input(name, shape=(None, *(shape or (4, 3))))


def data(*shape: int, seed: int = 0) -> np.ndarray:
    """Fixed float32 numbers."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def assert_round_trip(path: Path, model: ax.Model, inputs: Any) -> ax.ModelState:
    """A bundle holds the same graph, parameters and predictions; returns the state."""
    init, predict = ax.build(model)
    state = init(inputs, seed=3)
    ax.bundle.write(path / "m.axon", model, state)
    bundle = ax.bundle.read(path / "m.axon")
    assert ax.bundle.graph_to_json(bundle.model)[0] == ax.bundle.graph_to_json(model)[0]
    assert bundle.state.paths() == state.paths() or set(bundle.state.paths()) == set(state.paths())
    expected, got = predict(state, inputs), ax.build(bundle.model)[1](bundle.state, inputs)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    return state
