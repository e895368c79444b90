"""What the adapters share: the verdicts besides a result, and decoded values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.functional import StatefulOutput


class Unsupported(Exception):
    """The project has no such thing; the text says what is missing."""


class Different(Exception):
    """Deliberately not what upstream does; the text names the entry of docs/differences.md."""


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in a nested value."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays(item)


@contextlib.contextmanager
def precision_of(case: dict[str, Any]) -> Iterator[None]:
    """64-bit types for a case that holds any, and the generator the reference values come from."""
    wide = any(array.dtype.itemsize == 8 for array in arrays(case))
    with jax.enable_x64(wide), jax.threefry_partitionable(False):
        yield


def evaluate(
    function: Callable[..., Any], values: dict[str, Any], wrt: list[str], cotangent: Any, *, compiled: bool
) -> tuple[Any, Any]:
    """`function(**values)`, and the gradient of `sum(output * cotangent)` with respect to the values named in `wrt`.

    A stateful result has the gradient of its output. Without a cotangent the output is summed. `compiled` makes one
    program of it, which is faster here; without, every operation is rounded as in the reference.
    """

    def both(values: dict[str, Any], cotangent: Any) -> tuple[Any, Any]:
        result = function(**values)
        if not wrt:
            return result, {}

        def total(chosen: dict[str, Any]) -> jax.Array:
            output = function(**(values | chosen))
            output = output.output if isinstance(output, StatefulOutput) else output
            return (output if cotangent is None else output * jnp.asarray(cotangent, output.dtype)).sum()

        return result, jax.grad(total)({name: values[name] for name in wrt})

    result: tuple[Any, Any] = (jax.jit(both) if compiled else both)(values, cotangent)
    return result


def as_arrays(value: Any) -> Any:
    """The same nested value, in the same order, with JAX arrays in place of NumPy's."""
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_arrays(item) for item in value]
    return jnp.asarray(value) if isinstance(value, np.ndarray) else value
