"""Graphs: naming, sharing, options, errors."""

from __future__ import annotations

import pytest

import engine as ax
from engine.errors import GraphError, OptionError


def _names(model: ax.Model) -> list[str]:
    return list(model.names().values())


def test_methods_and_functions_build_the_same_graph():
    """Chaining equals nesting."""
    chained = ax.input("x", shape=(None, 8)).dense(4, activation="relu").dropout(rate=0.5).dense(2)
    nested = ax.dense(ax.dropout(ax.relu(ax.dense(ax.input("x", shape=(None, 8)), 4)), rate=0.5), 2)
    assert ax.bundle.graph_to_json(chained) == ax.bundle.graph_to_json(nested)


def test_layers_leave_their_input_unchanged():
    """A layer returns a bigger model and changes none."""
    x = ax.input("x")
    x.dense(3).relu()
    assert _names(x) == ["x"]


def test_names_count_per_op_in_post_order():
    """Numbers follow the finished graph, not the order of creation."""
    late, early = ax.input("b").dense(1), ax.input("a").dense(2)
    assert _names(ax.add(early, late)) == ["a", "dense_0", "b", "dense_1", "add_0"]


def test_a_layer_used_twice_is_one_node():
    """Using a layer object twice shares it."""
    shared = ax.input("x").dense(3)
    assert _names(ax.add(shared, shared.relu())) == ["x", "dense_0", "relu_0", "add_0"]


def test_names_may_be_patterns_and_functions():
    """`{n}` is the op's counter; a function gets the op and the counts."""
    model = ax.input("x").dense(1).dense(1, name="head_{n}").dense(1, name=lambda op, counts: f"{op}_at_{counts[op]}")
    assert _names(model) == ["x", "dense_0", "head_1", "dense_at_2"]


def test_generated_names_step_aside_for_explicit_ones():
    """A number that the user took is not given again."""
    model = ax.input("x").dense(1).dense(1, name="dense_0").dense(1)
    assert _names(model) == ["x", "dense_1", "dense_0", "dense_2"]


def test_duplicate_name_says_both_places():
    """Two distinct layers with one name are an error that names both lines."""
    model = ax.input("x").dense(2, name="a").dense(2, name="a")
    with pytest.raises(GraphError, match=r"'a' for two nodes.*test_graph.py:\d+.*test_graph.py:\d+"):
        model.names()


@pytest.mark.parametrize("name", ["", "a.b", "0a", "a" * 129, "a b", "é"])
def test_invalid_names_are_refused(name: str):
    """Dots join paths, so no name has one."""
    with pytest.raises(GraphError, match="expected a name matching"):
        ax.input(name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: x.dense(0), "dense: expected option units to be a positive integer, got 0"),
        (lambda x: x.dense(True), "units to be a positive integer, got True"),
        (lambda x: x.dropout(rate=1.0), r"rate to be a finite number in \[0, 1\)"),
        (lambda x: x.conv(3, padding="full"), "padding to be 'valid', 'same', or a pair"),
        (lambda x: x.celu(alpha=0.0), "alpha to be a finite number other than 0"),
        (lambda x: x.dense(3, activation="rleu"), "expected one of celu, .* got 'rleu'"),
        (lambda x: x.activation("relu", alpha=1.0), "relu: expected options out of none, got alpha"),
        (lambda x: x.dense(3, kernel_initializer="glorot"), "initializer: expected a name among"),
        (lambda x: x.reshape(("batch", -3)), "new_shape"),
    ],
)
def test_wrong_options_say_what_was_expected(build, message: str):
    """Options are checked where they are given."""
    with pytest.raises(OptionError, match=message):
        build(ax.input("x"))


def test_other_values_as_inputs_are_refused():
    """Only models are inputs of layers."""
    with pytest.raises(GraphError, match="add: expected models as inputs, got int"):
        ax.add(ax.input("x"), 3)  # type: ignore[arg-type]


def test_very_deep_graphs_are_walked_without_recursion():
    """Depth costs no stack."""
    model = ax.input("x")
    for _ in range(20_000):
        model = model.relu()
    assert len(model.nodes()) == 20_001
