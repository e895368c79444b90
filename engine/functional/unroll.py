"""Running a cell along axis 1 of a sequence, `[batch, time, ...]`, and what all recurrent layers share.

A mask is 1 where a step is to be ignored: the carry stays as it is, and the output repeats the hidden state. (That is
the opposite of an attention mask.) Source: Axon.Layers (Axon.Recurrent in its first release).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional.options import require_choice
from engine.shapes import Shape, require_rank

Unroll = Literal["dynamic", "static"]
Carry = tuple[jax.Array, ...]
Cell = Callable[..., tuple[jax.Array, Carry]]
Step = Callable[[jax.Array, Carry, jax.Array | None], Carry]

MAX_STATIC_STEPS = 1024
"""How many steps a program may hold one after another."""
UNROLLS: tuple[Unroll, ...] = ("dynamic", "static")


def check_unroll(op: str, unroll: str) -> None:
    """Raise `OptionError` for an unknown way to unroll."""
    require_choice(op, "unroll", unroll, UNROLLS)


def check_carry(op: str, carry: Sequence[Shape], parts: Sequence[str], shape: Shape) -> None:
    """Raise `ShapeError` unless the carry has these parts, all of one shape."""
    if len(carry) != len(parts):
        raise ShapeError(f"{op}: expected a carry ({', '.join(parts)}), got {len(carry)} arrays")
    for name, found in zip(parts, carry, strict=True):
        if found != shape:
            raise ShapeError(f"{op}: expected the carry's {name} of shape {shape}, got {found}")


def check_mask(op: str, mask: Shape | None, *allowed: Shape) -> None:
    """Raise `ShapeError` unless the mask is missing, a scalar or of an allowed shape."""
    if mask is not None and mask != () and mask not in allowed:
        raise ShapeError(f"{op}: expected a mask of shape {' or '.join(map(str, allowed))}, got {mask}")


def check_step_mask(op: str, mask: Shape | None, x: Shape) -> None:
    """The rule of a cell's mask, for an input `[batch, ...]`."""
    check_mask(op, mask, x[:1], (x[0], 1))


def check_sequence(op: str, x: Shape, mask: Shape | None) -> None:
    """The rule of a sequence and its mask."""
    require_rank(op, x, at_least=2)
    if x[1] == 0:
        raise ShapeError(f"{op}: expected at least one time step on axis 1, got shape {x}")
    check_mask(op, mask, x[:2])


def check_static_unroll(
    cell: Cell, x: Shape, carry: Any, mask: Shape | None, input_kernel: Any, hidden_kernel: Any, bias: Any = None
) -> None:
    """The shape rule of `static_unroll`; the cell checks the rest."""
    check_sequence("static_unroll", x, mask)


def check_dynamic_unroll(
    cell: Cell, x: Shape, carry: Any, mask: Shape | None, input_kernel: Any, hidden_kernel: Any, bias: Any = None
) -> None:
    """The shape rule of `dynamic_unroll`; the cell checks the rest."""
    check_sequence("dynamic_unroll", x, mask)


def shapes_of(tree: Any) -> Any:
    """The same nested value with shapes in place of arrays."""
    return jax.tree.map(jnp.shape, tree)


def wide(dtype: Any) -> Any:
    """The dtype sums are kept in: float32 for the half types."""
    return jnp.promote_types(dtype, jnp.float32)


def keep(mask: jax.Array | None, old: Carry, new: Carry) -> Carry:
    """The old carry where the mask says so."""
    if mask is None:
        return new
    keep = mask.astype(bool).reshape(mask.shape[:1] + (1,) * (new[0].ndim - 1) if mask.ndim else ())
    return tuple(jnp.where(keep, before, after) for before, after in zip(old, new, strict=True))


def working(carry: Carry, *others: Any) -> Carry:
    """The carry in the dtypes a loop keeps: cell wide, hidden state that of inputs and parameters."""
    dtype = jnp.result_type(*carry, *jax.tree.leaves(others))
    *cell, hidden = carry
    return (*(part.astype(wide(dtype)) for part in cell), hidden.astype(dtype))


def finished(carry: Carry) -> Carry:
    """The carry a caller gets: all of the hidden state's dtype."""
    return tuple(part.astype(carry[-1].dtype) for part in carry)


def over_time(mask: jax.Array | None, steps: int) -> jax.Array | None:
    """A mask with the time axis first."""
    if mask is None:
        return None
    return jnp.swapaxes(mask, 0, 1) if mask.ndim else jnp.broadcast_to(mask, (steps,))


def run(step: Callable[..., Any], carry: Any, inputs: Any, steps: int, unroll: Unroll) -> tuple[Any, jax.Array]:
    """`step(carry, input) -> (carry, output)` over axis 0 of all inputs: the last carry, the outputs on axis 0."""
    if unroll == "dynamic":
        result: tuple[Any, jax.Array] = lax.scan(step, carry, inputs)
        return result
    if steps > MAX_STATIC_STEPS:
        raise OptionError(f"unroll: expected at most {MAX_STATIC_STEPS} steps to write out, got {steps}; use 'dynamic'")
    outputs = []
    for t in range(steps):
        carry, output = step(carry, jax.tree.map(lambda leaf, t=t: leaf[t], inputs))
        outputs.append(output)
    return carry, jnp.stack(outputs)


def recur(
    step: Step, inputs: jax.Array, carry: Carry, mask: jax.Array | None, unroll: Unroll
) -> tuple[jax.Array, Carry]:
    """The hidden states `[batch, time, ...]` and the last carry; `inputs` has the time axis first."""

    def advance(carry: Carry, at_step: Any) -> tuple[Carry, jax.Array]:
        new = step(at_step[0], carry, at_step[1])
        return new, new[-1]

    steps = inputs.shape[0]
    last, sequence = run(advance, carry, (inputs, over_time(mask, steps)), steps, unroll)
    return jnp.swapaxes(sequence, 0, 1), last


def _unroll(cell: Cell, x: jax.Array, carry: Carry, mask: Any, arguments: tuple[Any, ...], unroll: Unroll) -> Any:
    def advance(carry: Carry, inputs: Any) -> tuple[Carry, jax.Array]:
        output, new = cell(inputs[0], carry, inputs[1], *arguments)
        return new, output

    steps = x.shape[1]
    last, outputs = run(advance, carry, (jnp.swapaxes(x, 0, 1), over_time(mask, steps)), steps, unroll)
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
