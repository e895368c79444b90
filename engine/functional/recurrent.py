r"""Recurrent layers: cells, and cells run along axis 1 of a sequence `[batch, time, ...]`.

Parameters are dicts of one array per gate, as Axon stores them. The gates' kernels are joined before the loop and the
input's share of them is computed for all time steps at once, so that a step costs one product with the hidden state.

A mask is 1 where a step is to be ignored: the carry stays as it is, and the output repeats the hidden state. (That is
the opposite of an attention mask.) Half-precision inputs are accumulated in float32, the LSTM's cell included.
Source: Axon.Layers (Axon.Recurrent in its first release).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import ShapeError
from engine.functional.activations import ACTIVATIONS
from engine.functional.convolution import conv
from engine.functional.options import Padding, as_sizes, require_choice
from engine.functional.windows import as_pads, output_sizes
from engine.shapes import Shape, require_rank

Unroll = Literal["dynamic", "static"]
Gates = Mapping[str, jax.Array]
GateShapes = Mapping[str, Shape]
Carry = tuple[jax.Array, ...]
Cell = Callable[..., tuple[jax.Array, Carry]]

UNROLLS: tuple[Unroll, ...] = ("dynamic", "static")
LSTM_GATES = ("i", "f", "g", "o")
GRU_GATES = ("r", "z", "n")
GRU_BIASES = ("br", "bz", "bin", "bhn")


# Shape rules


def _check_options(op: str, activation: str, gate: str, unroll: str = "dynamic") -> None:
    require_choice(op, "activation", activation, tuple(ACTIVATIONS))
    require_choice(op, "gate", gate, tuple(ACTIVATIONS))
    require_choice(op, "unroll", unroll, UNROLLS)


def _check_gates(op: str, what: str, found: GateShapes, names: Sequence[str], shape: Shape) -> None:
    if set(found) != set(names):
        raise ShapeError(f"{op}: expected {what} with {', '.join(names)}, got {', '.join(found) or 'none'}")
    for name in names:
        if found[name] != shape:
            raise ShapeError(f"{op}: expected {what} {name} of shape {shape}, got {found[name]}")


def _check_carry(op: str, carry: Sequence[Shape], parts: Sequence[str], shape: Shape) -> None:
    if len(carry) != len(parts):
        raise ShapeError(f"{op}: expected a carry ({', '.join(parts)}), got {len(carry)} arrays")
    for name, found in zip(parts, carry, strict=True):
        if found != shape:
            raise ShapeError(f"{op}: expected the carry's {name} of shape {shape}, got {found}")


def _check_mask(op: str, mask: Shape | None, allowed: Sequence[Shape]) -> None:
    if mask is not None and mask not in allowed:
        raise ShapeError(f"{op}: expected a mask of shape {' or '.join(map(str, allowed))}, got {mask}")


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
    gates, biases = (LSTM_GATES, [f"b{g}" for g in LSTM_GATES]) if len(parts) == 2 else (GRU_GATES, GRU_BIASES)
    units = next((shape[-1] for shape in hidden_kernel.values() if shape), 0)
    _check_gates(op, "input_kernel", input_kernel, [f"wi{g}" for g in gates], (x[-1], units))
    _check_gates(op, "hidden_kernel", hidden_kernel, [f"wh{g}" for g in gates], (units, units))
    if bias is not None:
        _check_gates(op, "bias", bias, biases, (units,))
    _check_carry(op, carry, parts, (x[0], units))


def _check_sequence(op: str, x: Shape, mask: Shape | None, *, rank: int) -> None:
    require_rank(op, x, at_least=rank) if rank > 3 else require_rank(op, x, exactly=rank)
    if x[1] == 0:
        raise ShapeError(f"{op}: expected at least one time step on axis 1, got shape {x}")
    _check_mask(op, mask, ((), x[:2]))


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
    _check_mask("lstm_cell", mask, ((), x[:1], (x[0], 1)))
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
    _check_mask("gru_cell", mask, ((), x[:1], (x[0], 1)))
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
    _check_options("lstm", activation, gate, unroll)
    _check_sequence("lstm", x, mask, rank=3)
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
    _check_options("gru", activation, gate, unroll)
    _check_sequence("gru", x, mask, rank=3)
    _check_dense_gates("gru", x, carry, ("hidden",), input_kernel, hidden_kernel, bias)


def conv_lstm_sizes(
    op: str, spatial: Shape, window: Shape, strides: int | Sequence[int], padding: Padding
) -> tuple[int, ...]:
    """Spatial sizes of a convolutional LSTM's output and carry; errors as in `conv_lstm`."""
    steps = as_sizes(op, "strides", strides, len(window))
    return output_sizes(op, spatial, spatial, window, steps, as_pads(op, padding, window))


