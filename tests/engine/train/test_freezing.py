"""Freezing by patterns of paths and layers."""

from __future__ import annotations

import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError
from engine.model.state import ModelState
from engine.train.freezing import freeze, unfreeze


def state() -> ModelState:
    """A dense layer, its statistics, a dropout, another dense layer."""
    model = ax.input("x", shape=(None, 3)).dense(4).batch_norm().dropout(rate=0.5).dense(2)
    return ax.build(model, mode="train")[0]()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["dense_0"], {"dense_0.kernel", "dense_0.bias"}),
        (["dense_0.*"], {"dense_0.kernel", "dense_0.bias"}),
        (["*.bias"], {"dense_0.bias", "dense_1.bias"}),
        (["dense_0.k?rnel", "dense_1.bias"], {"dense_0.kernel", "dense_1.bias"}),
        (["batch_norm_0"], {f"batch_norm_0.{name}" for name in ("gamma", "beta", "mean", "var")}),
        (
            ["[bd]*_0"],
            {f"batch_norm_0.{n}" for n in ("gamma", "beta", "mean", "var")} | {"dense_0.kernel", "dense_0.bias"},
        ),
    ],
)
def test_patterns_name_paths_and_layers(patterns: list[str], expected: set[str]) -> None:
    """Running statistics are frozen with their layer; the random key of a dropout never is."""
    assert freeze(state(), patterns).frozen == expected


def test_frozen_layers_are_named_to_train_again() -> None:
    """What was frozen before stays so unless a pattern names it."""
    frozen = freeze(state(), ["dense_0"])
    assert freeze(frozen, ["dense_1.bias"]).frozen == {"dense_0.kernel", "dense_0.bias", "dense_1.bias"}
    assert unfreeze(frozen, ["*.bias"]).frozen == {"dense_0.kernel"}
    assert unfreeze(frozen, ["dense*"]).frozen == set()


@pytest.mark.parametrize("pattern", ["conv*", "dense", "dropout_0.key", "kernel"])
def test_pattern_that_fits_nothing_is_named(pattern: str) -> None:
    """Of freezing and of unfreezing."""
    with pytest.raises(OptionError, match=f"freeze: expected '{pattern}'".replace("*", r"\*")):
        freeze(state(), ["dense_0", pattern])
    with pytest.raises(OptionError, match=f"unfreeze: expected '{pattern}'".replace("*", r"\*")):
        unfreeze(freeze(state(), ["dense_0"]), [pattern])


def test_something_is_left_to_train() -> None:
    """A job that could change nothing is a mistake."""
    with pytest.raises(OptionError, match="leave parameters to train"):
        freeze(state(), ["*"])


def test_frozen_parameters_and_statistics_stay_bit_for_bit() -> None:
    """Whatever the optimizer does."""
    model = ax.input("x", shape=(None, 3)).dense(4).batch_norm().dropout(rate=0.5).dense(2)
    before = freeze(state(), ["dense_0", "batch_norm_0"])
    rng = np.random.default_rng(0)
    batches = [({"x": rng.normal(size=(8, 3)).astype(np.float32)}, rng.normal(size=(8, 2)).astype(np.float32))] * 3
    optimizer = {"name": "adamw", "learning_rate": 0.1, "decay": 0.1}
    after = ax.train.trainer(model, "mean_squared_error", optimizer).run(batches, before).model_state
    for name in ("dense_0", "batch_norm_0"):
        for tree, left in ((before.parameters, after.parameters), (before.state, after.state)):
            for leaf in tree.get(name, {}):
                np.testing.assert_array_equal(tree[name][leaf], left[name][leaf])
    assert not np.array_equal(before.parameters["dense_1"]["kernel"], after.parameters["dense_1"]["kernel"])
    assert not np.array_equal(before.state["dropout_0"]["key"], after.state["dropout_0"]["key"])
