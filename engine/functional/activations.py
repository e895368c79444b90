r"""Activation functions: the 22 of Axon, element-wise unless they have an `axis`.

All take an array of any shape and any numeric dtype (integers are promoted where the result is not an integer), keep
the shape (`log_sumexp` keeps the reduced axis with size 1) and can be differentiated everywhere without NaN, far from
zero too. Source: Axon.Activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.scipy.special import expit, logsumexp

from engine.errors import OptionError, ShapeError
from engine.shapes import Shape, normalize_axis

Axis = int | Sequence[int]

# Fitted by reweighted least squares; see `_normal_cdf`.
_CDF_COEFFICIENTS = (
    -1.25675273,
    0.486268938,
    0.214563459,
    -0.117722772,
    -0.0259769019,
    -0.145326346,
    0.185351625,
    -0.0583163239,
)


def _axes(op: str, axis: Axis, rank: int) -> tuple[int, ...]:
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    result = tuple(normalize_axis(op, item, rank) for item in axes)
    if len(set(result)) != len(result):
        raise OptionError(f"{op}: expected axes that differ, got {axes} for rank {rank}")
    return result


def check_softmax(x: Shape, *, axis: Axis = -1) -> None:
    """Raise `OptionError` unless every axis lies within the rank of `x`."""
    _axes("softmax", axis, len(x))


def check_log_softmax(x: Shape, *, axis: Axis = -1) -> None:
    """Raise `OptionError` unless every axis lies within the rank of `x`."""
    _axes("log_softmax", axis, len(x))


def check_log_sumexp(x: Shape, *, axis: Axis = -1) -> None:
    """Raise `OptionError` unless every axis lies within the rank of `x`."""
    _axes("log_sumexp", axis, len(x))


def check_celu(x: Shape, *, alpha: float = 1.0) -> None:
    """Raise `OptionError` when `alpha` is zero."""
    if alpha == 0:
        raise OptionError(f"celu: expected alpha other than zero, got {alpha!r}")


def _negative_part(x: jax.Array) -> jax.Array:
    # A plain minimum would give gradient 1/2 at zero, and expm1 of the branch not taken would overflow.
    return jnp.where(x > 0, 0, x)


def celu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """Continuously differentiable ELU: `x` where x > 0, else `alpha * expm1(x / alpha)`.

    Raises `OptionError` when `alpha` is 0. Source: Barron 2017, arXiv:1704.07483; Axon.Activations.celu.
    """
    check_celu(jnp.shape(x), alpha=alpha)
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative_part(x) / alpha))


def elu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    """Exponential linear unit: `x` where x > 0, else `alpha * expm1(x)`.

    Source: Clevert et al. 2015, arXiv:1511.07289; Axon.Activations.elu.
    """
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative_part(x)))


def exp(x: jax.Array) -> jax.Array:
    """Exponential, `e^x`. Source: Axon.Activations.exp."""
    return jnp.exp(x)


@jax.custom_jvp
def _normal_cdf(x: jax.Array) -> jax.Array:
    r"""$\Phi(x)$, the distribution function of the standard normal distribution, for float32.

    $1 - \Phi(|x|) = e^{-x^2/2}\, t\, (1 + s\, p(s)) / 2$ with $t = 1 / (1 + |x| / \sqrt 8)$, $s = 1 - t$, and a
    polynomial fitted to `scipy.special.erfcx` for $|x|$ up to 13.5, relative error 5e-8 before rounding. It costs
    half of XLA's `erfc` and is closer in the left tail, down to where it vanishes.
    """
    scaled = jnp.abs(x) * math.sqrt(1 / 8)
    t = 1 / (1 + scaled)
    s = scaled * t
    polynomial = jnp.full_like(x, _CDF_COEFFICIENTS[-1])
    for coefficient in _CDF_COEFFICIENTS[-2::-1]:
        polynomial = polynomial * s + coefficient
    tail = 0.5 * jnp.exp(-0.5 * x * x) * t * (polynomial * s + 1)
    return jnp.where(x < 0, tail, 1 - tail)


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    y: jax.Array = _normal_cdf(x)
    return y, math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * x * x) * tangents[0]


def gelu(x: jax.Array, *, approximate: bool = False) -> jax.Array:
    """Gaussian error linear unit: `x / 2 * (1 + erf(x / sqrt(2)))`.

    With `approximate` as in GPT-2: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; Axon.Activations.gelu (exact only).
    """
    if not approximate and jnp.result_type(x) == jnp.float32 and jax.default_backend() == "cpu":
        y: jax.Array = x * _normal_cdf(x)
        return y
    return jax.nn.gelu(x, approximate=approximate)


def hard_sigmoid(x: jax.Array, *, alpha: float = 0.2, beta: float = 0.2) -> jax.Array:
    """Piecewise linear sigmoid: `clip(alpha * x + beta, 0, 1)`; `beta` is 0.2, not 0.5 as in other libraries.

    Source: Axon.Activations.hard_sigmoid.
    """
    return jnp.clip(alpha * x + beta, 0, 1)


def hard_silu(x: jax.Array, *, alpha: float = 0.2, beta: float = 0.2) -> jax.Array:
    """Piecewise linear SiLU: `x * hard_sigmoid(x, alpha, beta)`. Source: Axon.Activations.hard_silu."""
    return x * hard_sigmoid(x, alpha=alpha, beta=beta)


def hard_tanh(x: jax.Array) -> jax.Array:
    """Clip to [-1, 1], with gradient 1 at both bounds. Source: Axon.Activations.hard_tanh."""
    # jnp.clip halves the gradient at the bounds.
    return jnp.where(x < -1, -1, jnp.where(x > 1, 1, x))


def leaky_relu(x: jax.Array, *, alpha: float = 0.01) -> jax.Array:
    """Leaky rectifier: `x` where x > 0, else `alpha * x`. Source: Maas et al. 2013; Axon.Activations.leaky_relu."""
    return jnp.where(x > 0, x, alpha * x)


def linear(x: jax.Array) -> jax.Array:
    """The identity. Source: Axon.Activations.linear."""
    return jnp.asarray(x)


def log_sigmoid(x: jax.Array) -> jax.Array:
    """Logarithm of the sigmoid: `-softplus(-x)`. Source: Axon.Activations.log_sigmoid."""
    return -softplus(-x)


def _widely(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The function's value computed in float32 at least, in x's dtype where that is a float."""
    x = jnp.asarray(x)
    y = function(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else y


def log_softmax(x: jax.Array, *, axis: Axis = -1) -> jax.Array:
    """Logarithm of softmax: `x - max - log(sum(e^(x - max)))` along `axis` (one or several).

    Raises `OptionError` when an axis lies outside the rank. Source: Axon.Activations.log_softmax.
    """
    return _widely(partial(jax.nn.log_softmax, axis=_axes("log_softmax", axis, jnp.ndim(x))), x)


def log_sumexp(x: jax.Array, *, axis: Axis = -1) -> jax.Array:
    """`log(sum(e^x))` along `axis` (one or several), which stays with size 1.

    Raises `OptionError` when an axis lies outside the rank. Source: Axon.Activations.log_sumexp.
    """
    return _widely(partial(logsumexp, axis=_axes("log_sumexp", axis, jnp.ndim(x)), keepdims=True), x)


def mish(x: jax.Array) -> jax.Array:
    """`x * tanh(softplus(x))`. Source: Misra 2019, arXiv:1908.08681; Axon.Activations.mish."""
    return x * jnp.tanh(softplus(x))


def relu(x: jax.Array) -> jax.Array:
    """Rectifier, `max(x, 0)`, with gradient 0 at 0. Source: Axon.Activations.relu."""
    return jax.nn.relu(x)


def relu6(x: jax.Array) -> jax.Array:
    """Rectifier capped at 6: `min(max(x, 0), 6)`. Source: Axon.Activations.relu6."""
    return jnp.minimum(jnp.maximum(x, 0), 6)


def selu(x: jax.Array, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> jax.Array:
    """Scaled ELU: `gamma * elu(x, alpha)`. Source: Klambauer et al. 2017, arXiv:1706.02515; Axon.Activations.selu."""
    return gamma * elu(x, alpha=alpha)


def sigmoid(x: jax.Array) -> jax.Array:
    """Logistic function, `1 / (1 + e^-x)`. Source: Axon.Activations.sigmoid."""
    return expit(x)


def silu(x: jax.Array) -> jax.Array:
    """`x * sigmoid(x)`. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; Axon.Activations.silu."""
    return x * expit(x)


def softmax(x: jax.Array, *, axis: Axis = -1) -> jax.Array:
    """`e^(x - max) / sum(e^(x - max))` along `axis` (one or several); the maximum carries no gradient.

    Raises `OptionError` when an axis lies outside the rank. Source: Axon.Activations.softmax.
    """
    return _widely(partial(jax.nn.softmax, axis=_axes("softmax", axis, jnp.ndim(x))), x)


def softplus(x: jax.Array) -> jax.Array:
    """`log(1 + e^x)`, computed as `max(x, 0) + log1p(e^-|x|)`, with gradient sigmoid(x) at 0 too.

    Source: Axon.Activations.softplus.
    """
    return jnp.logaddexp(x, 0)


def softsign(x: jax.Array) -> jax.Array:
    """`x / (1 + |x|)`. Source: Axon.Activations.softsign."""
    return x / (1 + jnp.abs(x))


def tanh(x: jax.Array) -> jax.Array:
    """Hyperbolic tangent. Source: Axon.Activations.tanh."""
    return jnp.tanh(x)


def check_swiglu(x: Shape, *, axis: int = -1) -> None:
    """Raise `ShapeError` when the axis has an odd size, `OptionError` when it lies outside the rank."""
    size = x[normalize_axis("swiglu", axis, len(x))]
    if size % 2:
        raise ShapeError(f"swiglu: expected an even size of axis {axis}, got {size} in shape {x}")


def swiglu(x: jax.Array, *, axis: int = -1) -> jax.Array:
    """One half of an axis gates the other: `silu(a) * b` of `a, b = split(x)`; the axis has half its size then.

    It is none of `ACTIVATIONS`, which keep the size. Raises as `check_swiglu`.
    Source: Shazeer 2020, arXiv:2002.05202; Axon 0.9 swiglu.
    """
    check_swiglu(jnp.shape(x), axis=axis)
    a, b = jnp.split(x, 2, axis=axis)
    return silu(a) * b


ACTIVATIONS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            celu,
            elu,
            exp,
            gelu,
            hard_sigmoid,
            hard_silu,
            hard_tanh,
            leaky_relu,
            linear,
            log_sigmoid,
            log_softmax,
            log_sumexp,
            mish,
            relu,
            relu6,
            selu,
            sigmoid,
            silu,
            softmax,
            softplus,
            softsign,
            tanh,
        )
    }
)
"""Every activation by its name."""