def _hidden_padding(padding: Padding) -> Padding:
    """The hidden state keeps its size, whatever becomes of the input's."""
    return "same" if isinstance(padding, str) else padding


def _check_conv_gates(
    op: str,
    x: Shape,
    carry: Sequence[Shape],
    input_kernel: Shape,
    hidden_kernel: Shape,
    bias: Shape | None,
    strides: int | Sequence[int],
    padding: Padding,
) -> None:
    """`x` is one step, `[batch, channels, *spatial]`; the carry has a time axis of size 1."""
    rank = len(x)
    units = hidden_kernel[1] if len(hidden_kernel) == rank else 0
    if len(input_kernel) != rank or input_kernel[:2] != (4 * units, x[1]):
        expected = f"(4 * units, {x[1]}, *window) of rank {rank}"
        raise ShapeError(f"{op}: expected an input_kernel of shape {expected}, got {input_kernel}")
    if len(hidden_kernel) != rank or hidden_kernel[0] != 4 * units:
        raise ShapeError(f"{op}: expected a hidden_kernel of shape (4 * units, units, *window), got {hidden_kernel}")
    if bias is not None and bias != (4 * units,):
        raise ShapeError(f"{op}: expected a bias of shape ({4 * units},), got {bias}")
    sizes = conv_lstm_sizes(op, x[2:], input_kernel[2:], strides, padding)
    _check_carry(op, carry, ("cell", "hidden"), (x[0], 1, units, *sizes))
    kept = conv_lstm_sizes(op, sizes, hidden_kernel[2:], 1, _hidden_padding(padding))
    if kept != sizes:
        raise ShapeError(f"{op}: expected padding that keeps the hidden state's sizes {sizes}, got {padding}")


def check_conv_lstm_cell(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: Shape,
    hidden_kernel: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "same",
) -> None:
    """The shape rule of `conv_lstm_cell`."""
    require_rank("conv_lstm_cell", x, at_least=3)
    _check_mask("conv_lstm_cell", mask, ((), x[:1], (x[0], 1)))
    _check_conv_gates("conv_lstm_cell", x, carry, input_kernel, hidden_kernel, bias, strides, padding)


def check_conv_lstm(
    x: Shape,
    carry: Sequence[Shape],
    mask: Shape | None,
    input_kernel: Shape,
    hidden_kernel: Shape,
    bias: Shape | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "same",
    unroll: Unroll = "dynamic",
) -> None:
    """The shape rule of `conv_lstm`."""
    require_choice("conv_lstm", "unroll", unroll, UNROLLS)
    _check_sequence("conv_lstm", x, mask, rank=4)
    step = (x[0], *x[2:])
    _check_conv_gates("conv_lstm", step, carry, input_kernel, hidden_kernel, bias, strides, padding)


def check_static_unroll(
    cell: Cell, x: Shape, carry: Any, mask: Shape | None, input_kernel: Any, hidden_kernel: Any, bias: Any = None
) -> None:
    """The shape rule of `static_unroll`; the cell checks the rest."""
    require_rank("static_unroll", x, at_least=2)
    _check_sequence("static_unroll", (*x, 1), mask, rank=3 if len(x) == 2 else 4)


def check_dynamic_unroll(
    cell: Cell, x: Shape, carry: Any, mask: Shape | None, input_kernel: Any, hidden_kernel: Any, bias: Any = None
) -> None:
    """The shape rule of `dynamic_unroll`; the cell checks the rest."""
    require_rank("dynamic_unroll", x, at_least=2)
    _check_sequence("dynamic_unroll", (*x, 1), mask, rank=3 if len(x) == 2 else 4)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


