"""Convolutional LSTM: its states are images, channels first. Source: Axon.Layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from engine.errors import ShapeError
from engine.functional.convolution import conv
from engine.functional.options import Padding, as_sizes
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
from engine.functional.windows import as_pads, output_sizes
from engine.shapes import Shape, require_rank

_MAX_PATCHES = 256  # each is an operation of the program


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
    check_carry(op, carry, ("cell", "hidden"), (x[0], 1, units, *sizes))
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
    check_step_mask("conv_lstm_cell", mask, x)
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
    check_unroll("conv_lstm", unroll)
    require_rank("conv_lstm", x, at_least=4)
    check_sequence("conv_lstm", x, mask)
    step = (x[0], *x[2:])
    _check_conv_gates("conv_lstm", step, carry, input_kernel, hidden_kernel, bias, strides, padding)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _patch_product(x: jax.Array, kernel: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
    """`conv` with stride 1 that keeps the sizes, channels first, as one matrix product of all windows.

    The windows are gathered anew for the gradient, which would otherwise store them for every step.
    """
    (batch, channels, *sizes), window = x.shape, kernel.shape[2:]
    padded = jnp.pad(x, ((0, 0), (0, 0), *pads))
    windows = jnp.stack(
        [
            padded[(..., *(slice(at, at + size) for at, size in zip(place, sizes, strict=True)))]
            for place in itertools.product(*map(range, window))
        ],
        axis=2,
    ).reshape(batch, channels * math.prod(window), math.prod(sizes))
    weights = kernel.reshape(kernel.shape[0], channels * math.prod(window))
    product = jnp.einsum("uw,bwp->bup", weights, windows, preferred_element_type=wide(jnp.result_type(x, kernel)))
    return product.reshape(batch, kernel.shape[0], *sizes)


def _hidden_share(hidden: jax.Array, hidden_kernel: jax.Array, padding: Padding) -> jax.Array:
    """The hidden state's share of the gates."""
    kept = _hidden_padding(padding)
    if jax.default_backend() != "cpu" or math.prod(hidden_kernel.shape[2:]) > _MAX_PATCHES:
        return conv(hidden, hidden_kernel, padding=kept, channels="first")
    # Within a loop XLA's convolutions are ten times slower than products on the CPU.
    share: jax.Array = _patch_product(hidden, hidden_kernel, as_pads("conv_lstm", kept, hidden_kernel.shape[2:]))
    return share


def _conv_lstm_step(
    gates: jax.Array, carry: Carry, mask: jax.Array | None, hidden_kernel: jax.Array, padding: Padding
) -> Carry:
    """`carry` without the time axis."""
    cell, hidden = carry
    i, g, f, o = jnp.split(gates + _hidden_share(hidden, hidden_kernel, padding), 4, axis=1)
    new_cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
    return keep(mask, carry, (new_cell.astype(cell.dtype), new_hidden.astype(hidden.dtype)))


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
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_conv_lstm_cell(*shapes, strides=strides, padding=padding)
    gates = conv(x, input_kernel, bias, strides=strides, padding=padding, channels="first")
    start = tuple(part[:, 0] for part in working(carry, x, input_kernel, hidden_kernel))
    new = finished(_conv_lstm_step(gates, start, mask, hidden_kernel, padding))
    return new[1], tuple(part[:, None] for part in new)


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
    shapes = shapes_of((x, carry, mask, input_kernel, hidden_kernel, bias))
    check_conv_lstm(*shapes, strides=strides, padding=padding, unroll=unroll)
    batch, steps = x.shape[:2]
    frames = jnp.swapaxes(x, 0, 1).reshape(steps * batch, *x.shape[2:])
    gates = conv(frames, input_kernel, bias, strides=strides, padding=padding, channels="first")
    start = tuple(part[:, 0] for part in working(carry, x, input_kernel, hidden_kernel))

    def step(gates: jax.Array, carry: Carry, mask: jax.Array | None) -> Carry:
        return _conv_lstm_step(gates, carry, mask, hidden_kernel, padding)

    sequence, last = recur(step, gates.reshape(steps, batch, *gates.shape[1:]), start, mask, unroll)
    return sequence, tuple(part[:, None] for part in finished(last))
