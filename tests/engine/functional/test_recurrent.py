"""Recurrent layers: the formulas in NumPy, PyTorch, derivatives, masks, both unrolls, precision, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import (
    conv_lstm,
    conv_lstm_cell,
    dynamic_unroll,
    gru,
    gru_cell,
    lstm,
    lstm_cell,
    static_unroll,
)
from tests.engine.functional.support import assert_gradient, values

BATCH, TIME, IN, UNITS = 3, 5, 4, 2
X = values(BATCH, TIME, IN)
MASK = np.array([[0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
LSTM_CARRY = tuple(values(2, BATCH, UNITS, seed=9))
GRU_CARRY = (values(BATCH, UNITS, seed=9),)
IMAGES = values(2, 3, 2, 4, 3)
IMAGE_CARRY = tuple(values(2, 2, 1, 2, 4, 3, seed=9))


def parameters(gates: str, biases: tuple[str, ...]) -> tuple[dict[str, np.ndarray], ...]:
    """Input kernel, hidden kernel and bias of a recurrent layer."""
    return (
        {f"wi{g}": values(IN, UNITS, seed=i) for i, g in enumerate(gates)},
        {f"wh{g}": values(UNITS, UNITS, seed=10 + i) for i, g in enumerate(gates)},
        {b: values(UNITS, seed=20 + i) for i, b in enumerate(biases)},
    )


LSTM = parameters("ifgo", ("bi", "bf", "bg", "bo"))
GRU = parameters("rzn", ("br", "bz", "bin", "bhn"))
CONV_LSTM = (values(8, 2, 3, 2, seed=1), values(8, 2, 1, 3, seed=2), values(8, seed=3))
LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], np.ndarray, Any, Any]] = {
    "lstm": (lstm, lstm_cell, X, LSTM_CARRY, LSTM),
    "gru": (gru, gru_cell, X, GRU_CARRY, GRU),
    "conv_lstm": (conv_lstm, conv_lstm_cell, IMAGES, IMAGE_CARRY, CONV_LSTM),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def single(tree: Any) -> Any:
    """The same arrays in float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def assert_equal(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal nested values, within a tolerance."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """In float64."""
    return 1 / (1 + np.exp(-x))


def numpy_lstm(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The paper's formula step by step: sequence, cell, hidden."""
    wi, wh, b = LSTM
    cell, hidden = LSTM_CARRY
    outputs = []
    for t in range(TIME):
        i, f, g, o = (X[:, t] @ wi[f"wi{k}"] + b[f"b{k}"] + hidden @ wh[f"wh{k}"] for k in "ifgo")
        new_cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        ignored = mask[:, t, None] == 1
        hidden = np.where(ignored, hidden, sigmoid(o) * np.tanh(new_cell))
        cell = np.where(ignored, cell, new_cell)
        outputs.append(hidden)
    return np.stack(outputs, 1), cell, hidden


def numpy_gru(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variant that resets behind the hidden kernel: sequence, hidden."""
    wi, wh, b = GRU
    (hidden,) = GRU_CARRY
    outputs = []
    for t in range(TIME):
        x = X[:, t]
        r = sigmoid(x @ wi["wir"] + b["br"] + hidden @ wh["whr"])
        z = sigmoid(x @ wi["wiz"] + b["bz"] + hidden @ wh["whz"])
        n = np.tanh(x @ wi["win"] + b["bin"] + r * (hidden @ wh["whn"] + b["bhn"]))
        hidden = np.where(mask[:, t, None] == 1, hidden, (1 - z) * n + z * hidden)
        outputs.append(hidden)
    return np.stack(outputs, 1), hidden


@pytest.mark.parametrize("mask", [MASK, np.zeros_like(MASK)], ids=["masked", "unmasked"])
def test_sequences_equal_numpy(mask: np.ndarray) -> None:
    """Where the mask is 1, the carry stays and the output repeats it."""
    sequence, cell, hidden = numpy_lstm(mask)
    assert_equal(lstm(*single((X, LSTM_CARRY)), mask, *single(LSTM)), (sequence, (cell, hidden)))
    sequence, hidden = numpy_gru(mask)
    assert_equal(gru(*single((X, GRU_CARRY)), mask, *single(GRU)), (sequence, (hidden,)))


@each_layer
@pytest.mark.parametrize("mask", [None, 1, "steps"])
def test_both_unrolls_and_the_cell_give_the_same_values_and_gradients(name: str, mask: Any) -> None:
    """A loop in the program, written-out steps, and the cell run by hand agree."""
    layer, cell, x, carry, params = LAYERS[name]
    step_mask = MASK[: x.shape[0], : x.shape[1]] if mask == "steps" else mask
    ignored = None if mask is None else jnp.asarray(step_mask)
    cotangent = jnp.asarray(values(*x.shape[:2], seed=5), jnp.float32)
    runs = [
        partial(layer, unroll="dynamic"),
        partial(layer, unroll="static"),
        partial(dynamic_unroll, cell),
        partial(static_unroll, cell),
    ]

    def total(run: Callable[..., Any], arguments: Any) -> Any:
        x, carry, params = arguments
        sequence, last = run(x, carry, ignored, *params)
        weights = cotangent.reshape(*cotangent.shape, *(1,) * (sequence.ndim - 2))
        return (sequence * weights).sum() + sum(part.sum() for part in last), (sequence, last)

    results = [
        jax.jit(jax.value_and_grad(partial(total, run), has_aux=True))(single((x, carry, params))) for run in runs
    ]
    for result in results[1:]:
        assert_equal(result, results[0])
    if mask == 1:
        assert_equal(results[0][0][1][1], single(carry), 0)


@pytest.mark.parametrize("mask", [None, "steps"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_large_batch_equals_its_rows_in_small_ones(name: str, dtype: Any, mask: Any) -> None:
    """However a batch of a size is computed, values and gradients are those of its parts."""
    layer, _, x, carry, params = LAYERS[name]
    copies = 16
    ignored = None if mask is None else jnp.asarray(MASK)

    def run(x: jax.Array, carry: Any, params: Any, mask: Any) -> Any:
        def total(x: jax.Array, carry: Any, params: Any) -> Any:
            sequence, last = layer(x, carry, mask, *params)
            return jnp.sum(sequence.astype(jnp.float32) ** 2), (sequence, last)

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(x, carry, params)

    x, carry = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, carry))
    params = single(params)
    (_, outputs), (*of_inputs, of_params) = run(x, carry, params, ignored)
    tiled = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (copies,) + (1,) * (leaf.ndim - 1)), (x, carry, outputs, of_inputs)
    )
    large_mask = None if ignored is None else jnp.tile(ignored, (copies, 1))
    (_, got), (*got_inputs, got_params) = run(*tiled[:2], params, large_mask)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-3
    assert_equal((got, got_inputs), tuple(tiled[2:]), tolerance)
    assert_equal(jax.tree.map(lambda leaf: leaf / copies, got_params), of_params, tolerance)


@each_layer
@pytest.mark.parametrize("unroll", ["dynamic", "static"])
def test_gradients_equal_finite_differences(name: str, unroll: str) -> None:
    """With respect to inputs, carry and every parameter, in float64."""
    layer, _, x, carry, params = LAYERS[name]
    leaves, structure = jax.tree.flatten((x, carry, params))
    mask = MASK[: x.shape[0], : x.shape[1]]

    def outputs(*leaves: jax.Array) -> Any:
        x, carry, params = jax.tree.unflatten(structure, leaves)
        return layer(x, carry, mask, *params, unroll=unroll)

    assert_gradient(outputs, *leaves)


def test_a_cell_takes_masks_of_either_rank() -> None:
    """A row per sample, with or without an axis of one."""
    x = X[:, 0]
    row = jnp.asarray([0, 1, 0])
    flat = lstm_cell(*single((x, LSTM_CARRY)), row, *single(LSTM))
    column = lstm_cell(*single((x, LSTM_CARRY)), row[:, None], *single(LSTM))
    assert_equal(flat, column, 0)
    np.testing.assert_array_equal(flat[1][0][1], np.float32(LSTM_CARRY[0][1]))


def test_no_bias_is_a_bias_of_zeros() -> None:
    """Leaving it out changes nothing else."""
    for layer, carry, params in ((lstm, LSTM_CARRY, LSTM), (gru, GRU_CARRY, GRU)):
        zeros = {name: np.zeros(UNITS) for name in params[2]}
        expected = layer(*single((X, carry)), None, *single((*params[:2], zeros)))
        assert_equal(layer(*single((X, carry)), None, *single(params[:2])), expected, 0)


def test_activation_and_gate_are_chosen_by_name() -> None:
    """With linear gates of zero kernels only the biases speak: c' = bf c + bi bg, h' = bo c'."""
    kernels = jax.tree.map(np.zeros_like, LSTM[:2])
    bias = {"bi": 2.0, "bf": 0.5, "bg": 3.0, "bo": 0.1}
    vectors = {name: np.full(UNITS, value) for name, value in bias.items()}
    options = {"activation": "linear", "gate": "linear"}
    hidden, (cell, _) = lstm_cell(*single((X[:, 0], LSTM_CARRY)), None, *single((*kernels, vectors)), **options)
    np.testing.assert_allclose(cell, 0.5 * LSTM_CARRY[0] + 6, rtol=1e-6)
    np.testing.assert_allclose(hidden, 0.1 * (0.5 * LSTM_CARRY[0] + 6), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@each_layer
def test_half_precision_stays_near_single(name: str, dtype: Any) -> None:
    """Inputs, parameters and results in half precision; sums and the cell in float32 in between."""
    layer, _, x, carry, params = LAYERS[name]
    halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, carry, params))
    expected = layer(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves[:2]), None, *single(halves[2]))
    actual = layer(*halves[:2], None, *halves[2])
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype(dtype)}
    assert_equal(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), actual), expected, 2e-2)


