"""Graphs from strangers: valid ones with one value changed are accepted or refused, never a crash, never a hang."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import engine as ax
from engine.bundle import Limits
from engine.errors import BundleError, OptionError
from engine.model.layers import OPS
from tests.engine.every_op import ROWS
from tests.engine.test_every_op import model_of

VALUES: list[Any] = [
    *(None, True, 0, -1, 3, 10**9, 2**70, 1e308, -0.5, "", "x", "batch", "x0"),
    *([], [1], [-1], [5, 5], [[1, 2]], [None], ["x0", "x0"], {}, {"a": 1}),
]
CHANGES_PER_OP = 8


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    result = copy.deepcopy(value)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return result


def _complete(op: str) -> tuple[dict[str, Any], Any]:
    """The graph of an op with every default written out."""
    graph, constants = ax.bundle.graph_to_json(model_of(ROWS[op]))
    for node in graph["nodes"]:
        for option, default in OPS[node["op"]].defaults.items():
            if default is None or isinstance(default, int | float | str):
                node.setdefault("options", {}).setdefault(option, default)
    return {**graph, "requires": [], "frozen": []}, constants


def _read(graph: Any, constants: Any) -> None:
    """Everything the server does with a graph before it compiles; an undeclared size is refused by name."""
    try:
        model = ax.bundle.graph_from_json(graph, constants=constants)
        ax.bundle.check_marks(ax.bundle.check_size(model), graph)
        ax.runtime.signature(model)
        ax.runtime.mixing_reason(model)
    except (BundleError, OptionError):
        return


@pytest.mark.parametrize("op", ROWS)
def test_one_changed_value_never_crashes_the_reader(op: str):
    """A few changes per op, the same in every run."""
    graph, constants = _complete(op)
    chance = random.Random(op)
    paths = list(_paths(graph))
    for _ in range(CHANGES_PER_OP):
        _read(_changed(graph, chance.choice(paths), chance.choice(VALUES)), constants)


@pytest.mark.parametrize(
    ("op", "path", "value"),
    [
        ("input", ("requires",), True),
        ("constant", ("nodes", 2, "inputs"), None),
        ("bilinear", ("nodes", 0, "options", "shape"), []),
        ("resize", ("nodes", 0, "options", "shape", 1), 0),
        ("stack_columns", ("nodes", 2, "options", "structure"), 2**70),
        ("stack_columns", ("nodes", 2, "options", "structure", "b"), []),
        ("split", ("nodes", 1, "options", "splits"), 10**9),
        ("sinusoidal_position", ("nodes", 0, "options", "shape", 2), 10**9),
        ("conv_lstm", ("nodes", 1, "options", "kernel_size", 0), 10**9),
    ],
)
def test_what_once_crashed_is_refused(op: str, path: tuple[Any, ...], value: Any):
    """Wrong types of lists, positions out of range, divisions by zero and endless unrolling: one `BundleError`."""
    graph, constants = _complete(op)
    with pytest.raises(BundleError):
        ax.bundle.check_size(ax.bundle.graph_from_json(_changed(graph, path, value), constants=constants))


def test_steps_are_not_written_out_without_end():
    """A static unroll of a long sequence would trace for hours; it is refused before the first step."""
    sequence, _ = ax.input("x", shape=(None, 100_000, 2)).lstm(2, unroll="static")
    with pytest.raises(BundleError, match="at most 1024 steps"):
        ax.bundle.check_size(sequence)


def test_a_structured_output_says_how_to_take_its_parts():
    """A node whose value is a tuple cannot be served under one name."""
    sequence, _ = ax.input("x", shape=(None, 5, 2)).lstm(2)
    (whole,) = sequence.node.inputs
    with pytest.raises(OptionError, match="expected arrays, got a structure; take its parts with elem or fetch"):
        ax.runtime.signature(ax.Model(whole))


def _rich() -> tuple[dict[str, Any], Any]:
    """A graph with blocks in blocks, policies, ties, declared parameters, frozen paths and nested outputs."""
    deep = ax.block(lambda x: x.dense(3, name="inside").add(ax.constant([1.0, 2.0, 3.0])), name="deep")
    outer = ax.block(lambda x, y: ax.subtract(deep(deep(x)).batch_norm(), y), name="enc", remat=True)
    x, y = (ax.input(name, shape=(None, 3)) for name in ("x", "y"))
    head = outer(outer(x, y), x).dense(3, name="head").dropout()
    model = ax.apply_policy(ax.container({"a": head, "b": (head.relu(), x)}), "mixed_bfloat16")
    model = ax.map_nodes(model, lambda node: replace(node, declared=node.specs() if node.name == "head" else None))
    graph, constants = ax.bundle.graph_to_json(model, frozen=frozenset({"enc.deep.inside.bias"}))
    graph["nodes"][0]["policy"] = None
    tied = {"head.kernel": {"source": "enc.deep.inside.kernel", "transform": "transpose"}}
    return {**graph, "tied": tied}, constants


def test_one_changed_value_of_a_rich_graph_never_crashes_the_reader():
    """Definitions of blocks, policies, ties and declared parameters included; the same changes in every run."""
    graph, constants = _rich()
    _read(graph, constants)
    chance = random.Random(4)
    paths = list(_paths(graph))
    values = [*VALUES, {"block": "enc"}, {"compute": "bf16"}, "enc", "f32", {"source": "x"}, [{"name": "a"}], "key"]
    for _ in range(150):
        _read(_changed(graph, chance.choice(paths), chance.choice(values)), constants)


IDENTITY = {"inputs": ["x"], "nodes": [{"name": "x", "op": "input"}], "outputs": "x"}


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("blocks.enc.nodes[3].options", {"units": 1}, "blocks.enc.nodes[3].options.units: expected one of channel"),
        ("blocks.enc.inputs[1]", "nowhere", "blocks.enc.inputs[1]: expected the name of an input node"),
        ("blocks.enc.inputs", ["subgraph0"], "blocks.enc.nodes[4]: expected an input node that the block's inputs"),
        ("blocks.enc.inputs", ["subgraph0"] * 2, "blocks.enc.inputs: expected 1 to 64 different names"),
        ("blocks.enc.inputs", [], "blocks.enc.inputs: expected 1 to 64 different names"),
        ("blocks.enc.remat", 1, "blocks.enc.remat: expected true or false"),
        ("blocks.enc.name", "x", "blocks.enc.name: expected one of blocks, inputs, nodes, outputs, remat"),
        ("blocks.enc.blocks.deep.nodes[1].options.units", -1, "blocks.enc.blocks.deep.nodes[1].options.units"),
        ("blocks.enc.blocks.idle", IDENTITY, "blocks.enc.blocks.idle: expected a block that a node calls"),
        ("blocks.a-", IDENTITY, "expected a name matching"),
        ("nodes[2].options.block", "deep", "nodes[2].options: expected a key of blocks"),
        ("nodes[2].options.other", 1, "nodes[2].options: expected a key of blocks under block, and nothing else"),
        ("nodes[2].inputs", ["x"], "nodes[2].inputs: expected 2 inputs of block 'enc', got 1"),
        ("nodes[2].params", [], "nodes[2].params: expected no parameters of block itself"),
        ("nodes[0].params", [], "nodes[0].params: expected no parameters of input itself"),
        ("nodes[2].name", "head", "nodes[4].name: expected distinct names, got 'head'"),
        ("nodes[4].params[0].shape", [2**40], "nodes[4].params[0].shape: expected a list of sizes"),
        ("nodes[4].params[0].name", "a..b", "nodes[4].params[0].name: expected names matching"),
        ("nodes[4].params[0].name", "bias", "nodes[4].params: expected distinct names"),
        ("nodes[4].params[0].name", "bias.x", "nodes[4].params: expected distinct names, none the beginning"),
        ("nodes[4].params[0].initializer", "exec", "nodes[4].params[0].initializer: expected null, or 'key'"),
        ("nodes[4].params[0].initializer", "key", "nodes[4].params[0]: expected shape [2] and dtype 'u32'"),
        ("nodes[4].params[0].kind", "weights", "nodes[4].params[0].kind: expected 'parameter' or 'state'"),
        ("nodes[4].params[0].colour", "red", "nodes[4].params[0].colour: expected one of name, shape"),
        ("nodes[4].policy", {"compute": "s8"}, "nodes[4].policy.compute: expected null, or one of f16"),
        ("nodes[4].policy", {"speed": "f32"}, "nodes[4].policy: expected null, or an object with params"),
    ],
)
def test_wrong_places_in_rich_graphs_are_named(path: str, value: Any, problem: str):
    """The path leads through blocks, as it does in the JSON."""
    graph, constants = _rich()
    steps = path.replace("[", ".").replace("]", "").split(".")
    keys = [int(step) if step.isdecimal() else step.replace("-", "!") for step in steps]
    with pytest.raises(BundleError) as caught:
        ax.bundle.graph_from_json(_changed(graph, tuple(keys), value), constants=constants)
    assert problem in str(caught.value)


def test_a_block_cannot_have_the_name_of_a_layer():
    """Their parameters would stand in one place."""
    graph, constants = _rich()
    text = json.dumps(graph).replace('"head"', '"enc_"').replace('"enc"', '"first"').replace('"enc_"', '"enc"')
    graph = json.loads(text)
    graph["blocks"] = {"enc": graph["blocks"].pop("first")}
    for node in graph["nodes"]:
        if node["op"] == "block":
            node["options"] = {"block": "enc"}
    with pytest.raises(BundleError, match=r"blocks: expected keys that are no names of other nodes, got .*'enc'"):
        ax.bundle.graph_from_json(graph, constants=constants)


def _doubling(levels: int) -> dict[str, Any]:
    """A block that calls twice one that calls twice one ..."""
    graph: dict[str, Any] = {"nodes": [{"name": "y", "op": "relu", "inputs": ["x"]}]}
    for _ in range(levels):
        calls = [
            {"name": "once", "op": "block", "inputs": ["x"], "options": {"block": "b"}},
            {"name": "y", "op": "block", "inputs": ["once"], "options": {"block": "b"}},
        ]
        inner = {**graph, "inputs": ["x"], "nodes": [{"name": "x", "op": "input"}, *graph["nodes"]], "outputs": "y"}
        graph = {"nodes": calls, "blocks": {"b": inner}}
    x = {"name": "x", "op": "input", "options": {"shape": [None, 3]}}
    return {"format": "axon.graph", "version": 1, **graph, "nodes": [x, *graph["nodes"]], "outputs": "y"}


def test_blocks_cannot_multiply_without_end():
    """The nodes that would be traced are counted before any is, and so are definitions and how deep they are."""
    model = ax.bundle.graph_from_json(_doubling(3))
    assert len(ax.infer(model)) == 1 + 2 * (1 + 1 + 2 * (1 + 1 + 2 * (1 + 2)))
    with pytest.raises(BundleError, match=r"nodes: expected at most 16384 nodes with every call .* got 3\.28e\+05"):
        ax.bundle.graph_from_json(_doubling(16))
    with pytest.raises(BundleError, match="blocks at most 16 deep, got more"):
        ax.bundle.graph_from_json(_doubling(17))
    with pytest.raises(BundleError, match=r"expected at most 10 nodes, got 1[12]"):
        ax.bundle.graph_from_json(_doubling(3), limits=Limits(nodes=10))
    with pytest.raises(BundleError, match=r"nodes: expected at most 20 nodes with every call .* got 37"):
        ax.bundle.graph_from_json(_doubling(3), limits=Limits(expanded_nodes=20))


def _graph(nodes: list[dict[str, Any]], outputs: Any, **more: Any) -> dict[str, Any]:
    x = {"name": "x", "op": "input", "options": {"shape": [None, 3]}}
    return {"format": "axon.graph", "version": 1, "nodes": [x, *nodes], "outputs": outputs, **more}


@pytest.mark.parametrize(
    "graph",
    [
        _graph([{"name": "y", "op": "add", "inputs": ["x"] * 20_000}], "y"),
        _graph([], ["x"] * 20_000),
        _graph(
            [{"name": f"c{i}", "op": "block", "inputs": ["x"], "options": {"block": "b"}} for i in range(20)],
            [f"c{i}" for i in range(20)],
            blocks={"b": {"inputs": ["v"], "nodes": [{"name": "v", "op": "input"}], "outputs": ["v"] * 1000}},
        ),
    ],
    ids=["inputs", "outputs", "outputs of blocks"],
)
def test_inputs_and_outputs_are_counted_like_nodes(graph: dict[str, Any]):
    """Each is work for whoever walks the graph."""
    with pytest.raises(BundleError, match=r"nodes: expected at most 16384 nodes .* each input counted, got 2"):
        ax.bundle.graph_from_json(graph)


def test_shapes_that_take_too_long_are_refused():
    """A layer may be slow to trace, and there may be thousands of them."""
    model = ax.bundle.graph_from_json(_graph([{"name": "y", "op": "relu", "inputs": ["x"]}], "y"))
    with pytest.raises(BundleError, match="expected shapes that are known within 0 s, got more work"):
        ax.bundle.check_size(model, Limits(shapes_s=0))


def test_an_error_tells_a_bounded_number_of_problems():
    """A small graph must not make a large answer."""
    with pytest.raises(BundleError, match=r"and 19900 more problems$") as caught:
        ax.bundle.graph_from_json(_graph([], "x", **{f"key{i}": 1 for i in range(20_000)}))
    assert len(caught.value.problems) == 100


def test_thousands_of_ties_are_marked_in_no_time():
    """A state with the ties of a graph is made in one go."""
    names = [f"d{i}" for i in range(2000)]
    tied = {f"{name}.kernel": {"source": "d0.kernel"} for name in names[1:]}
    state = ax.ModelState({name: {"kernel": np.ones((1, 1), np.float32)} for name in names})
    started_s = time.thread_time()
    marked = ax.bundle.marked(state, {"tied": tied, "frozen": ["d0.kernel"]})
    assert time.thread_time() - started_s < 1
    assert (marked.paths(), len(marked.ties), marked.frozen) == (["d0.kernel"], 1999, frozenset({"d0.kernel"}))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((-1, "u8"), ([7, 300], "u8"), (3.7, "s32"), (2**40, "s32"), (2**63, "s64"), (0.5, "bool")),
        *((1e300, "f32"), (70_000, "f16"), (-1e39, "bf16")),
    ],
)
def test_constants_that_their_dtype_cannot_hold_are_refused(value: Any, dtype: str):
    """None is wrapped around, cut off, or made infinite without a word."""
    node = {"name": "k", "op": "constant", "options": {"value": value, "dtype": dtype}}
    with pytest.raises(BundleError, match=rf"nodes\[1\]\.options\.value: expected numbers that {dtype} can hold, got"):
        ax.bundle.graph_from_json(_graph([node, {"name": "y", "op": "add", "inputs": ["x", "k"]}], "y"))


def test_constants_are_taken_as_they_are():
    """Floats to the nearest, whole numbers and booleans exactly."""
    for value, dtype in (
        (0.1, "f16"),
        (2**40 + 1, "s64"),
        (2.0, "s32"),
        ([True, 0], "bool"),
        (1e-60, "f32"),
        (True, "f32"),
    ):
        node = {"name": "k", "op": "constant", "options": {"value": value, "dtype": dtype}}
        found = ax.bundle.graph_from_json(_graph([node], ["x", "k"])).node.inputs[1].options["value"]
        np.testing.assert_array_equal(found, np.asarray(value).astype(found.dtype))