# One step


def _wide(dtype: Any) -> Any:
    """The dtype sums are kept in."""
    return jnp.promote_types(dtype, jnp.float32)


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=_wide(jnp.result_type(x, kernel)))


def _keep(mask: jax.Array | None, old: Carry, new: Carry) -> Carry:
    """The old carry where the mask says so."""
    if mask is None:
        return new
    keep = mask.astype(bool).reshape(mask.shape[:1] + (1,) * (new[0].ndim - 1) if mask.ndim else ())
    return tuple(jnp.where(keep, before, after) for before, after in zip(old, new, strict=True))


def _join(gates: Gates, prefix: str, names: Sequence[str]) -> jax.Array:
    return jnp.concatenate([gates[f"{prefix}{name}"] for name in names], axis=-1)


def _lstm_projection(x: jax.Array, input_kernel: Gates, bias: Gates | None) -> jax.Array:
    """The input's share of all gates, `[..., 4 * units]`."""
    gates = _matmul(x, _join(input_kernel, "wi", LSTM_GATES))
    return gates if bias is None else gates + _join(bias, "b", LSTM_GATES)


def _lstm_step(
    gates: jax.Array, carry: Carry, mask: jax.Array | None, hidden_kernel: jax.Array, gate: str, activation: str
) -> Carry:
    cell, hidden = carry
    squash, act = ACTIVATIONS[gate], ACTIVATIONS[activation]
    i, f, g, o = jnp.split(gates + _matmul(hidden, hidden_kernel), 4, axis=-1)
    new_cell = squash(f) * cell + squash(i) * act(g)
    new_hidden = squash(o) * act(new_cell)
    return _keep(mask, carry, (new_cell.astype(cell.dtype), new_hidden.astype(hidden.dtype)))


def _gru_projection(x: jax.Array, input_kernel: Gates, bias: Gates | None) -> jax.Array:
    """The input's share of all gates, `[..., 3 * units]`."""
    gates = _matmul(x, _join(input_kernel, "wi", GRU_GATES))
    return gates if bias is None else gates + jnp.concatenate([bias["br"], bias["bz"], bias["bin"]])


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
    return _keep(mask, carry, (((1 - z) * n + z * hidden).astype(hidden.dtype),))


def _conv_lstm_step(
    gates: jax.Array, carry: Carry, mask: jax.Array | None, hidden_kernel: jax.Array, padding: Padding
) -> Carry:
    """`carry` without the time axis."""
    cell, hidden = carry
    share = conv(hidden, hidden_kernel, padding=_hidden_padding(padding), channels="first")
    i, g, f, o = jnp.split(gates + share, 4, axis=1)
    new_cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
    return _keep(mask, carry, (new_cell.astype(cell.dtype), new_hidden.astype(hidden.dtype)))


def _working(carry: Carry, *others: Any) -> Carry:
    """The carry in the dtypes a loop keeps: cell wide, hidden state that of inputs and parameters."""
    dtype = jnp.result_type(*carry, *jax.tree.leaves(others))
    *cell, hidden = carry
    return (*(part.astype(_wide(dtype)) for part in cell), hidden.astype(dtype))


def _finished(carry: Carry) -> Carry:
    return tuple(part.astype(carry[-1].dtype) for part in carry)


# Cells


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
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_lstm_cell(*shapes, activation=activation, gate=gate)
    kernel = _join(hidden_kernel, "wh", LSTM_GATES)
    gates = _lstm_projection(x, input_kernel, bias)
    new = _finished(_lstm_step(gates, _working(carry, x, input_kernel, hidden_kernel), mask, kernel, gate, activation))
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
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_gru_cell(*shapes, activation=activation, gate=gate)
    kernel = _join(hidden_kernel, "wh", GRU_GATES)
    gates = _gru_projection(x, input_kernel, bias)
    start = _working(carry, x, input_kernel, hidden_kernel)
    new = _gru_step(gates, start, mask, kernel, None if bias is None else bias["bhn"], gate, activation)
    return new[0], new


