r"""Parameter initializers: constructors of functions `(shape, dtype, key) -> array`.

The key is a raw or typed random key (see `keys`), or `None` for the deterministic ones. Random values are drawn in
float32 for the half types (rounded at the end), so that a parameter means the same in any precision.

Fans: a kernel ends in `[..., in, out]`, so `fan_in = shape[-2] * r` and `fan_out = shape[-1] * r` with `r` the product
of the leading (window) axes; with `layout="first"` it begins with `[out, in, ...]`. Below rank 2 both fans are 1.
Source: Axon.Initializers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, OptionError, ShapeError
from engine.functional import keys
from engine.functional.options import CHANNELS, Channels, require_choice, require_number
from engine.shapes import Shape

FanMode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["normal", "truncated_normal", "uniform"]

# Standard deviation of a standard normal truncated to [-2, 2].
_TRUNCATED_STDDEV = 0.87962566103423978


class Initializer(Protocol):
    """Makes a parameter's first value.

    `key` may be `None` where the value does not depend on it.
    """

    def __call__(self, shape: Shape, dtype: Any, key: jax.Array | None) -> jax.Array: ...


def _random(name: str, sample: Callable[[jax.Array, Shape, Any], jax.Array]) -> Initializer:
    """An initializer of `sample(key, shape, dtype)`, called with a typed key and a dtype of 32 bits or more."""

    def initialize(shape: Shape, dtype: Any, key: jax.Array | None) -> jax.Array:
        if key is None:
            raise OptionError(f"{name}: expected a random key, got None")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise DtypeError(f"{name}: expected a float dtype, got {jnp.dtype(dtype).name}")
        return sample(keys.wrap(key), tuple(shape), jnp.promote_types(dtype, jnp.float32)).astype(dtype)

    return initialize


def zeros() -> Initializer:
    """All zeros. Source: Axon.Initializers.zeros."""
    return full(0)


def ones() -> Initializer:
    """All ones. Source: Axon.Initializers.ones."""
    return full(1)


def full(value: float) -> Initializer:
    """All `value`, cast to the dtype (2.75 becomes 2 in an integer one). Source: Axon.Initializers.full."""
    require_number("full", "value", value)

    def initialize(shape: Shape, dtype: Any, key: jax.Array | None = None) -> jax.Array:
        return jnp.full(shape, np.asarray(value).astype(dtype), dtype)

    return initialize


def identity() -> Initializer:
    """The identity matrix; the shape may be rectangular, but must be of rank 2 (`ShapeError`).

    Source: Axon.Initializers.identity.
    """

    def initialize(shape: Shape, dtype: Any, key: jax.Array | None = None) -> jax.Array:
        if len(shape) != 2:
            raise ShapeError(f"identity: expected a shape of rank 2, got {tuple(shape)}")
        return jnp.eye(*shape, dtype=dtype)

    return initialize


def uniform(scale: float = 0.01) -> Initializer:
    """Uniform in [-scale, scale). Source: Axon.Initializers.uniform."""
    require_number("uniform", "scale", scale, at_least=0)
    return _random(
        "uniform", lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, minval=-scale, maxval=scale)
    )


def normal(mean: float = 0.0, scale: float = 0.01) -> Initializer:
    """Normal with the given mean and standard deviation `scale`. Source: Axon.Initializers.normal."""
    require_number("normal", "mean", mean)
    require_number("normal", "scale", scale, at_least=0)
    return _random("normal", lambda key, shape, dtype: mean + scale * jax.random.normal(key, shape, dtype))


def fans(shape: Shape, layout: Channels = "last") -> tuple[float, float]:
    """`(fan_in, fan_out)` of a kernel; see the module's head."""
    if len(shape) < 2:
        return 1.0, 1.0
    if layout == "first":
        fan_out, fan_in, *window = shape
    else:
        *window, fan_in, fan_out = shape
    receptive = math.prod(window)
    return float(fan_in * receptive), float(fan_out * receptive)


