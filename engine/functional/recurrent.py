r"""Recurrent layers over `[batch, time, features]`: LSTM and GRU, as cells and along a sequence.

Parameters are dicts of one array per gate, as Axon stores them. The gates' kernels are joined before the loop and the
input's share of them is computed for all time steps at once, so that a step costs one product with the hidden state;
not so for large batches on the CPU, where a step that computes its own share finds all of it in the cache.
Half-precision inputs are accumulated in float32, the LSTM's cell included. Masks are those of `unroll`: 1 means
ignore. Source: Axon.Layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.functional.activations import ACTIVATIONS
from engine.functional.options import require_choice
from engine.functional.unroll import (
    Carry,
    Unroll,
    check_carry,
    check_sequence,
    check_step_mask,
    check_unroll,
    finished,
    keep,
    recur,
    shapes_of,
    wide,
    working,
)
from engine.shapes import Shape, require_rank

Gates = Mapping[str, jax.Array]
GateShapes = Mapping[str, Shape]

LSTM_GATES = ("i", "f", "g", "o")
GRU_GATES = ("r", "z", "n")
LSTM_BIASES = ("bi", "bf", "bg", "bo")
GRU_BIASES = ("br", "bz", "bin", "bhn")

# The batch from which steps on the CPU compute their input's share themselves. Measured at 128 to 256 units.
_CACHED_BATCH = 16


def _check_options(op: str, activation: str, gate: str) -> None:
    require_choice(op, "activation", activation, tuple(ACTIVATIONS))
    require_choice(op, "gate", gate, tuple(ACTIVATIONS))


def _check_gates(op: str, what: str, found: GateShapes, names: Sequence[str], shape: Shape) -> None:
    if set(found) != set(names):
        raise ShapeError(f"{op}: expected {what} with {', '.join(names)}, got {', '.join(found) or 'none'}")
    for name in names:
        if found[name] != shape:
            raise ShapeError(f"{op}: expected {what} {name} of shape {shape}, got {found[name]}")


def _check_dense_gates(
    op: str,
    x: Shape,
    carry: Sequence[Shape],
    parts: Sequence[str],
    input_kernel: GateShapes,
    hidden_kernel: GateShapes,
    bias: GateShapes | None,
) -> None:
    """Kernels, bias and carry of a recurrence over the last axis of `x`; units are those of the hidden kernel."""
    gates, biases = (LSTM_GATES, LSTM_BIASES) if len(parts) == 2 else (GRU_GATES, GRU_BIASES)
    units = next((shape[-1] for shape in hidden_kernel.values() if shape), 0)
    _check_gates(op, "input_kernel", input_kernel, [f"wi{g}" for g in gates], (x[-1], units))
    _check_gates(op, "hidden_kernel", hidden_kernel, [f"wh{g}" for g in gates], (units, units))
    if bias is not None:
        _check_gates(op, "bias", bias, biases, (units,))
    check_carry(op, carry, parts, (x[0], units))


def check_lstm_cell(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: GateShapes,
    hidden_kernel: GateShapes,
    bias: GateShapes | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
) -> None:
    """The shape rule of `lstm_cell`."""
    require_rank("lstm_cell", x, exactly=2)
    _check_options("lstm_cell", activation, gate)
    check_step_mask("lstm_cell", mask, x)
    _check_dense_gates("lstm_cell", x, carry, ("cell", "hidden"), input_kernel, hidden_kernel, bias)


def check_gru_cell(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: GateShapes,
    hidden_kernel: GateShapes,
    bias: GateShapes | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
) -> None:
    """The shape rule of `gru_cell`."""
    require_rank("gru_cell", x, exactly=2)
    _check_options("gru_cell", activation, gate)
    check_step_mask("gru_cell", mask, x)
    _check_dense_gates("gru_cell", x, carry, ("hidden",), input_kernel, hidden_kernel, bias)


def check_lstm(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: GateShapes,
    hidden_kernel: GateShapes,
    bias: GateShapes | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: Unroll = "dynamic",
) -> None:
    """The shape rule of `lstm`."""
    _check_options("lstm", activation, gate)
    check_unroll("lstm", unroll)
    require_rank("lstm", x, exactly=3)
    check_sequence("lstm", x, mask)
    _check_dense_gates("lstm", x, carry, ("cell", "hidden"), input_kernel, hidden_kernel, bias)


def check_gru(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: GateShapes,
    hidden_kernel: GateShapes,
    bias: GateShapes | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: Unroll = "dynamic",
) -> None:
    """The shape rule of `gru`."""
    _check_options("gru", activation, gate)
    check_unroll("gru", unroll)
    require_rank("gru", x, exactly=3)
    check_sequence("gru", x, mask)
    _check_dense_gates("gru", x, carry, ("hidden",), input_kernel, hidden_kernel, bias)


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=wide(jnp.result_type(x, kernel)))


def _join(gates: Gates, prefix: str, names: Sequence[str]) -> jax.Array:
    return jnp.concatenate([gates[f"{prefix}{name}"] for name in names], axis=-1)


def _affine(x: jax.Array, kernel: jax.Array, offset: jax.Array | None) -> jax.Array:
    y = _matmul(x, kernel)
    return y if offset is None else y + offset


def _hoists(x: jax.Array) -> bool:
    """Whether the input's share of the gates is computed before the loop; an unknown batch counts as small."""
    batch = x.shape[0]
    return jax.default_backend() != "cpu" or not isinstance(batch, int) or batch < _CACHED_BATCH


