"""Programs written by the oldest and the newest JAX load, predict and differentiate on the one that runs the tests.

Expected numbers come from NumPy. A missing file is made by `make_golden_programs` under that JAX.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from tests.engine.bundle.make_golden_programs import GOLDEN

every_version = pytest.mark.parametrize("version", ["0.10", "0.12"])
X = np.random.default_rng(3).standard_normal((2, 5, 3)).astype(np.float32)
Y = np.random.default_rng(4).standard_normal((2, 5, 2)).astype(np.float32)


def _read(version: str) -> Any:
    return ax.bundle.read(GOLDEN / f"program-jax-{version}.axon", trusted=True)


def _top(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    product = x @ kernel
    gelu = product * 0.5 * (1 + np.vectorize(math.erf)(product / math.sqrt(2)))
    steps = np.zeros_like(gelu)
    carry = np.zeros_like(gelu[:, 0])
    for time in range(x.shape[1]):
        steps[:, time] = carry = 0.5 * carry + gelu[:, time]
    return -np.sort(-steps, axis=-1)[..., :2]


def _predict(parameters: Any, x: np.ndarray) -> np.ndarray:
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    dense = wide["dense_0"]
    return _top(np.asarray(x, np.float64), wide["smoothed_top_0"]["kernel"]) @ dense["kernel"] + dense["bias"]


@every_version
def test_predictions_are_those_of_numpy(version: str):
    """At a batch and a length that nobody knew when the file was written."""
    bundle = _read(version)
    _, predict = ax.build(bundle.model)
    for x in (X, np.tile(X, (3, 2, 1))):
        np.testing.assert_allclose(
            jax.jit(predict)(bundle.state, x), _predict(bundle.state.parameters, x), rtol=1e-5, atol=1e-5
        )


@every_version
def test_gradients_are_those_of_finite_differences(version: str):
    """Of the loss that came along, through the layer that came along, with respect to its parameter."""
    bundle = _read(version)
    _, predict = ax.build(bundle.model)
    loss, parameters = bundle.functions["log_cosh"], bundle.state.trainable()

    def total(parameters: Any) -> Any:
        return loss(Y, predict(bundle.state.with_trainable(parameters), X))

    kernel = np.asarray(parameters["smoothed_top_0"]["kernel"], np.float64)
    got = jax.jit(jax.grad(total))(parameters)["smoothed_top_0"]["kernel"]

    def at(kernel: np.ndarray) -> float:
        moved = {**parameters, "smoothed_top_0": {"kernel": kernel}}
        return float(np.mean(np.log(np.cosh(_predict(moved, X) - Y))))

    for i, j in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[i, j] = 1e-5
        expected = (at(kernel + step) - at(kernel - step)) / 2e-5
        np.testing.assert_allclose(got[i, j], expected, rtol=1e-3, atol=1e-5)


@every_version
def test_training_draws_from_the_key_in_the_state(version: str):
    """Every value is dropped or doubled, and the key moves on as threefry says."""
    bundle = _read(version)
    _, predict = ax.build(bundle.model, mode="train")
    output = predict(bundle.state, X)
    key = jax.random.wrap_key_data(bundle.state.state["noise_0"]["key"], impl="threefry2x32")
    now, following = jax.random.split(key)
    np.testing.assert_array_equal(output.state["noise_0"]["key"], jax.random.key_data(following))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), bundle.state.parameters)
    top = _top(np.asarray(X, np.float64), wide["smoothed_top_0"]["kernel"])
    kept = np.where(np.asarray(jax.random.bernoulli(now, 0.5, top.shape)), 2 * top, 0)
    expected = kept @ wide["dense_0"]["kernel"] + wide["dense_0"]["bias"]
    np.testing.assert_allclose(output.prediction, expected, rtol=1e-5, atol=1e-5)


@every_version
def test_a_trainer_goes_on_from_the_file(version: str):
    """The loss falls."""
    bundle = _read(version)
    run = ax.train.trainer(bundle.model, bundle.functions["log_cosh"], "adam")
    history = run.run([(X, Y)] * 30, epochs=3, state=bundle.state).history
    assert history[-1]["loss"] < history[0]["loss"]


@every_version
def test_the_file_is_written_again_byte_for_byte(version: str, tmp_path: Path):
    """By a JAX that may be another: programs are kept, and who made them."""
    bundle = _read(version)
    functions = list(bundle.functions.values())
    ax.bundle.write(tmp_path / "m.axon", bundle.model, bundle.state, functions=functions)
    old, new = (_members(path) for path in (GOLDEN / f"program-jax-{version}.axon", tmp_path / "m.axon"))
    manifests = [json.loads(members.pop("manifest.json")) for members in (old, new)]
    assert new == old
    assert manifests[0]["programs"] == manifests[1]["programs"]
    assert manifests[0]["programs"]["jax"][0].startswith(version)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
