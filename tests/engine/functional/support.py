"""What the tests of ops share: fixed arrays, and gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.test_util import check_grads


def values(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Fixed float64 numbers."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def assert_gradient(function: Callable[..., jax.Array], *arrays: Any) -> None:
    """Forward and reverse derivatives of a float64 function agree with central differences."""
    with jax.enable_x64(True):
        wide = tuple(jax.numpy.asarray(array, jax.numpy.float64) for array in arrays)
        check_grads(jax.jit(function), wide, order=1, atol=1e-5, rtol=1e-5)
