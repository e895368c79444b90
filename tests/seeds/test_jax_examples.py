"""The JAX notes: NumPy calls, derivatives, vmap and its composition, keys, remat, static shapes, other libraries."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import ShapeError


def test_the_numpy_calls_of_the_notes():
    """dot(ones(3, 4), [1, 2, 3, 4]) = [10, 10, 10]; the mean is 2.5 and the standard deviation 1.118034."""
    values = jnp.array([1.0, 2.0, 3.0, 4.0])
    got = ax.functional.dense(jnp.ones((3, 4)), values[:, None], jnp.zeros(1))[:, 0]
    np.testing.assert_allclose(got, [10, 10, 10])
    assert float(jnp.mean(values)) == 2.5
    assert float(jnp.std(values)) == pytest.approx(1.118034, abs=1e-6)


def test_first_and_second_derivative_through_the_engine():
    """f(x) = sin x cos x as a layer: f'(2) = cos 4 = -0.653644 and f''(2) = -2 sin 4 = 1.513605."""
    model = ax.input("x", shape=(None,)).nx(lambda x: jnp.sin(x) * jnp.cos(x))
    predict = ax.build(model)[1]

    def f(x: jax.Array) -> jax.Array:
        return predict(ax.ModelState({}), x[None])[0]

    assert float(jax.grad(f)(jnp.float32(2.0))) == pytest.approx(-0.653644, abs=1e-5)
    assert float(jax.grad(jax.grad(f))(jnp.float32(2.0))) == pytest.approx(1.513605, abs=1e-5)


def test_nested_gradients_through_an_activation():
    """tanh' = 1 - tanh^2 and tanh'' = -2 tanh (1 - tanh^2)."""
    t = math.tanh(0.3)
    first = jax.grad(ax.functional.activations.tanh)
    assert float(first(0.3)) == pytest.approx(1 - t**2, abs=1e-6)
    assert float(jax.grad(first)(0.3)) == pytest.approx(-2 * t * (1 - t**2), abs=1e-6)


def test_vmap_over_rows_with_shared_weights():
    """dot(x, w) mapped with in_axes (0, None): a batch of 128 gives (128,)."""
    x = jax.random.normal(jax.random.key(0), (128, 10))
    w = jax.random.normal(jax.random.key(1), (10,))

    def dot(row: jax.Array, w: jax.Array) -> jax.Array:
        return ax.functional.dense(row[None], w[:, None], jnp.zeros(1))[0, 0]

    got = jax.vmap(dot, in_axes=(0, None))(x, w)
    assert got.shape == (128,)
    np.testing.assert_allclose(got, x @ w, rtol=1e-4, atol=1e-5)


def test_gradient_of_jit_of_vmap():
    """The gradient of x.w with respect to the shared w, row by row over x (10, 3), is x itself."""
    x = jax.random.normal(jax.random.key(0), (10, 3))
    predict = ax.build(ax.input("x", shape=(None, 3)).dense(1, use_bias=False))[1]

    def value(kernel: jax.Array, row: jax.Array) -> jax.Array:
        return predict(ax.ModelState({"dense_0": {"kernel": kernel}}), row[None])[0, 0]

    got = jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(jnp.ones((3, 1)), x)
    np.testing.assert_allclose(got[..., 0], x, rtol=1e-6)


def test_a_seed_means_the_same_everywhere():
    """One seed gives one set of parameters, another another; keys split into different keys."""
    init = ax.build(ax.input("x", shape=(None, 10)).dense(5))[0]
    kernels = [init(seed=seed).parameters["dense_0"]["kernel"] for seed in (42, 42, 43)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    first, second, third = jax.random.split(jax.random.key(42), 3)
    draws = {tuple(np.asarray(jax.random.normal(key, (5,)))) for key in (first, second, third)}
    assert len(draws) == 3


def test_gradients_with_and_without_remat_are_equal():
    """Ten steps of a block, recomputed in the backward pass or kept: the same gradients."""
    x = jax.random.normal(jax.random.key(0), (4, 8))
    gradients = []
    for remat in (False, True):
        step = ax.block(lambda x: x.dense(8, activation="tanh"), name="step", remat=remat)
        model = ax.input("x", shape=(None, 8))
        for _ in range(10):
            model = step(model)
        init, predict = ax.build(model)
        state = init(seed=0)
        gradients.append(jax.grad(lambda p, predict=predict: predict(ax.ModelState(p), x).sum())(state.parameters))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *gradients)


