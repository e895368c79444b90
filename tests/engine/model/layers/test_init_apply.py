"""Modules of other libraries as layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError
from engine.model.build import path_hash

pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork.*")
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def _init(key: Any, x: Any) -> Any:
    first, second = jax.random.split(key)
    return {
        "mlp/~/linear": {"w": jax.random.normal(first, (x.shape[-1], 6)), "b": jnp.zeros(6)},
        "scales": [jax.random.normal(second, (6,)), jnp.ones(6)],
        "count": jnp.asarray(3, jnp.int32),
    }


def _apply(params: Any, x: Any, *, power: int = 1) -> Any:
    linear = params["mlp/~/linear"]
    y = jnp.tanh(x @ linear["w"] + linear["b"]) * params["scales"][0] + params["scales"][1]
    return y**power * params["count"]


def _model(**options: Any) -> ax.Model:
    return ax.layer_from_init_apply(_init, _apply, ax.input("x", shape=(None, 4)), row_wise=True, **options)


def test_parameters_are_named_by_their_paths():
    """Valid names in place of a library's own; what is no float is state."""
    state = ax.build(_model())[0](seed=2)
    assert sorted(state.paths()) == [
        "module_0.count",
        "module_0.mlp_linear.b",
        "module_0.mlp_linear.w",
        "module_0.scales._0",
        "module_0.scales._1",
    ]
    assert list(state.state["module_0"]) == ["count"]


def test_initial_values_are_those_of_one_call():
    """The layer's key is the seed's key folded with its name; all parameters come of one `init`."""
    state = ax.build(_model(name="mine"))[0](seed=2)
    key = jax.random.fold_in(jax.random.key(2, impl="threefry2x32"), path_hash("mine"))
    expected = _init(key, X)
    np.testing.assert_array_equal(state.parameters["mine"]["mlp_linear"]["w"], expected["mlp/~/linear"]["w"])
    np.testing.assert_array_equal(state.parameters["mine"]["scales"]["_0"], expected["scales"][0])
    params = {**expected, "count": state.state["mine"]["count"]}
    _, predict = ax.build(_model(name="mine", power=2))
    np.testing.assert_allclose(predict(state, X), _apply(params, X, power=2), rtol=1e-5)


def test_a_module_trains_and_travels(tmp_path: Path):
    """As any layer of one's own, without the module on the other side."""
    model = _model().dense(1)
    y = X.sum(-1, keepdims=True)
    run = ax.train.trainer(model, "mean_squared_error", "adam").run([(X, y)] * 20, epochs=3)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    ax.bundle.write(tmp_path / "m.axon", model, run.model_state)
    read = ax.bundle.read(tmp_path / "m.axon", trusted=True)
    got, expected = ax.build(read.model)[1](read.state, X), ax.build(model)[1](run.model_state, X)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_leaves_can_be_kept_from_gradients():
    """By their paths."""
    model = _model(is_state=lambda path: path.startswith("scales"))
    assert set(ax.build(model)[0]().parameters["module_0"]) == {"mlp_linear"}


def test_an_init_that_fails_says_on_what():
    """With the shapes of the inputs."""
    with pytest.raises(GraphError, match="expected init to work on inputs"):
        ax.layer_from_init_apply(lambda key, x: x @ x, _apply, ax.input("x", shape=(None, 4)))
    with pytest.raises(GraphError, match="declared shapes"):
        ax.layer_from_init_apply(_init, _apply, ax.input("x"))


def test_a_flax_linen_module_is_a_layer(tmp_path: Path):
    """Same parameters, same answer, and a bundle."""
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    model = ax.layer_from_init_apply(module.init, module.apply, ax.input("x", shape=(None, 4)), row_wise=True)
    state = ax.build(model)[0](seed=0)
    params = jax.tree.unflatten(
        jax.tree.structure(module.init(jax.random.key(0), X)), jax.tree.leaves(state.parameters)
    )
    np.testing.assert_allclose(ax.build(model)[1](state, X), module.apply(params, X), rtol=1e-6)
    ax.bundle.write(tmp_path / "m.axon", model, state)
    read = ax.bundle.read(tmp_path / "m.axon", trusted=True)
    np.testing.assert_allclose(ax.build(read.model)[1](read.state, X), module.apply(params, X), rtol=1e-5, atol=1e-6)


def test_a_flax_nnx_module_is_a_layer():
    """In its functional form: a graph definition and a state."""
    nnx = pytest.importorskip("flax.nnx")

    def split(key: Any) -> Any:
        return nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(params=key)))

    definition = split(jax.random.key(0))[0]
    model = ax.layer_from_init_apply(
        lambda key, x: nnx.to_pure_dict(split(key)[1]),
        lambda params, x: nnx.merge(definition, params)(x),
        ax.input("x", shape=(None, 4)),
    )
    state = ax.build(model)[0](seed=0)
    own = state.parameters["module_0"]
    np.testing.assert_allclose(ax.build(model)[1](state, X), X @ own["kernel"] + own["bias"], rtol=1e-5, atol=1e-6)


def test_a_haiku_transform_is_a_layer():
    """`init(key, x)` and `apply(params, key, x)`."""
    hk = pytest.importorskip("haiku")
    transformed = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 3])(x)))
    model = ax.layer_from_init_apply(transformed.init, transformed.apply, ax.input("x", shape=(None, 4)))
    state = ax.build(model)[0](seed=0)
    params = transformed.init(jax.random.key(0), X)
    params = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(state.parameters))
    np.testing.assert_allclose(ax.build(model)[1](state, X), transformed.apply(params, X), rtol=1e-6)


def test_an_equinox_module_is_a_layer():
    """Its arrays are the parameters, the rest stays in the function."""
    eqx = pytest.importorskip("equinox")
    static = eqx.partition(eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.is_array)[1]
    model = ax.layer_from_init_apply(
        lambda key, x: eqx.partition(eqx.nn.Linear(4, 3, key=key), eqx.is_array)[0],
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        ax.input("x", shape=(None, 4)),
    )
    state = ax.build(model)[0](seed=0)
    own = state.parameters["module_0"]
    np.testing.assert_allclose(ax.build(model)[1](state, X), X @ own["weight"].T + own["bias"], rtol=1e-5, atol=1e-6)
