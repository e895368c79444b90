"""Laws of graph manipulation, over random models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine as ax
from engine.model.graph import Node
from engine.precision import NO_CAST, Policy
from tests.effort import examples
from tests.engine.model_strategy import inputs_for, models

few = settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
Change = Callable[[Node], Node]
TANH = ax.input("x").tanh().node.op


def described(model: ax.Model) -> Any:
    """Everything a graph says, blocks included, without its objects' identities; arrays stay as they are."""
    found, blocks = model.names(), {}
    for node in found:
        if node.op.name == "block":
            block = node.options["block"]
            blocks.setdefault(block, (len(blocks), block.name, block.inputs, described(block.model)))

    def option(value: Any) -> Any:
        return (value.tolist(), str(value.dtype)) if isinstance(value, np.ndarray) else blocks.get(_key(value), value)

    return [
        (
            name,
            node.op.name,
            [found[parent] for parent in node.inputs],
            {key: option(value) for key, value in node.options.items()},
            node.policy,
            node.hooks,
            node.declared,
        )
        for node, name in found.items()
    ]


def _key(value: Any) -> Any:
    return value if isinstance(value, ax.Block) else None


def rename(node: Node) -> Node:
    """A name of its own for every unnamed dense layer."""
    return replace(node, name="fc_{n}") if node.op.name == "dense" and node.name is None else node


def to_tanh(node: Node) -> Node:
    """Another op in place of relu."""
    return replace(node, op=TANH, options={}) if node.op.name == "relu" else node


def lower(node: Node) -> Node:
    """A precision for activations."""
    return replace(node, policy=Policy(None, "bf16", "f32")) if node.op.name in ("tanh", "sigmoid") else node


CHANGES = [rename, to_tanh, lower]


@few
@given(models())
def test_the_identity_changes_nothing(model: ax.Model):
    """Mapping to itself, skipping every node, and replacing every node by itself give the very same model."""
    before = described(model)
    assert model.map_nodes(lambda node: node) is model
    assert model.rewrite_nodes(lambda node: None) is model
    assert model.rewrite_nodes(lambda node: lambda inputs, output: output) is model
    assert described(model) == before


@few
@given(models(), st.sampled_from(CHANGES), st.sampled_from(CHANGES))
def test_two_maps_are_the_map_of_both(model: ax.Model, f: Change, g: Change):
    """map(f) after map(g) is map(f after g), and neither changes the model it is given."""
    before = described(model)
    assert described(model.map_nodes(g).map_nodes(f)) == described(model.map_nodes(lambda node: f(g(node))))
    assert described(model) == before


@few
@given(models())
def test_a_map_undone_is_the_identity(model: ax.Model):
    """Setting and clearing a policy leaves what was there, sharing included."""
    there = model.map_nodes(lambda node: replace(node, policy=Policy(None, "f32", None)))
    assert described(there.map_nodes(lambda node: replace(node, policy=NO_CAST))) == described(model)


@few
@given(models(most_steps=6))
def test_what_wraps_a_layer_leaves_state_and_answer(model: ax.Model):
    """A linear layer behind every layer of one value: all old paths stay, and so does the prediction."""
    wrap = ("dense", "relu", "tanh", "add", "layer_norm", "conv", "embedding", "bias")
    wrapped = model.rewrite_nodes(lambda n: (lambda _, output: output.linear()) if n.op.name in wrap else None)
    state, inputs = model.init(seed=1), inputs_for(model)
    assert wrapped.init(seed=1).paths() == state.paths()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        wrapped.apply(state, inputs),
        model.apply(state, inputs),
    )


@few
@given(models(most_steps=6), st.data())
def test_any_layer_can_be_captured(model: ax.Model, data: st.DataObject):
    """The model that ends at a layer takes the whole model's state, and needs no path that it lacks."""
    name = data.draw(st.sampled_from(sorted(model.properties())))
    part, state = model.capture(name), model.init(seed=1)
    assert part.names()[part.node] == name
    assert set(part.init(inputs_for(part)).paths()) <= set(state.paths())
    part.apply(state, inputs_for(part))
