"""What must hold for every op, whatever it computes. A new op without a row in `every_op` fails here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.model.layers import OPS
from engine.runtime import mixing_reason
from tests.engine.every_op import ROWS, Row

pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork.*")
BATCH = 3
every_op = pytest.mark.parametrize("op", ROWS)


def model_of(row: Row, *, dtype: str = "f32", channels: str = "last") -> ax.Model:
    """The row's model with inputs `x0`, `x1` ... of open batch size."""
    kind = "s32" if row.tokens else dtype
    shapes = [_moved(shape) if channels == "first" else shape for shape in row.inputs]
    inputs = [ax.input(f"x{i}", shape=(None, *shape), dtype=kind) for i, shape in enumerate(shapes)]
    return row.build(*inputs, **({"channels": channels} if row.spatial else {}))


def _moved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], *shape[:-1])


def data_of(row: Row, *, batch: int = BATCH, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random inputs, no two alike, away from kinks."""
    rng = np.random.default_rng(seed)
    if row.tokens:
        return {f"x{i}": rng.integers(0, row.tokens, (batch, *s)).astype(np.int32) for i, s in enumerate(row.inputs)}
    return {f"x{i}": rng.standard_normal((batch, *s)).astype(dtype) for i, s in enumerate(row.inputs)}


def _close(got: Any, expected: Any, **tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(g, np.float64), np.asarray(e, np.float64), **tolerance)


def test_every_op_has_a_row():
    """The table and the catalogue name the same ops."""
    assert set(ROWS) == set(OPS)


@every_op
def test_jit_equals_eager(op: str):
    """Compiling changes nothing but the order of roundings."""
    row = ROWS[op]
    init, predict = ax.build(model_of(row))
    state, x = init(seed=1), data_of(row)
    _close(jax.jit(predict)(state, x), predict(state, x), rtol=2e-5, atol=2e-6)


@every_op
def test_vmap_equals_a_loop(op: str):
    """Mapping over a further axis is calling for each of its entries."""
    row = ROWS[op]
    init, predict = ax.build(model_of(row))
    state = init(seed=1)
    parts = [data_of(row, seed=seed) for seed in range(2)]
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    mapped = jax.jit(jax.vmap(predict, in_axes=(None, 0)))(state, stacked)
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[predict(state, part) for part in parts])
    _close(mapped, looped, rtol=2e-5, atol=2e-6)


@every_op
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_gradient_equals_finite_differences(op: str, mode: Any):
    """In float64, along a random direction through inputs and parameters: central differences with h = 1e-6."""
    row = ROWS[op]
    with jax.enable_x64(True):
        model = model_of(row, dtype="f64")
        init, predict = ax.build(model, mode=mode)
        state = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf, init(seed=1))
        x = data_of(row, dtype=np.float64)
        rng = np.random.default_rng(5)
        variables = (state.trainable(), {} if row.tokens else x)
        direction = jax.tree.map(lambda leaf: rng.standard_normal(np.shape(leaf)), variables)

        @jax.jit
        def value(variables: Any) -> jax.Array:
            parameters, inputs = variables
            output = predict(state.with_trainable(parameters), {**x, **inputs})
            prediction = output.prediction if mode == "train" else output
            weights = np.random.default_rng(7)
            return sum((leaf * weights.standard_normal(leaf.shape)).sum() for leaf in jax.tree.leaves(prediction))

        def along(h: float) -> Any:
            return value(jax.tree.map(lambda leaf, d: leaf + h * d, variables, direction))

        expected = (along(1e-6) - along(-1e-6)) / 2e-6
        gradient = jax.jit(jax.grad(value))(variables)
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        got = sum(jax.tree.leaves(products), start=jnp.zeros(()))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@every_op
@pytest.mark.parametrize(("dtype", "share"), [("bf16", 1.0), ("f16", 0.125)])
def test_half_precision_stays_near_f32(op: str, dtype: str, share: float):
    """Inputs and parameters rounded to a half type give the type back, within the row's bound of the f32 result."""
    row = ROWS[op]
    half = jnp.bfloat16 if dtype == "bf16" else jnp.float16
    state, x = ax.build(model_of(row))[0](seed=1), data_of(row)
    rounded = jax.tree.map(lambda leaf: leaf.astype(half) if leaf.dtype == jnp.float32 else leaf, (state.parameters, x))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == half else leaf, rounded)
    got = ax.build(model_of(row, dtype=dtype))[1](ax.ModelState(rounded[0], state.state), rounded[1])
    expected = ax.build(model_of(row))[1](ax.ModelState(wide[0], state.state), wide[1])
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(e).max()) + 1e-6
        assert float(jnp.abs(g.astype(jnp.float32) - e).max()) <= row.half * share * scale