@each_layer
def test_vmap_equals_a_loop(name: str) -> None:
    """A further batch axis in front of inputs and carry."""
    layer, _, x, carry, params = LAYERS[name]
    pair = single(jax.tree.map(lambda leaf: np.stack([leaf, leaf / 2]), (x, carry)))
    params = single(params)
    together = jax.vmap(lambda x, carry: layer(x, carry, None, *params))(*pair)
    apart = [layer(*jax.tree.map(lambda leaf, i=i: leaf[i], pair), None, *params) for i in range(2)]
    assert_equal(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart))


def test_convolution_of_the_input_may_shrink_it() -> None:
    """Strides and `valid` padding act on the input; the hidden state keeps the size they leave."""
    x, kernel = values(1, 2, 2, 5, 5), values(4, 2, 3, 3, seed=1)
    hidden_kernel, carry = values(4, 1, 3, 3, seed=2), (np.zeros((1, 1, 1, 2, 2)),) * 2
    sequence, (cell, hidden) = conv_lstm(
        *single((x, carry)), None, *single((kernel, hidden_kernel)), strides=2, padding="valid"
    )
    assert sequence.shape == (1, 2, 1, 2, 2)
    assert cell.shape == hidden.shape == (1, 1, 1, 2, 2)


def test_gradients_of_saturated_gates_are_finite() -> None:
    """Pre-activations of +-1e4 give no NaN."""
    for layer, carry, params in ((lstm, LSTM_CARRY, LSTM), (gru, GRU_CARRY, GRU)):
        gradient = jax.grad(lambda x: layer(x, *single((carry,)), None, *single(params))[0].sum())  # noqa: B023
        assert np.isfinite(gradient(single(1e4 * X))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:, :, 0]}, "rank 3"),
        ({"x": X[:, :0]}, "at least one time step"),
        ({"carry": LSTM_CARRY[:1]}, r"expected a carry \(cell, hidden\), got 1"),
        ({"carry": (LSTM_CARRY[0], LSTM_CARRY[1][:2])}, "carry's hidden of shape"),
        ({"mask": MASK[:, :2]}, "expected a mask of shape"),
        ({"input_kernel": {"wii": LSTM[0]["wii"]}}, "expected input_kernel with wii, wif, wig, wio, got wii"),
        ({"hidden_kernel": LSTM[1] | {"who": values(2, 3)}}, "hidden_kernel who of shape"),
        ({"bias": LSTM[2] | {"bo": values(3)}}, "bias bo of shape"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Any], message: str) -> None:
    """What was expected, what came, in which argument."""
    names = ("x", "carry", "mask", "input_kernel", "hidden_kernel", "bias")
    arguments = dict(zip(names, (X, LSTM_CARRY, None, *LSTM), strict=True)) | change
    with pytest.raises(ShapeError, match=message):
        lstm(*arguments.values())


