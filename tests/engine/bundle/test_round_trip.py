"""Whatever a graph can hold travels: random models come back as they were, and so does each kind of feature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine as ax
from engine.bundle import Bundle
from engine.errors import BundleError, GraphError, StateError
from engine.model.graph import ParamSpec
from engine.precision import NO_CAST, Policy
from tests.effort import examples
from tests.engine.model_strategy import inputs_for, models

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


@settings(max_examples=examples(40), deadline=None)
@given(models(policies=True, wide=True), st.randoms(use_true_random=False))
def test_random_models_come_back_as_they_were(model: ax.Model, chance: Any):
    """Blocks, policies, containers, constants, sharing, frozen marks: the same JSON, bits and answers."""
    state = ax.build(model)[0](seed=3)
    _same(model, state.freeze(lambda path: chance.random() < 0.3))


@settings(max_examples=examples(8), deadline=None)
@given(models(most_steps=6), st.randoms(use_true_random=False))
def test_tied_parameters_of_random_models_come_back(model: ax.Model, chance: Any):
    """A head that shares the matrix of another layer, straight or turned."""
    straight = ax.input("tied_x", shape=(None, 3)).dense(2, name="first").tanh().dense(3, name="second")
    whole = ax.container({"model": model, "tied": straight.dense(2, name="third")})
    state = ax.build(whole)[0](seed=1).tie("third.kernel", "first.kernel")
    if chance.random() < 0.5:
        state = state.tie("second.kernel", "first.kernel", "transpose")
    _same(whole, state.freeze(lambda path: path == "first.kernel"))


def _x(name: str = "x") -> ax.Model:
    return ax.input(name, shape=(None, 3))


def _with_policy(model: ax.Model, policy: Policy) -> ax.Model:
    return ax.Model(replace(model.node, policy=policy))


def test_the_most_common_policy_is_the_default():
    """The others are written where they differ, those that cast nothing as null; inputs and containers need none."""
    model = ax.apply_policy(ax.container({"y": _x().dense(2).relu().dense(2, name="head")}), BF16)
    graph, _ = ax.bundle.graph_to_json(model)
    assert graph["policy"] == {"params": "f32", "compute": "bf16", "output": "f32"}
    assert not any("policy" in node for node in graph["nodes"])
    model = ax.apply_policy(model, Policy(), filter=lambda node: node.name == "head")
    graph, _ = ax.bundle.graph_to_json(model)
    assert [node.get("policy", "default") for node in graph["nodes"]] == ["default", "default", "default", None]
    read = ax.bundle.graph_from_json(graph)
    assert [node.policy for node in read.nodes()] == [NO_CAST, BF16, BF16, NO_CAST, NO_CAST]
    assert "policy" not in ax.bundle.graph_to_json(_x().dense(2))[0]


def test_blocks_are_written_once_under_the_name_of_their_parameters():
    """Two calls of one block, one of another, a block within a block: definitions nest, paths stay."""
    deep = ax.block(lambda x: x.dense(3, name="inside").add(ax.constant([1.0, 2.0, 3.0])))
    outer = ax.block(lambda x: deep(deep(x)).bias(), name="enc", remat=True)
    model = ax.subtract(outer(outer(_x())), ax.block(lambda x, y: ax.add(x, y))(_x("a"), _x("b")))
    state = ax.build(model)[0](seed=2)
    graph, constants = ax.bundle.graph_to_json(model)
    assert list(graph["blocks"]) == ["enc", "block_0"]
    enc = graph["blocks"]["enc"]
    assert (enc["inputs"], enc["remat"], list(enc["blocks"])) == (["subgraph0"], True, ["block_0"])
    assert [node["options"] for node in graph["nodes"] if node["op"] == "block"] == [
        {"block": "enc"},
        {"block": "enc"},
        {"block": "block_0"},
    ]
    assert list(constants) == ["enc.block_0.constant_0"]
    assert set(state.paths()) == {"enc.block_0.inside.kernel", "enc.block_0.inside.bias", "enc.bias_0.bias"}
    read = _same(model, state)
    calls = [node.options["block"] for node in read.model.nodes() if node.op.name == "block"]
    assert calls[0] is calls[1]
    assert [call.remat for call in calls] == [True, True, False]
    assert ax.build(read.model)[0](seed=2).paths() == state.paths()


def test_gradients_and_layer_state_of_a_read_block_are_those_of_the_written_one():
    """Training goes on where it stopped."""
    block = ax.block(lambda x: x.dense(3, activation="tanh").batch_norm(), name="enc")
    model = block(block(_x()))
    state = ax.build(model)[0](seed=2)
    read = _round_trip(model, state)
    x = inputs_for(model, batch=5)

    def loss(parameters: Any, model: ax.Model) -> Any:
        output = ax.build(model, mode="train")[1](replace(state, parameters=parameters), x)
        return jnp.sum(output.prediction**2), output.state

    expected, got = (jax.grad(loss, has_aux=True)(state.parameters, m) for m in (model, read.model))
    jax.tree.map(np.testing.assert_array_equal, expected, got)


def test_declared_parameters_travel_with_fixed_shapes():
    """Names, shapes, kinds and types come back; an initializer that is a function only with the weights."""

    def declared(initializer: Any) -> ax.Model:
        dense = _x().dense(2, use_bias=False).node
        spec = ParamSpec("kernel", lambda x: (x[-1], 2), initializer, dtype="bf16", layout="first")
        return ax.Model(replace(dense, declared=(spec,)))

    model = declared({"name": "normal", "scale": 0.5})
    state = ax.build(model)[0](seed=2)
    assert state.parameters["dense_0"]["kernel"].dtype == jnp.bfloat16
    entry = ax.bundle.graph_to_json(model)[0]["nodes"][1]["params"]
    assert entry == [
        {
            "name": "kernel",
            "shape": [3, 2],
            "initializer": {"name": "normal", "scale": 0.5},
            "kind": "parameter",
            "dtype": "bf16",
            "layout": "first",
        }
    ]
    _same(model, state)
    model = declared(lambda shape, dtype, key: jnp.ones(shape, dtype))
    with pytest.raises(GraphError, match=r"layer 'dense_0' .*test_round_trip.py.*initializer of parameter 'kernel'"):
        ax.bundle.graph_to_json(model)
    read = _same(model, ax.build(model)[0]())
    with pytest.raises(StateError, match="parameter 'kernel': expected a value that comes with the weights"):
        ax.build(read.model)[0]()
    _same(read.model, read.state)


def test_an_initializer_of_ones_own_stays_behind_when_weights_travel():
    """The layer's parameters are then declared, each with its shape; those of the catalogue keep their initializers."""
    model = _x().dense(2, kernel_initializer=lambda shape, dtype, key: jnp.full(shape, 3, dtype), name="own")
    with pytest.raises(GraphError, match=r"layer 'own' .* expected option kernel_initializer to be a literal"):
        ax.bundle.graph_to_json(model)
    read = _same(model, ax.build(model)[0]())
    node = ax.bundle.graph_to_json(read.model, with_weights=True)[0]["nodes"][1]
    assert [(spec["name"], spec["shape"], spec["initializer"]) for spec in node["params"]] == [
        ("kernel", [3, 2], None),
        ("bias", [2], "zeros"),
    ]


