"""The Axon notes: the model of the first example, and the printed table of the README."""

from __future__ import annotations

import jax
import numpy as np

import engine as ax
from engine.model.state import flatten


def test_the_first_model_has_109642_parameters_and_rows_that_sum_to_one():
    """dense 128, batch_norm, dropout, dense 64, dense 10: 100,480 + 256 + 8,256 + 650; any tensor is a template."""
    model = (
        ax.input("input", shape=(None, 784))
        .dense(128, activation="relu")
        .batch_norm()
        .dropout(rate=0.5)
        .dense(64, activation="relu")
        .dense(10, activation="softmax")
    )
    images = jax.random.uniform(jax.random.key(42), (32, 784))
    init, predict = ax.build(model)
    state = init(images, seed=42)
    sizes: dict[str, int] = {}
    for path, leaf in flatten(state.parameters):
        sizes[path.split(".")[0]] = sizes.get(path.split(".")[0], 0) + leaf.size
    assert sizes == {"dense_0": 100_480, "batch_norm_0": 256, "dense_1": 8_256, "dense_2": 650}
    assert sum(sizes.values()) == 109_642
    np.testing.assert_allclose(predict(state, images).sum(axis=-1), np.ones(32), rtol=1e-5)


def test_the_readme_table_counts_101770_parameters_in_407080_bytes():
    """Names, counts, policies and totals of the printed table."""
    model = ax.input("input", shape=(None, 784)).dense(128).dense(10, activation="softmax")
    lines = ax.display.as_table(model).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if " ( " in line}
    assert {name: row[-3] for name, row in rows.items()} == {
        "input": "0",
        "dense_0": "100480",
        "dense_1": "1290",
        "softmax_0": "0",
    }
    assert all("p=f32 c=f32 o=f32" in " ".join(row) for row in rows.values())
    assert "Total Parameters: 101770" in lines
    assert "Total Parameters Memory: 407080 bytes" in lines


def test_models_are_values():
    """Adding a layer returns another model and leaves the first as it was."""
    first = ax.input("input", shape=(None, 784)).dense(128)
    before = repr(first)
    assert first.relu() is not first
    assert repr(first) == before
    assert len(first.nodes()) == 2


def test_chained_methods_equal_nested_calls():
    """The two spellings give the same names, parameters and predictions."""
    chained = ax.input("x", shape=(None, 8)).dense(4, activation="relu").dense(3, activation="softmax")
    nested = ax.softmax(ax.dense(ax.relu(ax.dense(ax.input("x", shape=(None, 8)), 4)), 3))
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    results = []
    for model in (chained, nested):
        init, predict = ax.build(model)
        results.append(predict(init(seed=0), x))
    assert list(chained.names().values()) == list(nested.names().values())
    np.testing.assert_array_equal(*results)
