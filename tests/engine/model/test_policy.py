"""Policies on models: what is cast, where, and what never is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError
from engine.model.state import flatten

BF16 = np.dtype(ml_dtypes.bfloat16)


def _model() -> ax.Model:
    return ax.input("x", shape=(None, 6)).dense(5, activation="relu").batch_norm().dense(3, activation="softmax")


def _x(rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 6)).astype(np.float32)


def _types(model: ax.Model) -> dict[str, np.dtype]:
    return {layer.name: np.dtype(layer.output.dtype) for layer in ax.infer(model)}


def test_policies_that_cast_nothing_add_no_operation():
    """Without a policy, with an empty one and with one that changes no type, the program is the same."""
    model = _model()
    state = ax.build(model)[0]()
    texts = {ax.trace_forward(m, _x(), state, "train") for m in _variants(model)}
    assert len(texts) == 1


def _variants(model: ax.Model) -> list[ax.Model]:
    return [model, ax.apply_policy(model, ax.Policy()), ax.apply_policy(model, "float32")]


def test_gradients_are_those_without_a_policy_in_f32():
    """Bit for bit."""
    state = ax.build(_model())[0]()

    def gradient(model: ax.Model) -> list[bytes]:
        predict = ax.build(model, mode="train")[1]
        loss = jax.grad(lambda p: jnp.sum(predict(state.with_trainable(p), _x()).prediction ** 2))
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(loss(state.trainable()))]

    first, *others = map(gradient, _variants(_model()))
    assert others == [first, first]


def test_compute_type_is_that_of_inputs_and_parameters():
    """A dense layer in bf16 rounds its inputs, parameters and result, as NumPy and ml_dtypes do."""
    model = ax.apply_policy(ax.input("x", shape=(None, 6)).dense(5), ax.Policy(compute="bf16"))
    init, predict = ax.build(model)
    state = init()
    kernel = np.asarray(state.parameters["dense_0"]["kernel"])
    assert kernel.dtype == np.float32
    product = (_x().astype(BF16).astype(np.float64) @ kernel.astype(BF16).astype(np.float64)).astype(BF16)
    found = predict(state, _x())
    assert found.dtype == BF16
    np.testing.assert_array_equal(np.asarray(found), product)


def test_params_type_is_that_of_the_state():
    """Parameters are made and counted in it, however they are declared; layer state keeps its own."""
    model = ax.apply_policy(_model(), ax.Policy(params="bf16"))
    state = ax.build(model)[0]()
    assert {leaf.dtype for _, leaf in flatten(state.parameters)} == {BF16}
    assert {leaf.dtype for _, leaf in flatten(state.state)} == {np.dtype(np.float32)}
    size = sum(leaf.size for _, leaf in flatten(state.parameters))
    assert f"Total Parameters Memory: {2 * size} bytes" in ax.display.as_table(model)


def test_running_statistics_stay_f32_and_move():
    """Under a half-precision policy on every layer, batch statistics are taken and kept in float32."""
    model = ax.apply_policy(_model(), ax.Policy(compute="f16", output="f16"))
    state = ax.build(model)[0]()
    out = ax.build(model, mode="train")[1](state, _x())
    assert out.prediction.dtype == jnp.float16
    mean = out.state["batch_norm_0"]["mean"]
    assert mean.dtype == jnp.float32
    assert float(jnp.abs(mean).max()) > 0


def test_keys_and_integers_are_never_cast():
    """Token ids beyond what bf16 can count select their own rows; a dropout key stays a key."""
    model = ax.input("tokens", shape=(None, 1), dtype="s32").embedding(1000, 4).flatten().dropout(rate=0.5)
    model = ax.apply_policy(model, "mixed_bfloat16")
    state = ax.build(model)[0]()
    rows = ax.build(model)[1](state, np.array([[997], [999]], np.int32))
    table = np.asarray(state.parameters["embedding_0"]["kernel"]).astype(BF16).astype(np.float32)
    np.testing.assert_array_equal(rows, table[[997, 999]])
    assert (
        ax.build(model, mode="train")[1](state, np.array([[1]], np.int32)).state["dropout_0"]["key"].dtype == "uint32"
    )


def test_layers_are_chosen_by_op_and_by_filter():
    """`only`, `exclude` and `filter` narrow it down together; later calls override earlier ones."""
    half = ax.Policy(output="bf16")
    model = ax.input("x", shape=(None, 6)).dense(4, name="a").relu().dense(4, name="b")
    assert _types(ax.apply_policy(model, half, only=["relu"])) == {"x": "f4", "a": "f4", "relu_0": BF16, "b": "f4"}
    found = ax.apply_policy(model, half, exclude=["relu"], filter=lambda node: node.name != "b")
    assert [layer.node.policy for layer in ax.infer(found)] == [ax.Policy(), half, ax.Policy(), ax.Policy()]
    again = ax.apply_policy(found, ax.Policy(output="f32"), only=["dense"])
    assert set(_types(again).values()) == {np.dtype(np.float32)}


def test_names_parameters_and_shared_layers_stay():
    """A state of the model fits the model with a policy; a layer used twice is still one."""
    x = ax.input("x", shape=(None, 6)).dense(4, activation="relu")
    model = ax.add(x.dense(3), x.dense(3))
    mixed = ax.apply_policy(model, "mixed_bfloat16")
    assert list(mixed.names().values()) == list(model.names().values())
    state = ax.build(model)[0]()
    wanted, found = ax.build(model)[1](state, _x()), ax.build(mixed)[1](state, _x())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=0.05, atol=0.05)


def test_blocks_get_it_inside():
    """Every call of a block computes in the policy's type."""
    twice = ax.block(lambda x: x.dense(6, activation="tanh"), name="twice")
    model = ax.apply_policy(twice(twice(ax.input("x", shape=(None, 6)))), ax.Policy("bf16", "bf16", "bf16"))
    state = ax.build(model)[0]()
    assert {path: leaf.dtype for path, leaf in flatten(state.parameters)} == {
        "twice.dense_0.kernel": BF16,
        "twice.dense_0.bias": BF16,
    }
    assert set(_types(model).values()) == {np.dtype(np.float32), BF16}


