"""Graph manipulation: counts, options, maps, rewriting, popping, capturing; nothing is ever changed in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError, OptionError
from engine.model.graph import Hook, Node
from engine.precision import Policy

ONES = np.ones((2, 3), np.float32)


def _x() -> ax.Model:
    return ax.input("x", shape=(None, 3))


def _mlp() -> ax.Model:
    return _x().dense(4, name="first").relu().dense(2)


def _replace(op: str, build: Callable[[list[ax.Model], ax.Model], ax.Model]) -> Callable[[Node], Any]:
    return lambda node: build if node.op.name == op else None


def _lora(inputs: list[ax.Model], output: ax.Model) -> ax.Model:
    units = output.get_options()["units"]
    down = inputs[0].dense(2, use_bias=False)
    return output.add(down.dense(units, use_bias=False, kernel_initializer="zeros"))


def test_a_model_tells_its_inputs_ops_and_names():
    """Declared shapes, counts, and names in their order; those of a block's layers when asked."""
    block = ax.block(lambda x: x.dense(3).relu())
    model = ax.add(block(block(_x())), ax.input("y").dense(3))
    assert model.get_inputs() == {"x": (None, 3), "y": None}
    assert model.get_op_counts() == {"input": 2, "block": 2, "dense": 1, "add": 1}
    assert model.get_op_counts(into_blocks=True) == {"input": 3, "block": 2, "dense": 2, "relu": 1, "add": 1}
    assert list(model.properties()) == ["x", "block_0", "block_0_1", "y", "dense_0", "add_0"]
    order = model.reduce_nodes((), lambda node, seen: (*seen, node))
    assert list(order) == model.nodes()


def test_the_output_shape_has_the_structure_and_types_of_the_output():
    """A container of an f32 and a u8 value, for the declared shapes and for given ones."""
    tokens = ax.input("t", shape=(None, 5), dtype="s32")
    model = ax.container({"a": tokens.embedding(7, 3), "b": (tokens.mask(0),)})
    found = model.get_output_shape({"t": jax.ShapeDtypeStruct((4, 5), np.int32)})
    assert found == {"a": jax.ShapeDtypeStruct((4, 5, 3), np.float32), "b": (jax.ShapeDtypeStruct((4, 5), np.uint8),)}
    assert model.get_output_shape()["a"].shape == (1, 5, 3)


def test_options_are_replaced_and_checked_at_once():
    """All of them must be there, known and within their domain; the error says which layer, and where it was built."""
    model = _mlp()
    wider = model.set_options({**model.get_options(), "units": 7})
    assert wider.get_output_shape().shape == (1, 7)
    assert model.get_options()["units"] == 2
    with pytest.raises(OptionError, match=r"set_options: dense: expected option units to be a positive integer, got 0"):
        model.set_options({**model.get_options(), "units": 0})
    with pytest.raises(
        OptionError, match=r"unknown size and no .*units.*layer 'dense_1', dense built at test_rewrite.py:\d"
    ):
        model.set_options({"size": 3})
    x = _x()
    pair = ax.container((x, x.relu()))
    with pytest.raises(OptionError, match=r"expected positions of 2 inputs, got \(0, 5\)"):
        pair.set_options({"structure": (0, 5)})


def test_parameters_are_replaced_and_checked_at_once():
    """A dense layer whose kernel starts at ones; parameters that the op does not take are refused."""
    kernel = ax.param("kernel", lambda x: (x[-1], 2), initializer="ones")
    model = _x().dense(2, use_bias=False).set_parameters([kernel])
    assert model.get_parameters() == (kernel,)
    np.testing.assert_allclose(model.apply(model.init(), ONES), np.full((2, 2), 3.0))
    with pytest.raises(GraphError, match=r"layer 'dense_0' \(dense, built at test_rewrite.py:\d+\).*'weights'"):
        model.set_parameters([ax.param("weights", (3, 2))])
    with pytest.raises(GraphError, match="distinct names"):
        model.set_parameters([kernel, kernel])


def test_mapping_changes_every_node_once_and_keeps_sharing():
    """A shared layer stays shared, layers of a block are reached, and the block stays one block."""
    block = ax.block(lambda x: x.dense(3).relu())
    trunk = block(block(_x())).dense(3)
    model = ax.add(trunk.relu(), trunk)
    calls = []

    def rename(node: Node) -> Node:
        calls.append(node.op.name)
        return replace(node, name=f"my_{node.op.name}") if node.op.name in ("relu", "dense") else node

    mapped = model.map_nodes(rename)
    assert sorted(calls) == sorted(["input", "dense", "relu", "block", "block", "dense", "relu", "add"])
    assert list(mapped.properties()) == ["x", "block_0", "block_0_1", "my_dense", "my_relu", "add_0"]
    assert mapped.init().paths() == [
        "block_0.my_dense.bias",
        "block_0.my_dense.kernel",
        "my_dense.bias",
        "my_dense.kernel",
    ]
    outer = model.map_nodes(rename, into_blocks=False)
    assert outer.init().paths()[:2] == ["block_0.dense_0.bias", "block_0.dense_0.kernel"]
    assert model.init().paths()[-1] == "dense_0.kernel"


