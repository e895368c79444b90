"""The PyTorch notes: dynamic graph, autograd, a module's named parameters, a scripted function, a state dict."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.model.state import flatten


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_branch_on_data_gives_the_product_or_zeros():
    """Where x sums to more than 0 the answer is x (3x4) times y (4x5), else zeros of the same shape."""
    y = _draw(4, 5)
    x = ax.input("x", shape=(None, 4))
    product = x.dense(5, use_bias=False)
    model = ax.cond(x, product, product.subtract(product))
    predict = jax.jit(ax.build(model)[1])
    state = ax.ModelState({"dense_0": {"kernel": y}})
    positive = np.abs(_draw(3, 4))
    np.testing.assert_allclose(predict(state, positive), positive @ y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predict(state, -positive), np.zeros((3, 5)))


def test_the_gradient_of_the_mean_square_is_two_y_over_15():
    """loss = mean((xw + b)^2) over a (3, 5) result: its gradient at y is 2y/15, and w, x and b get theirs by it."""
    x, w, b = _draw(3, 4), _draw(4, 5), _draw(5)

    def loss(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(ax.functional.dense(x, w, b) ** 2)

    at_x, at_w, at_b = jax.grad(loss, argnums=(0, 1, 2))(x, w, b)
    y = x @ w + b
    at_y = jax.grad(lambda y: jnp.mean(y**2))(y)
    np.testing.assert_allclose(at_y, 2 * y / 15, rtol=1e-5)
    np.testing.assert_allclose(at_x, (2 * y / 15) @ w.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(at_w, x.T @ (2 * y / 15), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(at_b, (2 * y / 15).sum(0), rtol=1e-4, atol=1e-6)


def _simple_net() -> ax.Model:
    return ax.input("x", shape=(None, 10)).dense(50, activation="relu").dense(3)


def test_simple_net_has_703_parameters_by_name():
    """10-50-3: 500 + 50 + 150 + 3, in a stable order."""
    state = ax.build(_simple_net())[0](seed=0)
    found = {path: leaf.shape for path, leaf in flatten(state.parameters)}
    assert found == {
        "dense_0.kernel": (10, 50),
        "dense_0.bias": (50,),
        "dense_1.kernel": (50, 3),
        "dense_1.bias": (3,),
    }
    assert sum(leaf.size for _, leaf in flatten(state.parameters)) == 703


def test_a_scripted_function_is_saved_loaded_and_called(tmp_path: Path):
    """sin(x + y) * cos(x + y) over vectors of 100 goes into a file and comes back without its source."""
    x, y = ax.input("x", shape=(None,)), ax.input("y", shape=(None,))
    model = ax.layer(lambda x, y: jnp.sin(x + y) * jnp.cos(x + y), [x, y], row_wise=True, op_name="sincos")
    path = tmp_path / "sincos.axon"
    ax.bundle.write(path, model, ax.ModelState({}))
    loaded = ax.bundle.read(path)
    a, b = _draw(100), _draw(2, 100)[1]
    got = jax.jit(ax.build(loaded.model)[1])(loaded.state, {"x": a, "y": b})
    np.testing.assert_allclose(got, np.sin(a + b) * np.cos(a + b), rtol=1e-5, atol=1e-6)


def test_a_torch_state_dict_comes_in_and_goes_out():
    """SimpleNN's weights, (out, in) in torch, give torch's own predictions here, and return unchanged."""
    from engine.interop.torch_state import from_torch, to_torch

    w0, b0, w1, b1 = _draw(50, 10), _draw(50), _draw(3, 50), _draw(3)
    given = {"fc1.weight": w0, "fc1.bias": b0, "fc2.weight": w1, "fc2.bias": b1}
    model = _simple_net()
    names = {"dense_0": "fc1", "dense_1": "fc2"}
    state = from_torch(model, given, names=names)
    x = _draw(4, 10)
    expected = np.maximum(x @ w0.T + b0, 0) @ w1.T + b1
    np.testing.assert_allclose(ax.build(model)[1](state, x), expected, rtol=1e-4, atol=1e-5)
    back = to_torch(model, state, names=names)
    assert back.keys() == given.keys()
    for key, value in given.items():
        np.testing.assert_array_equal(back[key], value)


def test_torch_itself_agrees():
    """With torch installed: the module of the notes and its import here predict the same."""
    torch = pytest.importorskip("torch")
    from engine.interop.torch_state import from_torch

    module = torch.nn.Sequential(torch.nn.Linear(10, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3))
    model = _simple_net()
    state = from_torch(model, module.state_dict(), names={"dense_0": "0", "dense_1": "2"})
    x = _draw(4, 10)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ax.build(model)[1](state, x), expected, rtol=1e-5, atol=1e-6)