def test_f64_policy_makes_a_graph_wide():
    """Parameters, computation and result have 64 bits, although the input has 32."""
    model = ax.apply_policy(ax.input("x", shape=(None, 6)).dense(2), ax.Policy("f64", "f64", "f64"))
    init, predict = ax.build(model)
    state = init()
    assert state.parameters["dense_0"]["kernel"].dtype == np.float64
    found = predict(state, _x())
    kernel = np.asarray(state.parameters["dense_0"]["kernel"])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, _x().astype(np.float64) @ kernel, rtol=1e-13)


def test_softmax_in_half_precision_sums_in_f32():
    """A thousand equal logits in f16 give probabilities that add up to 1."""
    model = ax.apply_policy(ax.input("x", shape=(None, 1000)).softmax(), ax.Policy(compute="f16", output="f32"))
    found = ax.build(model)[1](ax.build(model)[0](), np.full((1, 1000), 20, np.float32))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-3)


@pytest.mark.parametrize("option", [{"only": ["dens"]}, {"exclude": ["input"]}, {"only": "dense"}])
def test_ops_that_cannot_have_a_policy_are_refused(option: dict[str, object]) -> None:
    """A misspelt op, one that only passes values on, and a bare name."""
    with pytest.raises(OptionError, match="to name ops that compute"):
        ax.apply_policy(_model(), "mixed_bfloat16", **option)  # type: ignore[arg-type]


def test_custom_layers_are_cast_too():
    """A function of one's own gets its inputs and parameters in the compute type, missing ones as they are."""
    seen = []

    def scaled(x: jax.Array, other: jax.Array | None, *, alpha: jax.Array) -> jax.Array:
        seen.append((x.dtype, other, alpha.dtype))
        return x * alpha

    x, other = ax.input("x", shape=(None, 6)), ax.input("o", optional=True)
    model = ax.layer(scaled, [x, other.optional()], params=[ax.param("alpha", ())], op_name="scaled")
    model = ax.apply_policy(model, "mixed_bfloat16", only=["scaled"])
    state = ax.build(model)[0]({"x": _x(), "o": _x()})
    seen.clear()
    assert ax.build(model)[1](state, {"x": _x(), "o": _x()}).dtype == jnp.float32
    assert seen[0][0] == seen[0][2] == jnp.bfloat16