@pytest.mark.parametrize("op", [op for op, row in ROWS.items() if row.spatial])
def test_channels_first_equals_channels_last_transposed(op: str):
    """Only the layout differs; kernels are the same numbers in the other order."""
    row = ROWS[op]
    last, first = model_of(row), model_of(row, channels="first")
    state = ax.build(last)[0](seed=1)
    moved = jax.tree.map(lambda leaf: _kernel_first(leaf) if leaf.ndim > 2 else leaf, state)
    x = data_of(row)
    x_first = {name: np.moveaxis(value, -1, 1) for name, value in x.items()}
    got = jax.jit(ax.build(first)[1])(moved, x_first)
    expected = jax.jit(ax.build(last)[1])(state, x)
    if expected.ndim > 2:
        expected = jnp.moveaxis(expected, -1, 1)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def _kernel_first(kernel: jax.Array) -> jax.Array:
    return jnp.transpose(kernel, (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)))


@every_op
def test_train_mode_gives_the_same_shapes_and_a_state_that_fits(op: str):
    """Its state updates are accepted by `ModelState.update` and leave every shape as it was."""
    row = ROWS[op]
    init, predict = ax.build(model_of(row))
    state, x = init(seed=1), data_of(row)
    output = ax.build(model_of(row), mode="train")[1](state, x)
    assert jax.tree.map(jnp.shape, output.prediction) == jax.tree.map(jnp.shape, predict(state, x))
    updated = state.update(state=output.state)
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.result_type, updated) == jax.tree.map(jnp.result_type, state)


@every_op
@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches_work(op: str, batch: int):
    """No row at all, or one: the leading size is kept."""
    row = ROWS[op]
    if op == "cond" and batch == 0:
        pytest.skip("the maximum of nothing is not defined")
    init, predict = ax.build(model_of(row))
    prediction = jax.jit(predict)(init(seed=1), data_of(row, batch=batch))
    for leaf in jax.tree.leaves(prediction):
        assert leaf.shape[0] == batch
        assert np.isfinite(np.asarray(leaf)).all()


@every_op
def test_a_written_graph_reads_back_the_same(op: str):
    """graph.json of what was read equals graph.json of what was written, and it predicts the same bits."""
    row = ROWS[op]
    model = model_of(row)
    graph, constants = ax.bundle.graph_to_json(model)
    read = ax.bundle.graph_from_json(graph, constants=constants)
    assert ax.bundle.graph_to_json(read)[0] == graph
    state, x = ax.build(model)[0](seed=1), data_of(row)
    _close(ax.build(read)[1](state, x), ax.build(model)[1](state, x), rtol=0, atol=0)


@every_op
def test_rows_are_independent_as_the_op_says(op: str):
    """An op that claims not to mix rows does not: other neighbours, the same answer."""
    row = ROWS[op]
    model = model_of(row)
    assert (mixing_reason(model) is None) == row.row_wise
    if not row.row_wise:
        return
    init, predict = ax.build(model)
    state, first, second = init(seed=1), data_of(row, seed=1), data_of(row, seed=2)
    for name, value in second.items():
        value[0] = first[name][0]
    one, other = jax.jit(predict)(state, first), jax.jit(predict)(state, second)
    _close(jax.tree.map(lambda leaf: leaf[0], one), jax.tree.map(lambda leaf: leaf[0], other), rtol=0, atol=0)