def test_wrong_options_are_named() -> None:
    """Unknown activations, gates and unrolls."""
    for options in ({"activation": "tan"}, {"gate": "door"}, {"unroll": "some"}):
        with pytest.raises(OptionError, match=next(iter(options))):
            gru(X, GRU_CARRY, None, *GRU, **options)


def test_wrong_convolutional_shapes_are_named() -> None:
    """Kernels, carry and paddings that do not fit."""
    kernel, hidden_kernel, bias = CONV_LSTM
    with pytest.raises(ShapeError, match="input_kernel"):
        conv_lstm(IMAGES, IMAGE_CARRY, None, kernel[:, :1], hidden_kernel, bias)
    with pytest.raises(ShapeError, match="hidden_kernel"):
        conv_lstm(IMAGES, IMAGE_CARRY, None, kernel, hidden_kernel[:4], bias)
    with pytest.raises(ShapeError, match="bias"):
        conv_lstm(IMAGES, IMAGE_CARRY, None, kernel, hidden_kernel, bias[:4])
    carry = (np.zeros((2, 1, 2, 6, 7)),) * 2
    with pytest.raises(ShapeError, match="keeps the hidden state's sizes"):
        conv_lstm(IMAGES, carry, None, values(8, 2, 1, 1), values(8, 2, 1, 1), padding=[(1, 1), (2, 2)])