def variance_scaling(
    scale: float = 1.0,
    mode: FanMode = "fan_in",
    distribution: Distribution = "normal",
    layout: Channels = "last",
) -> Initializer:
    r"""Zero mean and variance `scale / max(fan, 1)`.

    Args:
        scale: not negative.
        mode: the fan, `fan_in`, `fan_out` or their mean `fan_avg`.
        distribution: `normal`; `uniform`, in $\pm\sqrt{3 var}$; or `truncated_normal`, a normal cut at two of its
            standard deviations and widened so that the variance is right.
        layout: where the kernel's `in` and `out` axes are; see the module's head.
    Raises:
        OptionError: an option outside its domain.
    Source: He et al. 2015, arXiv:1502.01852; Axon.Initializers.variance_scaling.
    """
    require_number("variance_scaling", "scale", scale, at_least=0)
    require_choice("variance_scaling", "mode", mode, ("fan_in", "fan_out", "fan_avg"))
    require_choice("variance_scaling", "distribution", distribution, ("normal", "truncated_normal", "uniform"))
    require_choice("variance_scaling", "layout", layout, CHANNELS)

    def sample(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
        fan_in, fan_out = fans(shape, layout)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        deviation = math.sqrt(scale / max(fan, 1.0))
        if distribution == "uniform":
            limit = math.sqrt(3.0) * deviation
            return jax.random.uniform(key, shape, dtype, minval=-limit, maxval=limit)
        if distribution == "normal":
            return deviation * jax.random.normal(key, shape, dtype)
        return deviation / _TRUNCATED_STDDEV * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return _random("variance_scaling", sample)


def glorot_uniform(scale: float = 1.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of the mean fan, uniform. Source: Glorot and Bengio 2010; Axon.Initializers.glorot_uniform."""
    return variance_scaling(scale, "fan_avg", "uniform", layout)


def glorot_normal(scale: float = 1.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of the mean fan, truncated normal. Source: as `glorot_uniform`."""
    return variance_scaling(scale, "fan_avg", "truncated_normal", layout)


def lecun_uniform(scale: float = 1.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of fan_in, uniform. Source: LeCun et al. 1998; Axon.Initializers.lecun_uniform."""
    return variance_scaling(scale, "fan_in", "uniform", layout)


def lecun_normal(scale: float = 1.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of fan_in, truncated normal. Source: as `lecun_uniform`."""
    return variance_scaling(scale, "fan_in", "truncated_normal", layout)


def he_uniform(scale: float = 2.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of fan_in with scale 2, uniform. Source: He et al. 2015; Axon.Initializers.he_uniform."""
    return variance_scaling(scale, "fan_in", "uniform", layout)


def he_normal(scale: float = 2.0, layout: Channels = "last") -> Initializer:
    """`variance_scaling` of fan_in with scale 2, truncated normal. Source: as `he_uniform`."""
    return variance_scaling(scale, "fan_in", "truncated_normal", layout)


def orthogonal(distribution: Literal["normal", "uniform"] = "normal") -> Initializer:
    """Orthonormal columns (rows where there are fewer) of the shape flattened to `[prod(shape[:-1]), shape[-1]]`.

    The Q factor of a random matrix, its columns multiplied by the signs of R's diagonal: with `normal` it is
    distributed by the Haar measure. Raises `ShapeError` below rank 2.
    Source: Saxe et al. 2013, arXiv:1312.6120; Mezzadri 2006, arXiv:math-ph/0609050; Axon.Initializers.orthogonal.
    """
    require_choice("orthogonal", "distribution", distribution, ("normal", "uniform"))

    def sample(key: jax.Array, shape: Shape, dtype: Any) -> jax.Array:
        if len(shape) < 2:
            raise ShapeError(f"orthogonal: expected a shape of rank 2 or more, got {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = (max(rows, columns), min(rows, columns))
        draw = jax.random.normal if distribution == "normal" else jax.random.uniform
        q, r = jnp.linalg.qr(draw(key, tall, dtype))
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(dtype)
        return (q.T if rows < columns else q).reshape(shape)

    return _random("orthogonal", sample)


INITIALIZERS: Mapping[str, Callable[..., Initializer]] = MappingProxyType(
    {
        constructor.__name__: constructor
        for constructor in (
            zeros,
            ones,
            full,
            identity,
            uniform,
            normal,
            glorot_uniform,
            glorot_normal,
            lecun_uniform,
            lecun_normal,
            he_uniform,
            he_normal,
            variance_scaling,
            orthogonal,
        )
    }
)
"""Every initializer's constructor by its name."""

InitializerSpec = str | Mapping[str, Any] | Initializer


def from_spec(spec: InitializerSpec, *, layout: Channels = "last") -> Initializer:
    """The initializer a name, a JSON object or a function stands for.

    Args:
        spec: a name (`"glorot_uniform"`), a name with options (`{"name": "uniform", "scale": 0.1}`), or a function
            of the protocol `Initializer`, which is returned as it is.
        layout: the kernel's layout, given to the initializers that count fans unless `spec` says its own.
    Raises:
        OptionError: an unknown name, an unknown, missing or wrong option.
    """
    if callable(spec):
        return spec
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in INITIALIZERS:
        raise OptionError(f"initializer: expected a name among {', '.join(INITIALIZERS)}, got {name!r}")
    accepted = inspect.signature(INITIALIZERS[name]).parameters
    if unknown := [option for option in options if option not in accepted]:
        raise OptionError(f"initializer {name}: expected options among {list(accepted)}, got {unknown[0]!r}")
    missing = [o for o, p in accepted.items() if p.default is p.empty and o not in options]
    if missing:
        raise OptionError(f"initializer {name}: expected option {missing[0]!r}, got {options or 'no options'}")
    if "layout" in accepted:
        options.setdefault("layout", layout)
    return INITIALIZERS[name](**options)
