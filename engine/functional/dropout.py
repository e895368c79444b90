r"""Dropout: in `train` mode part of the input is replaced at random, in `inference` nothing happens.

Every op takes a random key (state, `uint32[2]`) and in `train` mode returns a `StatefulOutput` with the new one: the
key is split into the next key and the one the noise is drawn with. Source: Axon.Layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import OptionError
from engine.functional import keys
from engine.functional.options import CHANNELS, MODES, Channels, Mode, require_choice, require_number
from engine.functional.stateful import StatefulOutput
from engine.shapes import Shape, require_rank

# The value SELU tends to at minus infinity, which alpha dropout puts in place of dropped elements: -gamma * alpha.
_ALPHA_PRIME = -1.7580993408473766


def _check(op: str, rate: float, mode: Mode) -> None:
    require_number(op, "rate", rate, at_least=0, less_than=1)
    require_choice(op, "mode", mode, MODES)


def _draw(key: jax.Array, rate: float, noise_shape: Shape) -> tuple[jax.Array, jax.Array]:
    """The next key, and a mask that is true with probability `1 - rate`."""
    following, current = keys.split(key)
    # Otherwise the CPU draws once for the value and again for the gradient.
    kept: jax.Array = lax.optimization_barrier(  # type: ignore[no-untyped-call]
        keys.uniform(current, noise_shape) < 1 - rate
    )
    return following, kept


def check_dropout(
    x: Shape,
    key: Shape,
    *,
    rate: float = 0.5,
    noise_shape: Sequence[int] | None = None,
    mode: Mode = "inference",
) -> None:
    """The shape rule of `dropout`."""
    _check("dropout", rate, mode)
    if noise_shape is not None:
        noise = tuple(noise_shape)
        if len(noise) != len(x) or any(n not in (1, size) for n, size in zip(noise, x, strict=True)):
            raise OptionError(f"dropout: expected a noise_shape of 1 or the size in {x} per axis, got {noise}")


def dropout(
    x: jax.Array,
    key: jax.Array,
    *,
    rate: float = 0.5,
    noise_shape: Sequence[int] | None = None,
    mode: Mode = "inference",
) -> jax.Array | StatefulOutput:
    """Zero each element with probability `rate`, and divide the others by `1 - rate`.

    Args:
        x: any shape.
        key: random key (state), `uint32[2]`.
        rate: in [0, 1).
        noise_shape: sizes of the mask, x's own or 1 (one draw for the whole axis); x's shape when `None`.
        mode: `train` or `inference`.
    Returns: an array of x's shape; in `train` mode a `StatefulOutput` with the new `key`.
    Raises:
        OptionError: an option outside its domain.
    Source: Srivastava et al. 2014; Axon.Layers.dropout.
    """
    check_dropout(jnp.shape(x), jnp.shape(key), rate=rate, noise_shape=noise_shape, mode=mode)
    if mode == "inference":
        return x
    following, keep = _draw(key, rate, x.shape if noise_shape is None else tuple(noise_shape))
    return StatefulOutput(jnp.where(keep, x / (1 - rate), 0), {"key": following})


def _map_shape(x: Shape, channels: Channels) -> Shape:
    """One draw per feature map: batch and channels keep their sizes."""
    spatial = range(1, len(x) - 1) if channels == "last" else range(2, len(x))
    return tuple(1 if axis in spatial else size for axis, size in enumerate(x))


def _check_maps(op: str, x: Shape, rate: float, channels: Channels, mode: Mode) -> None:
    require_rank(op, x, at_least=3)
    _check(op, rate, mode)
    require_choice(op, "channels", channels, CHANNELS)


def check_spatial_dropout(
    x: Shape, key: Shape, *, rate: float = 0.5, channels: Channels = "last", mode: Mode = "inference"
) -> None:
    """The shape rule of `spatial_dropout`."""
    _check_maps("spatial_dropout", x, rate, channels, mode)


def spatial_dropout(
    x: jax.Array, key: jax.Array, *, rate: float = 0.5, channels: Channels = "last", mode: Mode = "inference"
) -> jax.Array | StatefulOutput:
    """Dropout of whole feature maps: one draw per sample and channel.

    Args:
        x: `[batch, *spatial, channels]`, or with `channels="first"` `[batch, channels, *spatial]`; rank 3 or more.
        channels: `last` or `first`.
    Other arguments and result as in `dropout`.
    Raises:
        ShapeError: rank below 3.
        OptionError: an option outside its domain.
    Source: Tompson et al. 2014, arXiv:1411.4280; Axon.Layers.spatial_dropout (which drops whole positions instead).
    """
    check_spatial_dropout(jnp.shape(x), jnp.shape(key), rate=rate, channels=channels, mode=mode)
    return dropout(x, key, rate=rate, noise_shape=_map_shape(jnp.shape(x), channels), mode=mode)


def _alpha(x: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
    """Dropped elements become alpha', then an affine map restores mean 0 and variance 1."""
    keep_rate = 1 - rate
    a = 1 / math.sqrt(keep_rate + _ALPHA_PRIME**2 * keep_rate * rate)
    return a * jnp.where(keep, x, _ALPHA_PRIME) - a * _ALPHA_PRIME * rate


def check_alpha_dropout(x: Shape, key: Shape, *, rate: float = 0.5, mode: Mode = "inference") -> None:
    """The shape rule of `alpha_dropout`."""
    _check("alpha_dropout", rate, mode)


def alpha_dropout(
    x: jax.Array, key: jax.Array, *, rate: float = 0.5, mode: Mode = "inference"
) -> jax.Array | StatefulOutput:
    r"""Dropout that keeps mean 0 and variance 1, for networks of SELUs.

    With $q = 1 - rate$: $y = a \, where(keep, x, \alpha') + b$, $a = (q + \alpha'^2 q (1 - q))^{-1/2}$,
    $b = -a (1 - q) \alpha'$. Arguments, result and errors as in `dropout`.
    Source: Klambauer et al. 2017, arXiv:1706.02515; Axon.Layers.alpha_dropout (with another `a`).
    """
    check_alpha_dropout(jnp.shape(x), jnp.shape(key), rate=rate, mode=mode)
    if mode == "inference":
        return x
    following, keep = _draw(key, rate, x.shape)
    return StatefulOutput(_alpha(x, keep, rate), {"key": following})


def check_feature_alpha_dropout(
    x: Shape, key: Shape, *, rate: float = 0.5, channels: Channels = "last", mode: Mode = "inference"
) -> None:
    """The shape rule of `feature_alpha_dropout`."""
    _check_maps("feature_alpha_dropout", x, rate, channels, mode)


def feature_alpha_dropout(
    x: jax.Array, key: jax.Array, *, rate: float = 0.5, channels: Channels = "last", mode: Mode = "inference"
) -> jax.Array | StatefulOutput:
    """Alpha dropout of whole feature maps: one draw per sample and channel.

    Arguments and errors as in `spatial_dropout`, the formula of `alpha_dropout`.
    Source: Klambauer et al. 2017; Axon.Layers.feature_alpha_dropout (which drops positions, by another formula).
    """
    check_feature_alpha_dropout(jnp.shape(x), jnp.shape(key), rate=rate, channels=channels, mode=mode)
    if mode == "inference":
        return x
    following, keep = _draw(key, rate, _map_shape(x.shape, channels))
    return StatefulOutput(_alpha(x, keep, rate), {"key": following})