def test_mapping_refuses_what_is_no_valid_node():
    """Another value, wrong options; an error of one's own says at which node it came."""
    with pytest.raises(GraphError, match="map_nodes: expected a node, got NoneType"):
        _mlp().map_nodes(lambda node: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(OptionError, match=r"units.*got -1; dense built at test_rewrite.py:\d+"):
        _mlp().map_nodes(lambda n: replace(n, options={**n.options, "units": -1}) if n.op.name == "dense" else n)
    with pytest.raises(ZeroDivisionError) as raised:
        _mlp().map_nodes(lambda node: 1 // 0)  # type: ignore[arg-type,return-value]
    assert "map_nodes: at input built at test_rewrite.py" in raised.value.__notes__[0]


def test_an_adapter_keeps_the_names_and_answers_of_what_it_wraps():
    """LoRA of every dense layer: a state of the old model fits, and the answer is the same as long as B is zero."""
    model = _x().dense(4).relu().dense(4, name="mid").dense(2)
    state = model.init(seed=3)
    adapted = model.rewrite_nodes(_replace("dense", _lora))
    assert adapted.get_op_counts() == {"input": 1, "dense": 9, "relu": 1, "add": 3}
    full = adapted.init(seed=5, state=state)
    assert set(state.paths()) < set(full.paths())
    np.testing.assert_allclose(adapted.apply(full, ONES), model.apply(state, ONES), rtol=1e-6)


def test_a_replacement_takes_over_name_policy_and_hooks():
    """What stands in place of a named layer is found under its name; its own settings win; a kept layer keeps its."""
    hook, policy = Hook(print), Policy("f32", "bf16", "f32")
    node = replace(_mlp().nodes()[1], policy=policy, hooks=(hook,))
    model = ax.Model(node).relu().dense(2)
    new = model.rewrite_nodes(
        lambda n: (lambda inputs, _: inputs[0].dense(5).dense(4)) if n.op.name == "dense" and n.name else None
    )
    first, last = new.nodes()[1:3]
    assert list(new.properties()) == ["x", "dense_0", "first", "relu_0", "dense_1"]
    assert (first.policy, last.policy) == (policy, policy)
    assert (first.hooks, last.hooks) == ((), (hook,))
    own = Policy(None, "f16", None)

    def chosen(inputs: list[ax.Model], _: ax.Model) -> ax.Model:
        made = inputs[0].dense(4, name="mine")
        return ax.Model(replace(made.node, policy=own))

    (_, mine, *_) = model.rewrite_nodes(lambda n: chosen if n.name == "first" else None).nodes()
    assert (mine.name, mine.policy) == ("mine", own)
    wrapped = model.rewrite_nodes(lambda n: (lambda _, y: y.tanh()) if n.name == "first" else None)
    kept, around = wrapped.nodes()[1:3]
    assert (kept.name, kept.hooks, around.name, around.hooks) == ("first", (hook,), None, ())
    assert around.policy == policy


def test_layers_that_stay_keep_their_names_when_others_go():
    """Dropping the first of three dense layers, or the first call of a block, moves no parameter path."""
    model = _x().dense(3).dense(3).dense(3)
    first = model.nodes()[1]
    shorter = model.rewrite_nodes(lambda n: (lambda inputs, _: inputs[0]) if n is first else None)
    assert list(shorter.properties()) == ["x", "dense_1", "dense_2"]
    np.testing.assert_array_equal(
        shorter.init().parameters["dense_2"]["kernel"], model.init().parameters["dense_2"]["kernel"]
    )
    one, two = ax.block(lambda x: x.dense(3)), ax.block(lambda x: x.bias())
    calls = two(one(two(one(_x()))))
    gone = calls.nodes()[1]
    fewer = calls.rewrite_nodes(lambda n: (lambda inputs, _: inputs[0]) if n is gone else None)
    assert fewer.init().paths() == calls.init().paths()
    np.testing.assert_allclose(
        fewer.apply(calls.init(seed=2), ONES), two(one(two(_x()))).map_nodes(lambda n: n).apply(_swapped(calls), ONES)
    )


def _swapped(calls: ax.Model) -> ax.ModelState:
    """The state of the blocks for a model that calls the second one first."""
    found = calls.init(seed=2).parameters
    return ax.ModelState({"block_0": found["block_1"], "block_1": found["block_0"]})


def test_rewriting_reaches_into_blocks_and_keeps_them_shared():
    """Both calls see the rewritten block; an input that it no longer needs is taken from the calls."""
    block = ax.block(lambda x, y: x.dense(3, use_bias=False).add(y))
    x = _x()
    model = block(block(x, x.relu()), ax.input("y", shape=(None, 3)))
    assert model.rewrite_nodes(_replace("add", lambda inputs, _: inputs[0]), into_blocks=False) is model
    alone = model.rewrite_nodes(_replace("add", lambda inputs, _: inputs[0]))
    assert list(alone.get_inputs()) == ["x"]
    assert alone.init().paths() == ["block_0.dense_0.kernel"]
    kernel = np.asarray(alone.init().parameters["block_0"]["dense_0"]["kernel"])
    np.testing.assert_allclose(alone.apply(alone.init(), ONES), ONES @ kernel @ kernel, rtol=1e-5)
    with pytest.raises(GraphError, match=r"expected a block of some of the inputs subgraph0, subgraph1, got .*other"):
        model.rewrite_nodes(_replace("add", lambda inputs, _: ax.input("other")))
    with pytest.raises(GraphError, match="rewrite_nodes: expected a model in place of add built at"):
        model.rewrite_nodes(_replace("add", lambda inputs, _: 3))  # type: ignore[arg-type,return-value]


def test_popping_gives_models_in_the_structure_of_the_inputs():
    """One model for one input, a tuple for several, the structure of a container; trained states fit them."""
    node, before = _mlp().pop_node()
    assert (node.op.name, list(before.properties())) == ("dense", ["x", "first", "relu_0"])
    x = _x()
    node, (left, right) = ax.add(x.dense(2), x.relu()).pop_node()
    assert (node.op.name, left.node.op.name, right.node.op.name) == ("add", "dense", "relu")
    whole = ax.container({"a": x.dense(2), "b": (x.dense(3), {"c": x.dense(4)})})
    state = whole.init(seed=1)
    _, parts = whole.pop_node()
    expected = whole.apply(state, ONES)
    for part, value in ((parts["a"], expected["a"]), (parts["b"][1]["c"], expected["b"][1]["c"])):
        np.testing.assert_array_equal(part.apply(state, ONES), value)
    again = ax.container(parts)
    assert again.get_op_counts() == {"input": 1, "dense": 3, "container": 1}
    with pytest.raises(GraphError, match=r"pop_node: expected a layer with inputs, got input built at test_rewrite.py"):
        _x().pop_node()


def test_popping_several_nodes_cuts_a_head():
    """The popped nodes come output first; a node with several inputs ends it."""
    (head, activation), trunk = _mlp().pop_nodes(2)
    assert (head.op.name, activation.op.name, trunk.node.name) == ("dense", "relu", "first")
    with pytest.raises(GraphError, match="expected layers with one input, got 2 of add built at"):
        ax.add(_x(), _x()).relu().pop_nodes(2)
    with pytest.raises(OptionError, match="positive number of nodes, got 0"):
        _mlp().pop_nodes(0)


def test_capture_ends_a_model_at_a_layer():
    """The second branch keeps its name and weights; a layer of a block's first call can be named too."""
    block = ax.block(lambda x: x.dense(3).relu().dense(2), name="enc")
    x = _x()
    model = ax.concatenate(x.dense(2), x.dense(4).relu(), block(x))
    state = model.init(seed=1)
    part = model.capture("relu_0")
    kernel, bias = (np.asarray(state.parameters["dense_1"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(part.apply(state, ONES), np.maximum(ONES @ kernel + bias, 0), rtol=1e-6)
    inner = model.capture("enc.relu_0")
    kernel = np.asarray(state.parameters["enc"]["dense_0"]["kernel"])
    np.testing.assert_allclose(inner.apply(state, ONES), np.maximum(ONES @ kernel, 0), rtol=1e-6)
    with pytest.raises(GraphError, match="such as relu_0; got 'relu_7'"):
        model.capture("relu_7")
    with pytest.raises(GraphError, match="which is no block"):
        model.capture("relu_0.dense_0")
    same = ax.block(lambda x: x.dense(3).relu())
    with pytest.raises(GraphError, match="expected the first call of block 'block_0'"):
        same(same(x)).capture("block_0_1.relu_0")


def test_deep_graphs_need_no_recursion():
    """4,000 layers are mapped, rewritten, popped and captured within seconds."""
    model = _x()
    for _ in range(4000):
        model = model.tanh()
    begun = time.perf_counter()
    assert model.map_nodes(lambda node: node) is model
    changed = model.rewrite_nodes(_replace("tanh", lambda inputs, _: inputs[0].relu()))
    assert changed.get_op_counts() == {"input": 1, "relu": 4000}
    assert len(model.pop_nodes(3999)[1].nodes()) == 2
    assert len(model.capture("tanh_3000").nodes()) == 3002
    assert time.perf_counter() - begun < 20
