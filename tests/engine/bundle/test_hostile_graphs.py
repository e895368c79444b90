"""Graphs from strangers: valid ones with one value changed are accepted or refused, never a crash, never a hang."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest

import engine as ax
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
        ax.bundle.check_size(model)
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