def test_lstm_and_gru_equal_pytorch() -> None:
    """PyTorch has two biases per gate; one of zeros makes the same layer, but for the GRU's candidate."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def load(module: Any, params: Any, gates: str, biases: list[np.ndarray]) -> Any:
        wi, wh, _ = params
        tensors = {
            "weight_ih_l0": np.concatenate([wi[f"wi{g}"].T for g in gates]),
            "weight_hh_l0": np.concatenate([wh[f"wh{g}"].T for g in gates]),
            "bias_ih_l0": biases[0],
            "bias_hh_l0": biases[1],
        }
        module.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
        return module

    bias = LSTM[2]
    one = np.concatenate([bias["bi"], bias["bf"], bias["bg"], bias["bo"]])
    module = load(torch.nn.LSTM(IN, UNITS, batch_first=True, dtype=torch.float64), LSTM, "ifgo", [one, 0 * one])
    cell, hidden = (torch.tensor(part)[None] for part in LSTM_CARRY)
    output, (hidden, cell) = module(torch.tensor(X), (hidden, cell))
    expected = [part.detach().numpy() for part in (output, cell[0], hidden[0])]
    sequence, last = lstm(*single((X, LSTM_CARRY)), None, *single(LSTM))
    assert_equal([sequence, *last], expected)

    bias = GRU[2]
    inside = np.concatenate([bias["br"], bias["bz"], bias["bin"]])
    behind = np.concatenate([np.zeros(2 * UNITS), bias["bhn"]])
    module = load(torch.nn.GRU(IN, UNITS, batch_first=True, dtype=torch.float64), GRU, "rzn", [inside, behind])
    output, hidden = module(torch.tensor(X), torch.tensor(GRU_CARRY[0])[None])
    sequence, last = gru(*single((X, GRU_CARRY)), None, *single(GRU))
    assert_equal([sequence, *last], [output.detach().numpy(), hidden[0].detach().numpy()])