def test_a_wrong_shape_fails_while_tracing():
    """(3, 4) times (4, 5) works; (3, 4) times (3, 5) names the layer and both shapes before anything is computed."""
    predict = ax.build(ax.input("x", shape=(None, 4)).dense(5, use_bias=False))[1]
    fits, wrong = (ax.ModelState({"dense_0": {"kernel": jnp.ones(shape)}}) for shape in ((4, 5), (3, 5)))
    assert jax.eval_shape(predict, fits, jnp.ones((3, 4))).shape == (3, 5)
    with pytest.raises(ShapeError, match=r"layer 'dense_0': expected kernel of shape \(4, 5\), got \(3, 5\)"):
        jax.eval_shape(predict, wrong, jnp.ones((3, 4)))


def test_a_flax_module_becomes_a_layer():
    """The SimpleNN of the Flax notes: dense 12, relu, dense 1, a (1, 10) input gives (1, 1)."""
    nn = pytest.importorskip("flax.linen")

    class SimpleNN(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(1)(nn.relu(nn.Dense(12)(x)))

    module = SimpleNN()
    model = ax.layer_from_init_apply(module.init, module.apply, ax.input("x", shape=(None, 10)), name="net")
    init, predict = ax.build(model)
    state = init(seed=0)
    x = jnp.ones((1, 10))
    own = {"params": state.parameters["net"]["params"]}
    assert predict(state, x).shape == (1, 1)
    np.testing.assert_allclose(predict(state, x), module.apply(own, x), rtol=1e-6)


def test_a_haiku_function_becomes_a_layer():
    """transform(simple_net) gives the pair init, apply that the layer is made of."""
    haiku = pytest.importorskip("haiku")

    def simple_net(x: jax.Array) -> jax.Array:
        return haiku.Sequential([haiku.Linear(12), jax.nn.relu, haiku.Linear(1)])(x)

    pair = haiku.without_apply_rng(haiku.transform(simple_net))
    model = ax.layer_from_init_apply(pair.init, pair.apply, ax.input("x", shape=(None, 10)), name="net")
    init, predict = ax.build(model)
    x = jnp.linspace(0, 1, 10)[None]
    assert predict(init(seed=0), x).shape == (1, 1)


def test_lennard_jones_forces_are_minus_the_gradient_of_the_energy():
    """100 particles in a box of 10: energy 4 (r^-12 - r^-6) per pair; forces by the formula, and they sum to zero."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), -1).reshape(-1, 3)[:100] * 2.0
    positions = jnp.asarray(grid + rng.uniform(-0.2, 0.2, grid.shape), jnp.float32)

    def energy(positions: jax.Array) -> jax.Array:
        first, second = np.triu_indices(len(grid), 1)
        squared = ((positions[first] - positions[second]) ** 2).sum(-1)
        return jnp.sum(4 * (squared**-6 - squared**-3))

    predict = ax.build(ax.input("positions", shape=(None, 3)).nx(energy))[1]
    forces = -jax.grad(lambda p: predict(ax.ModelState({}), p))(positions)
    p = np.asarray(positions, np.float64)
    apart = p[:, None] - p[None]
    squared = (apart**2).sum(-1) + np.eye(len(p))
    pull = (48 * squared**-7 - 24 * squared**-4) * (1 - np.eye(len(p)))
    np.testing.assert_allclose(forces, (pull[..., None] * apart).sum(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(forces.sum(0), np.zeros(3), atol=1e-2)
