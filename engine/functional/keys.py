"""Random keys as plain arrays: `uint32[2]`, the state of JAX's threefry generator.

Keys live in parameters and checkpoints, so they are kept as data; `wrap` turns one into a typed key for `jax.random`.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Nx.Random.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine.errors import DtypeError, OptionError, ShapeError
from engine.shapes import Shape

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


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


def _rounds(key: jax.Array, low: jax.Array) -> jax.Array:
    """Threefry-2x32 with 20 rounds of the counters (0, low), both halves of each result joined by xor."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    left, right = jnp.broadcast_to(schedule[0], low.shape), low + schedule[1]
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            left = left + right
            right = left ^ ((right << np.uint32(distance)) | (right >> np.uint32(32 - distance)))
        left = left + schedule[(i + 1) % 3]
        right = right + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return left ^ right


def _partitionable() -> bool:
    """Whether JAX numbers the counters of random bits as `_rounds` does, which is its default."""
    return bool(jax.threefry_partitionable.value)


def uniform(key: jax.Array, shape: Shape) -> jax.Array:
    """Float32 numbers in [0, 1), those of `jax.random.uniform`.

    On the CPU all rounds are written out, which the compiler makes one loop of; JAX's own are several, through memory,
    and take twice as long.
    """
    fixed = all(isinstance(size, int) for size in shape) and math.prod(shape) < 2**32
    if jax.default_backend() != "cpu" or not fixed or not _partitionable():
        return jax.random.uniform(wrap(key), shape, jnp.float32)
    raw = jax.random.key_data(wrap(key))
    bits = _rounds(raw, lax.iota(jnp.uint32, math.prod(shape))).reshape(shape)
    mantissa = (bits >> np.uint32(9)) | np.uint32(0x3F800000)
    return lax.bitcast_convert_type(mantissa, jnp.float32) - 1
