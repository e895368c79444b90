"""Blocks: shared parameters under one name, in the mode and with the seed of the outer model."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import GraphError, ShapeError
from engine.model.state import flatten


def _x() -> ax.Model:
    return ax.input("x", shape=(None, 3))


def test_every_call_uses_the_same_parameters():
    """Two calls equal two products with one matrix."""
    b = ax.block(lambda x: x.dense(3, use_bias=False))
    model = b(b(_x()))
    init, predict = ax.build(model)
    state = init(seed=2)
    assert state.paths() == ["block_0.dense_0.kernel"]
    kernel = np.asarray(state.parameters["block_0"]["dense_0"]["kernel"], np.float64)
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(predict(state, x), x @ kernel @ kernel, rtol=1e-5, atol=1e-6)


def test_distinct_blocks_have_distinct_parameters():
    """Two blocks of one function are two layers; a name is a namespace."""
    one, other = (ax.block(lambda x: x.dense(2), name=name) for name in ("enc", None))
    x = _x()
    state = ax.build(ax.add(one(x), other(x)))[0]()
    assert sorted(state.parameters) == ["block_0", "enc"]
    assert not np.array_equal(
        state.parameters["enc"]["dense_0"]["kernel"], state.parameters["block_0"]["dense_0"]["kernel"]
    )


def test_training_reaches_into_a_block():
    """Dropout drops and batch_norm updates inside a block when the outer model trains."""
    b = ax.block(lambda x: x.batch_norm().dropout(rate=0.5))
    model = b(_x())
    state = ax.build(model)[0]()
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    output = ax.build(model, mode="train")[1](state, x)
    assert float((np.asarray(output.prediction) == 0).mean()) == pytest.approx(0.5, abs=0.15)
    np.testing.assert_allclose(output.state["block_0"]["batch_norm_0"]["mean"], 0.9 * x.mean(0), rtol=1e-5)
    assert set(dict(flatten(state.update(state=output.state).state))) == set(dict(flatten(state.state)))


def test_arguments_come_in_order_and_of_any_type():
    """The first argument is the first parameter, whatever the graph needs first; tokens stay integers."""
    b = ax.block(lambda tokens, x: ax.subtract(x, tokens.embedding(5, 3)))
    model = b(ax.input("t", shape=(None,), dtype="s32"), _x())
    init, predict = ax.build(model)
    state = init()
    t, x = np.array([1, 4], np.int32), np.ones((2, 3), np.float32)
    table = np.asarray(state.parameters["block_0"]["embedding_0"]["kernel"])
    np.testing.assert_allclose(predict(state, {"t": t, "x": x}), x - table[t], rtol=1e-6)


def test_misuse_names_what_was_expected():
    """Another number of inputs, models from outside, a name in use, a wrong shape inside."""
    with pytest.raises(GraphError, match="block: expected 1 inputs, got 2"):
        ax.block(lambda x: x.relu())(_x(), _x())
    outside = ax.input("y")
    with pytest.raises(GraphError, match="its 1 arguments and no other"):
        ax.block(lambda x: x.add(outside))
    with pytest.raises(GraphError, match="expected a function of 1 to 64 models, got one of 0"):
        ax.block(lambda: ax.input("z"))
    clash = ax.block(lambda x: x.dense(3), name="a")(_x().dense(3, name="a"))
    with pytest.raises(GraphError, match="'a'"):
        ax.build(clash)
    with pytest.raises(ShapeError, match=r"in layer 'block_0.conv_0'.*in layer 'block_0'"):
        ax.build(ax.block(lambda x: x.conv(2))(_x()))[0]()


def test_remat_changes_no_gradient_and_recomputes():
    """The gradients and the layer state are the same; the program computes the block again in the backward pass."""
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    results, programs = [], []
    for remat in (False, True):
        b = ax.block(lambda x: x.dense(3, activation="tanh").batch_norm().dropout(rate=0.5), name="b", remat=remat)
        init, train = ax.build(b(b(_x())).dense(2), mode="train")
        state = init(seed=1)

        def loss(trainable, train=train, state=state):
            output = train(state.with_trainable(trainable), x)
            return (output.prediction**2).sum(), output.state

        gradient = jax.value_and_grad(loss, has_aux=True)
        results.append(gradient(state.trainable()))
        programs.append(str(jax.make_jaxpr(gradient)(state.trainable())))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    assert "checkpoint" not in programs[0]
    assert "checkpoint" in programs[1] or "remat" in programs[1]


def test_a_namespace_puts_parameters_under_its_prefix():
    """Namespaces nest; what they compute is what the function computes."""
    model = ax.namespace("enc", _x(), lambda x: ax.namespace("deep", x.dense(2), lambda y: y.dense(4, use_bias=False)))
    state = model.init(seed=1)
    assert state.paths() == ["enc.deep.dense_0.kernel", "enc.dense_0.bias", "enc.dense_0.kernel"]
    x, found = np.ones((2, 3), np.float32), state.parameters["enc"]
    hidden = x @ np.asarray(found["dense_0"]["kernel"])
    np.testing.assert_allclose(
        model.apply(state, x), hidden @ np.asarray(found["deep"]["dense_0"]["kernel"]), rtol=1e-6
    )
    pair = ax.namespace("both", [_x(), ax.input("y", shape=(None, 3))], lambda a, b: a.dense(3).add(b))
    assert list(pair.get_inputs()) == ["x", "y"]


def test_a_deferred_model_knows_the_shapes_of_its_inputs():
    """Sizes that the inputs leave open are None, also behind a convolution; types are those of the values."""
    x = ax.input("x", shape=(None, None, 8))
    tokens = ax.input("t", shape=(None, 4), dtype="s32")
    seen = []

    def factory(*found):
        seen.extend(found)
        width = found[0].shape[-1]
        return lambda a, b: a.dense(2 * width).global_avg_pool().add(b.embedding(7, 2 * width).global_avg_pool())

    model = ax.deferred([x.conv(6, kernel_size=3), tokens], factory, name="join")
    assert [(s.shape, str(s.dtype)) for s in seen] == [((None, None, 6), "float32"), ((None, 4), "int32")]
    values = {"x": np.ones((2, 5, 8), np.float32), "t": np.ones((2, 4), np.int32)}
    state = model.init(values)
    assert state.parameters["join"]["dense_0"]["kernel"].shape == (6, 12)
    assert model.apply(state, values).shape == (2, 12)


def test_a_deferred_model_may_be_a_block_and_needs_declared_shapes():
    """A block that the factory returns is called; an input without a shape is named."""
    shared = ax.block(lambda x: x.dense(3))
    model = ax.deferred(shared(_x()), lambda _: shared)
    assert model.init().paths() == ["block_0.dense_0.bias", "block_0.dense_0.kernel"]
    with pytest.raises(GraphError, match="deferred: expected inputs of declared shapes, got none for 'q'"):
        ax.deferred(ax.input("q"), lambda shape: lambda x: x)
    with pytest.raises(GraphError, match="expected factory to return a function of models, got int"):
        ax.deferred(_x(), lambda shape: 3)
    with pytest.raises(ShapeError, match="in layer 'conv_0'"):
        ax.deferred(_x().conv(2), lambda shape: lambda x: x)


def test_shapes_of_further_calls_are_those_of_the_first():
    """A block called with values of the same shapes is traced once, and every call is told; other shapes are others."""
    traced = []

    def double(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return x * 2

    inner = ax.block(lambda x: x.nx(double, name="double"), name="inner", remat=True)
    outer = ax.block(lambda x: inner(inner(x)), name="outer")
    x = ax.input("x", shape=(None, 4))
    model = outer(outer(x)).flatten().concatenate(outer(ax.input("z", shape=(None, 6))))
    layers = ax.infer(model)
    assert traced == [(1, 4), (1, 6)]
    assert [layer.output.shape for layer in layers if layer.name == "outer.inner.double"] == [(1, 4)] * 4 + [(1, 6)] * 2
    assert layers[-1].output.shape == (1, 10)
