"""Whatever a graph can hold travels: random models come back as they were, and so does each kind of feature."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import engine as ax
from engine.bundle import Bundle
from engine.precision import Policy
from tests.engine.model_strategy import inputs_for, models

Path_ = tuple[Any, ...]
BF16 = Policy("f32", "bf16", "f32")


def _round_trip(model: ax.Model, state: ax.ModelState) -> Bundle:
    """What is read of a written bundle."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.axon"
        ax.bundle.write(path, model, state)
        return ax.bundle.read(path)


def _same(model: ax.Model, state: ax.ModelState) -> Bundle:
    """Read what was written, and compare all there is to compare: JSON, constants, leaves, marks, predictions."""
    read = _round_trip(model, state)
    graph, constants = ax.bundle.graph_to_json(model, frozen=state.frozen, ties=state.ties, with_weights=True)
    again, constants_again = ax.bundle.graph_to_json(
        read.model, frozen=read.state.frozen, ties=read.state.ties, with_weights=True
    )
    assert again == graph
    assert {k: v.tobytes() for k, v in constants_again.items()} == {k: v.tobytes() for k, v in constants.items()}
    assert read.state.paths() == sorted(state.paths(), key=read.state.paths().index)
    assert (read.state.frozen, read.state.ties) == (state.frozen, state.ties)
    for optional in (True, False):
        x = inputs_for(model, optional=optional)
        expected, got = ax.build(model)[1](state, x), ax.build(read.model)[1](read.state, x)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
    return read


@settings(max_examples=25, deadline=None)
@given(models(policies=True, wide=True), st.randoms(use_true_random=False))
def test_random_models_come_back_as_they_were(model: ax.Model, chance: Any):
    """Blocks, policies, containers, constants, sharing, frozen marks: the same JSON, bits and answers."""
    state = ax.build(model)[0](seed=3)
    _same(model, state.freeze(lambda path: chance.random() < 0.3))
