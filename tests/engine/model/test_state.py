"""Model state: trees, frozen marks, immutability."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import StateError


@pytest.fixture
def state() -> ax.ModelState:
    """A dense layer and a batch_norm layer."""
    return ax.build(ax.input("x", shape=(None, 3)).dense(2).batch_norm())[0]()


def test_trainable_leaves_out_frozen_parameters(state: ax.ModelState):
    """Gradients and optimizers never see a frozen leaf."""
    frozen = state.freeze(lambda path: path.endswith("kernel"))
    assert set(frozen.trainable()["dense_0"]) == {"bias"}
    changed = frozen.with_trainable(jax.tree.map(lambda leaf: leaf + 1, frozen.trainable()))
    np.testing.assert_array_equal(changed.parameters["dense_0"]["kernel"], state.parameters["dense_0"]["kernel"])
    np.testing.assert_array_equal(changed.parameters["dense_0"]["bias"], state.parameters["dense_0"]["bias"] + 1)


def test_freezing_adds_and_unfreezing_removes(state: ax.ModelState):
    """A second freeze keeps the first."""
    both = state.freeze(lambda p: p == "dense_0.kernel").freeze(lambda p: p == "dense_0.bias")
    assert both.frozen == {"dense_0.kernel", "dense_0.bias"}
    assert both.unfreeze(lambda p: p == "dense_0.bias").frozen == {"dense_0.kernel"}
    assert state.frozen == frozenset()


def test_frozen_state_is_not_updated(state: ax.ModelState):
    """Frozen running statistics stay."""
    frozen = state.freeze(lambda path: path == "batch_norm_0.mean")
    update = {"batch_norm_0": {"mean": np.ones(2), "var": np.full(2, 5.0)}}
    result = frozen.update(state=update)
    np.testing.assert_array_equal(result.state["batch_norm_0"]["mean"], np.zeros(2))
    np.testing.assert_array_equal(result.state["batch_norm_0"]["var"], np.full(2, 5.0))


def test_unknown_paths_are_refused(state: ax.ModelState):
    """A typo in a path is an error that lists the paths."""
    with pytest.raises(StateError, match=r"expected a path out of .*dense_0.kernel, got 'dense_9.kernel'"):
        state.update(parameters={"dense_9": {"kernel": np.zeros(1)}})


def test_it_is_a_pytree_with_static_marks(state: ax.ModelState):
    """Leaves are arrays; the frozen set is part of the structure."""
    frozen = state.freeze()
    mapped = jax.tree.map(lambda leaf: leaf * 2, frozen)
    assert mapped.frozen == frozen.frozen
    assert jax.tree.structure(state) != jax.tree.structure(frozen)