def _lstm_kernels(
    input_kernel: Gates, hidden_kernel: Gates, bias: Gates | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The gates' joined kernels and offsets, `[..., 4 * units]`."""
    offset = None if bias is None else _join(bias, "b", LSTM_GATES)
    return _join(input_kernel, "wi", LSTM_GATES), _join(hidden_kernel, "wh", LSTM_GATES), offset


def _lstm_step(gates: jax.Array, carry: Carry, mask: jax.Array | None, gate: str, activation: str) -> Carry:
    cell, hidden = carry
    squash, act = ACTIVATIONS[gate], ACTIVATIONS[activation]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    new_cell = squash(f) * cell + squash(i) * act(g)
    new_hidden = squash(o) * act(new_cell)
    return keep(mask, carry, (new_cell.astype(cell.dtype), new_hidden.astype(hidden.dtype)))


def _gru_kernels(
    input_kernel: Gates, hidden_kernel: Gates, bias: Gates | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The gates' joined kernels and the input's offsets, `[..., 3 * units]`."""
    offset = None if bias is None else jnp.concatenate([bias["br"], bias["bz"], bias["bin"]])
    return _join(input_kernel, "wi", GRU_GATES), _join(hidden_kernel, "wh", GRU_GATES), offset


def _gru_step(
    gates: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    hidden_kernel: jax.Array,
    hidden_bias: jax.Array | None,
    gate: str,
    activation: str,
) -> Carry:
    (hidden,) = carry
    squash, act = ACTIVATIONS[gate], ACTIVATIONS[activation]
    input_r, input_z, input_n = jnp.split(gates, 3, axis=-1)
    hidden_r, hidden_z, hidden_n = jnp.split(_matmul(hidden, hidden_kernel), 3, axis=-1)
    r, z = squash(input_r + hidden_r), squash(input_z + hidden_z)
    n = act(input_n + r * (hidden_n if hidden_bias is None else hidden_n + hidden_bias))
    return keep(mask, carry, (((1 - z) * n + z * hidden).astype(hidden.dtype),))


def lstm_cell(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Gates,
    hidden_kernel: Gates,
    bias: Gates | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
) -> tuple[jax.Array, Carry]:
    r"""One step of a long short-term memory.

    $i = g(x W_{ii} + b_i + h W_{hi})$, likewise $f$ and $o$; $\tilde c = a(x W_{ig} + b_g + h W_{hg})$;
    $c' = f c + i \tilde c$; $h' = o\, a(c')$. The carry stays where the mask is 1.

    Args:
        x: `[batch, in]`.
        carry: (cell, hidden), each `[batch, units]`.
        mask: `[batch]`, `[batch, 1]`, a scalar, or `None` for none.
        input_kernel: `wii, wif, wig, wio`, each `[in, units]`.
        hidden_kernel: `whi, whf, whg, who`, each `[units, units]`.
        bias: `bi, bf, bg, bo`, each `[units]`, or `None`.
        activation, gate: names of the activations $a$ and $g$.
    Returns: `(hidden, (cell, hidden))`.
    Raises:
        ShapeError: shapes do not fit.
        OptionError: an unknown activation.
    Source: Hochreiter and Schmidhuber 1997; Gers et al. 2000; Axon.Layers.lstm_cell.
    """
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_lstm_cell(*shapes, activation=activation, gate=gate)
    from_input, from_hidden, offset = _lstm_kernels(input_kernel, hidden_kernel, bias)
    start = working(carry, x, input_kernel, hidden_kernel)
    gates = _affine(x, from_input, offset) + _matmul(start[1], from_hidden)
    new = finished(_lstm_step(gates, start, mask, gate, activation))
    return new[1], new


def gru_cell(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Gates,
    hidden_kernel: Gates,
    bias: Gates | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
) -> tuple[jax.Array, Carry]:
    r"""One step of a gated recurrent unit, the variant whose reset gate acts behind the hidden kernel.

    $r = g(x W_{ir} + b_r + h W_{hr})$, likewise $z$; $n = a(x W_{in} + b_{in} + r (h W_{hn} + b_{hn}))$;
    $h' = (1 - z) n + z h$. The carry stays where the mask is 1.

    Args:
        x: `[batch, in]`.
        carry: (hidden,), `[batch, units]`.
        mask: `[batch]`, `[batch, 1]`, a scalar, or `None` for none.
        input_kernel: `wir, wiz, win`, each `[in, units]`.
        hidden_kernel: `whr, whz, whn`, each `[units, units]`.
        bias: `br, bz, bin, bhn`, each `[units]`, or `None`.
        activation, gate: names of the activations $a$ and $g$.
    Returns: `(hidden, (hidden,))`.
    Raises:
        ShapeError: shapes do not fit.
        OptionError: an unknown activation.
    Source: Cho et al. 2014, arXiv:1406.1078; Axon.Layers.gru_cell.
    """
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_gru_cell(*shapes, activation=activation, gate=gate)
    from_input, from_hidden, offset = _gru_kernels(input_kernel, hidden_kernel, bias)
    start = working(carry, x, input_kernel, hidden_kernel)
    new = _gru_step(
        _affine(x, from_input, offset),
        start,
        mask,
        from_hidden,
        None if bias is None else bias["bhn"],
        gate,
        activation,
    )
    return new[0], new


def lstm(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Gates,
    hidden_kernel: Gates,
    bias: Gates | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: Unroll = "dynamic",
) -> tuple[jax.Array, Carry]:
    """`lstm_cell` along the sequence.

    Args:
        x: `[batch, time, in]`, one time step or more.
        mask: `[batch, time]`, a scalar, or `None` for none; 1 means ignore.
        unroll: `dynamic` (a loop in the program) or `static` (each step written out, fit for short sequences).
    Other arguments and errors as in `lstm_cell`.
    Returns: `(hidden states [batch, time, units], (cell, hidden))`.
    Source: Axon.Layers.lstm.
    """
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_lstm(*shapes, activation=activation, gate=gate, unroll=unroll)
    from_input, from_hidden, offset = _lstm_kernels(input_kernel, hidden_kernel, bias)
    start = working(carry, x, input_kernel, hidden_kernel)
    inputs = jnp.swapaxes(x, 0, 1)
    hoists = _hoists(x)
    if hoists:
        inputs = _affine(inputs, from_input, offset)
    else:
        from_both = jnp.concatenate([from_input, from_hidden])

    def step(inputs: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        if hoists:
            gates = inputs + _matmul(carry[1], from_hidden)
        else:
            gates = _affine(jnp.concatenate([inputs, carry[1]], axis=-1), from_both, offset)
        return _lstm_step(gates, carry, mask, gate, activation)

    sequence, last = recur(step, inputs, start, mask, unroll)
    return sequence, finished(last)


def gru(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Gates,
    hidden_kernel: Gates,
    bias: Gates | None = None,
    *,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: Unroll = "dynamic",
) -> tuple[jax.Array, Carry]:
    """`gru_cell` along the sequence.

    Args:
        x: `[batch, time, in]`, one time step or more.
        mask, unroll: as in `lstm`.
    Other arguments and errors as in `gru_cell`.
    Returns: `(hidden states [batch, time, units], (hidden,))`.
    Source: Axon.Layers.gru.
    """
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_gru(*shapes, activation=activation, gate=gate, unroll=unroll)
    from_input, from_hidden, offset = _gru_kernels(input_kernel, hidden_kernel, bias)
    hidden_bias = None if bias is None else bias["bhn"]
    start = working(carry, x, input_kernel, hidden_kernel)
    inputs = jnp.swapaxes(x, 0, 1)
    hoists = _hoists(x)
    if hoists:
        inputs = _affine(inputs, from_input, offset)

    def step(inputs: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        gates = inputs if hoists else _affine(inputs, from_input, offset)
        return _gru_step(gates, carry, mask, from_hidden, hidden_bias, gate, activation)

    return recur(step, inputs, start, mask, unroll)
