"""Random keys as plain arrays: `uint32[2]`, the state of JAX's threefry generator.

Keys live in parameters and checkpoints, so they are kept as data; `wrap` turns one into a typed key for `jax.random`.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Nx.Random.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, OptionError, ShapeError


def from_seed(seed: int) -> jax.Array:
    """The key of a seed in `[0, 2**64)`: its upper and its lower 32 bits, `uint32[2]`."""
    if not 0 <= seed < 2**64:
        raise OptionError(f"from_seed: expected a seed in [0, 2**64), got {seed}")
    return jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))


def wrap(key: jax.Array) -> jax.Array:
    """A typed threefry key of a raw one (`uint32[2]`); typed keys pass through.

    Raises:
        DtypeError: `key` is neither `uint32` nor a typed key.
        ShapeError: a raw key is not of shape `(2,)`.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype != jnp.uint32:
        raise DtypeError(f"random key: expected dtype uint32, got {key.dtype}")
    if key.shape != (2,):
        raise ShapeError(f"random key: expected shape (2,), got {key.shape}")
    typed: jax.Array = jax.random.wrap_key_data(key, impl="threefry2x32")
    return typed


def split(key: jax.Array, parts: int = 2) -> jax.Array:
    """`parts` new raw keys of one, `uint32[parts, 2]`."""
    return jax.random.key_data(jax.random.split(wrap(key), parts))


def fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
    """A new raw key of a key and 32 bits of data (a hash of a name, a step), `uint32[2]`."""
    return jax.random.key_data(jax.random.fold_in(wrap(key), data))