def test_hooks_are_refused_with_the_layer_and_the_way_out():
    """A hook is a function of this process."""
    model = ax.attach_hook(_x().dense(2, name="watched"), print).relu()
    with pytest.raises(GraphError, match=r"layer 'watched' \(dense, built at test_round_trip.py.*detach_hooks"):
        ax.bundle.graph_to_json(model)
    ax.bundle.graph_to_json(ax.detach_hooks(model))


@dataclass(frozen=True)
class Heads:
    """Two outputs."""

    scores: Any
    parts: Any


def test_structures_become_objects_and_lists():
    """A dataclass is an object by its fields' names; a named container, or one with a precision, is a node."""
    x = _x()
    model = ax.container(Heads(x.softmax(), (x, {"deep": x.relu()})))
    graph, _ = ax.bundle.graph_to_json(model)
    assert graph["outputs"] == {"scores": "softmax_0", "parts": ["x", {"deep": "relu_0"}]}
    read = _same(model, ax.ModelState.empty())
    assert set(read.model.node.options["structure"]) == {"scores", "parts"}
    named = ax.container({"a": x}, name="out")
    assert ax.bundle.graph_to_json(named)[0]["outputs"] == "out"
    _same(named, ax.ModelState.empty())
    _same(_with_policy(ax.container({"a": x}), BF16), ax.ModelState.empty())