def conv_lstm_cell(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: jax.Array,
    hidden_kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "same",
) -> tuple[jax.Array, Carry]:
    r"""One step of a convolutional LSTM, channels first.

    $(i, g, f, o) = split(x * W_x + b + h * W_h)$; $c' = \sigma(f + 1) c + \sigma(i) \tanh(g)$;
    $h' = \sigma(o) \tanh(c')$. The carry stays where the mask is 1.

    Args:
        x: `[batch, channels, *spatial]`.
        carry: (cell, hidden), each `[batch, 1, units, *out]`.
        mask: `[batch]`, `[batch, 1]`, a scalar, or `None` for none.
        input_kernel: `[4 * units, channels, *window]`.
        hidden_kernel: `[4 * units, units, *window]`.
        bias: `[4 * units]`, or `None`.
        strides: of the convolution of the input.
        padding: `valid`, `same`, or a pair per spatial axis, of the convolution of the input. That of the hidden state
            has stride 1 and must keep its sizes: it is padded alike by explicit pairs, and by `same` otherwise.
    Returns: `(hidden [batch, units, *out], (cell, hidden))`.
    Raises:
        ShapeError: shapes do not fit.
        OptionError: an option outside its domain.
    Source: Shi et al. 2015, arXiv:1506.04214; Axon.Layers.conv_lstm_cell (which ignores the mask).
    """
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_conv_lstm_cell(*shapes, strides=strides, padding=padding)
    gates = conv(x, input_kernel, bias, strides=strides, padding=padding, channels="first")
    start = tuple(part[:, 0] for part in _working(carry, x, input_kernel, hidden_kernel))
    new = _finished(_conv_lstm_step(gates, start, mask, hidden_kernel, padding))
    return new[1], tuple(part[:, None] for part in new)


# Sequences


Step = Callable[[jax.Array, Carry, jax.Array | None], Carry]


def _over_time(mask: jax.Array | None, steps: int) -> jax.Array | None:
    """A mask with the time axis first."""
    if mask is None:
        return None
    return jnp.swapaxes(mask, 0, 1) if mask.ndim else jnp.broadcast_to(mask, (steps,))


def _run(step: Callable[..., Any], carry: Any, inputs: Any, steps: int, unroll: Unroll) -> tuple[Any, jax.Array]:
    """`step(carry, input) -> (carry, output)` over axis 0 of all inputs: the last carry, the outputs on axis 0."""
    if unroll == "dynamic":
        result: tuple[Any, jax.Array] = lax.scan(step, carry, inputs)
        return result
    outputs = []
    for t in range(steps):
        carry, output = step(carry, jax.tree.map(lambda leaf, t=t: leaf[t], inputs))
        outputs.append(output)
    return carry, jnp.stack(outputs)


