"""What the adapters share: the verdicts besides a result, and decoded values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


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


def gradients(function: Callable[..., jax.Array], values: dict[str, Any], wrt: list[str], cotangent: Any) -> Any:
    """Gradient of `sum(function(**values) * cotangent)` with respect to the values named in `wrt`."""

    def total(chosen: dict[str, Any]) -> jax.Array:
        output = function(**(values | chosen))
        return (output * jax.numpy.asarray(cotangent, output.dtype)).sum()

    return jax.grad(total)({name: values[name] for name in wrt})


def as_arrays(value: Any) -> Any:
    """The same nested value, in the same order, with JAX arrays in place of NumPy's."""
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_arrays(item) for item in value]
    return jax.numpy.asarray(value) if isinstance(value, np.ndarray) else value