def test_numbers_of_numpy_in_options_are_numbers():
    """What an initializer was given as a NumPy scalar is written as a plain number."""
    model = _x().dense(2, kernel_initializer={"name": "normal", "scale": np.float64(0.5)})
    graph, _ = ax.bundle.graph_to_json(model)
    assert type(graph["nodes"][1]["options"]["kernel_initializer"]["scale"]) is float


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ({"second.kernel": {"source": "nowhere.kernel"}}, "tied.second.kernel: expected paths .* got 'nowhere.kernel'"),
        ({"second.kernel": {"source": "first.kernel"}}, r"tied.second.kernel: expected parameters that fit.*\(2, 3\)"),
        ({"second.bias": {"source": "norm.mean"}}, "tied.second.bias: expected paths .* got 'norm.mean'"),
        ({"x.y": {"source": "first.kernel"}}, "tied.x.y: expected paths of the graph's parameters"),
    ],
)
def test_ties_that_do_not_fit_are_refused(tied: dict, message: str):
    """Unknown paths, shapes that differ and layer state; chains are refused when the graph is read."""
    model = _x().dense(2, name="first").batch_norm(name="norm").dense(3, name="second")
    graph, _ = ax.bundle.graph_to_json(model)
    layers = ax.bundle.check_size(model)
    with pytest.raises(BundleError, match=message):
        ax.bundle.check_marks(layers, {**graph, "tied": tied})
    good = {"second.kernel": {"source": "first.kernel", "transform": "transpose"}}
    ax.bundle.check_marks(layers, {**graph, "tied": good})
    with pytest.raises(BundleError, match=r"frozen: expected paths .* not tied, got 'second.kernel'"):
        ax.bundle.check_marks(layers, {**graph, "tied": good, "frozen": ["second.kernel"]})
    chain = {**good, "first.kernel": {"source": "norm.gamma"}}
    with pytest.raises(
        BundleError, match=r"tied\.second\.kernel\.source: expected a parameter that is not tied itself"
    ):
        ax.bundle.graph_from_json({**graph, "tied": chain})


def test_a_graph_marks_fresh_and_given_parameters(tmp_path: Path):
    """What a graph says about ties and frozen paths holds for drawn parameters and for a file of them."""
    model = _x().dense(2, name="first").dense(3, name="second")
    tied = {"second.kernel": {"source": "first.kernel", "transform": "transpose"}}
    graph = {**ax.bundle.graph_to_json(model)[0], "tied": tied, "frozen": ["first.bias"]}
    state = ax.bundle.marked(ax.build(model)[0](seed=0), graph)
    assert "second.kernel" not in state.paths()
    assert state.frozen == {"first.bias"}
    ax.bundle.write(tmp_path / "m.axon", model, state)
    read = ax.bundle.read(tmp_path / "m.axon").state
    data = ax.bundle.tensors.dump({f"{a}.{b}": v for a, layer in read.parameters.items() for b, v in layer.items()})
    given = ax.bundle.read_params(data, model, graph=graph)
    assert (given.ties, given.frozen) == (state.ties, state.frozen)
    with pytest.raises(BundleError, match=r"tensor second\.kernel: expected f32"):
        ax.bundle.read_params(data, model)