def _recur(
    step: Step, gates: jax.Array, carry: Carry, mask: jax.Array | None, unroll: Unroll
) -> tuple[jax.Array, Carry]:
    """The hidden states `[batch, time, ...]` and the last carry; `gates` has the time axis first."""

    def advance(carry: Carry, inputs: Any) -> tuple[Carry, jax.Array]:
        new = step(inputs[0], carry, inputs[1])
        return new, new[-1]

    steps = gates.shape[0]
    last, sequence = _run(advance, carry, (gates, _over_time(mask, steps)), steps, unroll)
    return jnp.swapaxes(sequence, 0, 1), last


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
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_lstm(*shapes, activation=activation, gate=gate, unroll=unroll)
    kernel = _join(hidden_kernel, "wh", LSTM_GATES)
    start = _working(carry, x, input_kernel, hidden_kernel)

    def step(gates: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        return _lstm_step(gates, carry, mask, kernel, gate, activation)

    gates = _lstm_projection(jnp.swapaxes(x, 0, 1), input_kernel, bias)
    sequence, last = _recur(step, gates, start, mask, unroll)
    return sequence, _finished(last)


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
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_gru(*shapes, activation=activation, gate=gate, unroll=unroll)
    kernel = _join(hidden_kernel, "wh", GRU_GATES)
    hidden_bias = None if bias is None else bias["bhn"]
    start = _working(carry, x, input_kernel, hidden_kernel)

    def step(gates: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        return _gru_step(gates, carry, mask, kernel, hidden_bias, gate, activation)

    return _recur(step, _gru_projection(jnp.swapaxes(x, 0, 1), input_kernel, bias), start, mask, unroll)


def conv_lstm(
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: jax.Array,
    hidden_kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "same",
    unroll: Unroll = "dynamic",
) -> tuple[jax.Array, Carry]:
    """`conv_lstm_cell` along the sequence.

    Args:
        x: `[batch, time, channels, *spatial]`, one time step or more.
        mask, unroll: as in `lstm`.
    Other arguments and errors as in `conv_lstm_cell`.
    Returns: `(hidden states [batch, time, units, *out], (cell, hidden))`.
    Source: Axon.Layers.conv_lstm (which ignores the mask).
    """
    shapes = _shapes((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_conv_lstm(*shapes, strides=strides, padding=padding, unroll=unroll)
    batch, steps = x.shape[:2]
    frames = jnp.swapaxes(x, 0, 1).reshape(steps * batch, *x.shape[2:])
    gates = conv(frames, input_kernel, bias, strides=strides, padding=padding, channels="first")
    start = tuple(part[:, 0] for part in _working(carry, x, input_kernel, hidden_kernel))

    def step(gates: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        return _conv_lstm_step(gates, carry, mask, hidden_kernel, padding)

    sequence, last = _recur(step, gates.reshape(steps, batch, *gates.shape[1:]), start, mask, unroll)
    return sequence, tuple(part[:, None] for part in _finished(last))


def _unroll(cell: Cell, x: jax.Array, carry: Carry, mask: Any, arguments: tuple[Any, ...], unroll: Unroll) -> Any:
    def advance(carry: Carry, inputs: Any) -> tuple[Carry, jax.Array]:
        output, new = cell(inputs[0], carry, inputs[1], *arguments)
        return new, output

    steps = x.shape[1]
    last, outputs = _run(advance, carry, (jnp.swapaxes(x, 0, 1), _over_time(mask, steps)), steps, unroll)
    return jnp.swapaxes(outputs, 0, 1), last


def static_unroll(
    cell: Cell,
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Any,
    hidden_kernel: Any,
    bias: Any = None,
) -> tuple[jax.Array, Carry]:
    """Any cell along axis 1, each step written out in the program.

    Args:
        cell: `(x, carry, mask, input_kernel, hidden_kernel, bias) -> (output, carry)`.
        x: `[batch, time, ...]`.
        carry: what the cell carries, as it returns it.
        mask: `[batch, time]`, a scalar, or `None`; the cell gets `[batch]`, a scalar or `None`.
    Returns: `(outputs [batch, time, ...], carry)`.
    Raises:
        ShapeError: no time step, or a mask of another shape.
    Source: Axon.Layers.static_unroll.
    """
    check_static_unroll(cell, jnp.shape(x), None, None if mask is None else jnp.shape(mask), None, None)
    result: tuple[jax.Array, Carry] = _unroll(cell, x, carry, mask, (input_kernel, hidden_kernel, bias), "static")
    return result


def dynamic_unroll(
    cell: Cell,
    x: jax.Array,
    carry: Carry,
    mask: jax.Array | None,
    input_kernel: Any,
    hidden_kernel: Any,
    bias: Any = None,
) -> tuple[jax.Array, Carry]:
    """Any cell along axis 1, as a loop in the program; values and gradients are those of `static_unroll`.

    Arguments, result and errors as in `static_unroll`; the cell must return a carry of the same shapes and dtypes.
    Source: Axon.Layers.dynamic_unroll (whose gradients were wrong before 0.9).
    """
    check_dynamic_unroll(cell, jnp.shape(x), None, None if mask is None else jnp.shape(mask), None, None)
    result: tuple[jax.Array, Carry] = _unroll(cell, x, carry, mask, (input_kernel, hidden_kernel, bias), "dynamic")
    return result
