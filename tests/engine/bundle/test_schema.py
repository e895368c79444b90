"""The published JSON Schema: what the writer writes fits it, and what has one wrong value does not."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine as ax
from engine.bundle.schema import graph_schema
from engine.errors import BundleError
from engine.model.layers import OPS
from tests.effort import examples
from tests.engine.every_op import ROWS
from tests.engine.model_strategy import models
from tests.engine.test_every_op import model_of

SCHEMA = graph_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WRONG: list[Any] = [{"name": "telepathy"}, [[["x"]]], -(10**12), "\0no such word"]
"""Values, one of which no option takes: an unknown object, an odd nesting, a number, a word."""


def _problems(graph: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(graph)]


def test_the_schema_is_one_and_is_json():
    """It is valid by its own dialect, survives JSON, and every reference leads somewhere."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA
    found = [line.split('"')[3] for line in json.dumps(SCHEMA, indent=0).splitlines() if '"$ref"' in line]
    assert found
    assert {ref.removeprefix("#/$defs/") for ref in found} <= set(SCHEMA["$defs"])


@pytest.mark.parametrize("op", OPS)
def test_every_option_of_every_op_has_a_schema(op: str):
    """None is left at `anything`."""
    for option, domain in OPS[op].op.options.items():
        assert domain.schema, f"{op}.{option}"


@pytest.mark.parametrize("op", ROWS)
def test_graphs_of_every_op_fit_the_schema_and_one_wrong_option_does_not(op: str):
    """With every default written out; schema and reader refuse a wrong value of any option, and an unknown one."""
    graph, constants = ax.bundle.graph_to_json(model_of(ROWS[op]))
    for node in graph["nodes"]:
        defaults = {} if node["op"] == "constant" else OPS[node["op"]].defaults
        written = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
        node["options"] = {**written, **node.get("options", {})}
    assert _problems(graph) == []
    ax.bundle.graph_from_json(graph, constants=constants)
    for i, node in enumerate(graph["nodes"]):
        for option in [*node["options"], "colour"]:
            refused = []
            for value in WRONG:
                wrong = copy.deepcopy(graph)
                wrong["nodes"][i]["options"][option] = value
                fits = not _problems(wrong)
                try:
                    ax.bundle.graph_from_json(wrong, constants=constants)
                except BundleError:
                    refused.append(value)
                else:
                    assert fits, f"the reader takes {op}.{option} = {value!r}, the schema does not"
                assert not (fits and value in refused), (
                    f"the schema takes {op}.{option} = {value!r}, the reader does not"
                )
            assert refused, f"{op}.{option} takes anything"


@settings(max_examples=examples(25), deadline=None)
@given(models(policies=True, wide=True), st.data())
def test_random_graphs_fit_the_schema_and_one_wrong_option_does_not(model: ax.Model, data: st.DataObject):
    """Blocks and policies included."""
    graph = json.loads(json.dumps(ax.bundle.graph_to_json(model)[0]))
    assert _problems(graph) == []
    bodies = _bodies(graph)
    node = data.draw(st.sampled_from(data.draw(st.sampled_from(bodies))["nodes"]))
    node.setdefault("options", {})["colour"] = "red"
    assert _problems(graph)


def _bodies(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The graph and the definitions of its blocks, at any depth."""
    return [graph, *(body for block in graph.get("blocks", {}).values() for body in _bodies(block))]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"nodes": []},
        {"outputs": 3},
        {"policy": {"compute": "s32"}},
        {"tied": {"a.b": {"transform": "transpose"}}},
        {"blocks": {"a.b": {}}},
        {"blocks": {"a": {"inputs": [], "nodes": [{"name": "x", "op": "input"}], "outputs": "x"}}},
        {"nodes": [{"name": "x", "op": "relu"}]},
        {"nodes": [{"name": "x", "op": "dense", "inputs": ["y"], "options": {"use_bias": True}}]},
        {"nodes": [{"name": "x", "op": "input", "params": [{"name": "a"}]}]},
        {"nodes": [{"name": "1", "op": "input"}]},
        {"colour": "red"},
    ],
)
def test_wrong_heads_blocks_policies_and_ties_do_not_fit(change: dict[str, Any]):
    """The keys around the options are checked too."""
    graph = ax.bundle.graph_to_json(ax.input("x", shape=(None, 3)).dense(2))[0]
    assert _problems(graph) == []
    assert _problems({**graph, **change})


CANDIDATES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 0.5, 1.0, -1, 64, "", "valid", "same", "first", "last", "f32", "zeros", "relu"),
    *(
        "sum",
        "less",
        "nearest",
        "dynamic",
        "normalization",
        "batch",
        "a",
        [],
        [1],
        [2, 2],
        [0, 1],
        [[0, 1]],
        [[1, 2], [3, 4]],
    ),
    *(["a", "b"], ["a", 0], [None, 3], ["batch", "auto"], {"name": "normal", "scale": 0.5}, {"a": 0, "b": [1]}, [1, 0]),
]


@pytest.mark.parametrize("op", [op for op in OPS if op != "constant"])
def test_whatever_an_option_takes_travels_and_fits_the_schema(op: str):
    """A value in its canonical form, written as JSON, is read as the same value; the schema takes it too."""
    for option, domain in OPS[op].op.options.items():
        taken = 0
        schema = {"$defs": SCHEMA["$defs"], **domain.schema}
        for value in CANDIDATES:
            fits = jsonschema.Draft202012Validator(schema).is_valid(value)
            try:
                parsed = domain.parse(value)
            except (TypeError, ValueError):
                continue
            assert fits, f"{op}.{option} takes {value!r}, its schema does not"
            taken += 1
            assert domain.parse(json.loads(json.dumps(parsed))) == parsed
        assert taken, f"no candidate for {op}.{option}"
