r"""Normalization: $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, over different axes.

Statistics are taken in float32 at least, variances are biased (divided by n). The result has the dtype of `x`
(float32 for integers). Source: Axon.Layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional.linear import spread
from engine.functional.options import MODES, Mode, as_integer, require_choice, require_number
from engine.functional.rows import Rows, check_rows, row_mean, without_padding
from engine.functional.stateful import StatefulOutput
from engine.shapes import Shape, normalize_axis, require_rank

Average = Callable[[jax.Array], jax.Array]


def _check_norm(
    op: str,
    x: Shape,
    params: dict[str, Shape],
    *,
    channel_index: int,
    epsilon: float,
    at_least: int = 2,
) -> int:
    """Check a normalization's shapes and options; the channel axis, not negative."""
    require_rank(op, x, at_least=at_least)
    require_number(op, "epsilon", epsilon, at_least=0)
    axis = normalize_axis(op, channel_index, len(x))
    for name, shape in params.items():
        if shape != (x[axis],):
            raise ShapeError(f"{op}: expected {name} of shape ({x[axis]},) for x of shape {x}, got {shape}")
    return axis


def _check_mode(op: str, mode: Mode, momentum: float) -> None:
    require_choice(op, "mode", mode, MODES)
    require_number(op, "momentum", momentum, at_least=0, at_most=1)


def _check_rows(op: str, rows: Rows, x: jax.Array, axis: int) -> None:
    if rows is None:
        return
    if axis == 0:
        raise OptionError(f"{op}: expected a channel_index behind the batch axis with rows, got axis 0")
    check_rows(op, jnp.shape(rows), x.shape)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moments(x: jax.Array, axes: Sequence[int], rows: Rows = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over `axes`, which stay with size 1."""
    mean = row_mean(x, rows, axes=axes, keepdims=True)
    return mean, row_mean(jnp.square(x - mean), rows, axes=axes, keepdims=True)


def _along(x: jax.Array, parameter: jax.Array, axis: int) -> jax.Array:
    """A parameter `[C]` shaped to broadcast along `axis` of `x`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.astype(x.dtype).reshape(shape)


def _float_dtype(x: jax.Array) -> Any:
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32


def _normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, gamma: jax.Array, beta: jax.Array, axis: int, epsilon: float
) -> jax.Array:
    scale = lax.rsqrt(var + epsilon) * _along(x, gamma, axis)
    return (x - mean) * scale + _along(x, beta, axis)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _standardize(x: jax.Array, gamma: jax.Array, beta: jax.Array, average: Average, epsilon: float) -> jax.Array:
    r"""`_normalize` by x's own statistics; `average` takes means that broadcast, as gamma and beta do.

    Its derivative is written out because it reads x and the cotangent less often than that of the parts:
    $\dot y = \gamma (\dot x - E[\dot x] - n E[n \dot x]) / \sigma + n \dot\gamma + \dot\beta$ with
    $n = (x - \mu) / \sigma$.
    """
    mean = average(x)
    scale = lax.rsqrt(average(jnp.square(x - mean)) + epsilon)
    return (x - mean) * (scale * gamma) + beta


@_standardize.defjvp
def _standardize_jvp(
    average: Average, epsilon: float, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (x, gamma, beta), (x_dot, gamma_dot, beta_dot) = primals, tangents
    mean = average(x)
    scale = lax.rsqrt(average(jnp.square(x - mean)) + epsilon)
    normal = (x - mean) * scale
    spread = x_dot - average(x_dot) - normal * average(normal * x_dot)
    return normal * gamma + beta, (scale * gamma) * spread + normal * gamma_dot + beta_dot


def _running(old: jax.Array, batch: jax.Array, momentum: float, rows: Rows) -> jax.Array:
    """`momentum * old + (1 - momentum) * batch`, with the shape and dtype of `old`; `old` when all rows are padding."""
    new = (momentum * _wide(old) + (1 - momentum) * batch.reshape(old.shape)).astype(old.dtype)
    return lax.stop_gradient(new if rows is None else jnp.where(jnp.any(rows > 0), new, old))


def _stateful_norm(
    x: jax.Array,
    params: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    axes: Sequence[int],
    axis: int,
    *,
    epsilon: float,
    momentum: float,
    mode: Mode,
    rows: Rows,
) -> jax.Array | StatefulOutput:
    gamma, beta, mean, var = params
    wide = _wide(x)
    if mode == "inference":
        y = _normalize(wide, _along(wide, mean, axis), _along(wide, var, axis), gamma, beta, axis, epsilon)
        return y.astype(_float_dtype(x))
    wide = without_padding(wide, rows, 0)
    across, samples = (rows, None) if 0 in axes else (None, rows)
    batch_mean, batch_var = _moments(wide, axes, across)
    if rows is None:
        average = partial(jnp.mean, axis=tuple(axes), keepdims=True)
        y = _standardize(wide, _along(wide, gamma, axis), _along(wide, beta, axis), average, epsilon)
    else:
        y = without_padding(_normalize(wide, batch_mean, batch_var, gamma, beta, axis, epsilon), rows, 0)
    over = tuple(other for other in range(x.ndim) if other != axis)
    state = {
        "mean": _running(mean, row_mean(batch_mean, samples, axes=over), momentum, rows),
        "var": _running(var, row_mean(batch_var, samples, axes=over), momentum, rows),
    }
    return StatefulOutput(y.astype(_float_dtype(x)), state)


def check_batch_norm(
    x: Shape,
    gamma: Shape,
    beta: Shape,
    mean: Shape,
    var: Shape,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    mode: Mode = "inference",
) -> None:
    """The shape rule of `batch_norm`."""
    params = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    _check_norm("batch_norm", x, params, channel_index=channel_index, epsilon=epsilon)
    _check_mode("batch_norm", mode, momentum)


def batch_norm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    mode: Mode = "inference",
    rows: Rows = None,
) -> jax.Array | StatefulOutput:
    """Normalization per channel: by the batch's statistics in `train` mode, by the running ones in `inference`.

    Args:
        x: rank 2 or more.
        gamma, beta: scale and shift, `[C]`.
        mean, var: running statistics (state), `[C]`.
        channel_index: the channel axis, of size C.
        epsilon: added to the variance.
        momentum: weight of the OLD running statistics: `new = momentum * old + (1 - momentum) * batch`.
        mode: `train` or `inference`.
        rows: weights `[batch]` of the rows in `train` mode, 0 for padding (see `engine.functional.rows`); None means
            all ones. Padding gives zeros, and a batch of nothing else leaves the running statistics as they are.
    Returns: an array of x's shape; in `train` mode a `StatefulOutput` with the new `mean` and `var`, each of the
        shape it had.
    Raises:
        ShapeError: a parameter is not of shape `[C]`, rows not of shape `[batch]`, or rank below 2.
        OptionError: an option outside its domain.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; Axon.Layers.batch_norm.
    """
    check_batch_norm(
        *map(jnp.shape, (x, gamma, beta, mean, var)),
        channel_index=channel_index,
        epsilon=epsilon,
        momentum=momentum,
        mode=mode,
    )
    axis = channel_index % x.ndim
    axes = [other for other in range(x.ndim) if other != axis]
    params = (gamma, beta, mean, var)
    _check_rows("batch_norm", rows, x, axis)
    return _stateful_norm(x, params, axes, axis, epsilon=epsilon, momentum=momentum, mode=mode, rows=rows)


def check_instance_norm(
    x: Shape,
    gamma: Shape,
    beta: Shape,
    mean: Shape,
    var: Shape,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    mode: Mode = "inference",
) -> None:
    """The shape rule of `instance_norm`."""
    params = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    axis = _check_norm("instance_norm", x, params, channel_index=channel_index, epsilon=epsilon, at_least=3)
    if axis == 0:
        raise OptionError(f"instance_norm: expected a channel_index behind the batch axis, got {channel_index}")
    _check_mode("instance_norm", mode, momentum)


def instance_norm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    mode: Mode = "inference",
    rows: Rows = None,
) -> jax.Array | StatefulOutput:
    """Normalization per sample and channel over the spatial axes; in `inference` by the running statistics.

    The running statistics `[C]` follow the mean of the samples' statistics. Other arguments, result and errors as in
    `batch_norm`, with x of rank 3 or more.
    Source: Ulyanov et al. 2016, arXiv:1607.08022; Axon.Layers.instance_norm (which gives its state a batch axis).
    """
    check_instance_norm(
        *map(jnp.shape, (x, gamma, beta, mean, var)),
        channel_index=channel_index,
        epsilon=epsilon,
        momentum=momentum,
        mode=mode,
    )
    axis = channel_index % x.ndim
    axes = [other for other in range(1, x.ndim) if other != axis]
    params = (gamma, beta, mean, var)
    _check_rows("instance_norm", rows, x, axis)
    return _stateful_norm(x, params, axes, axis, epsilon=epsilon, momentum=momentum, mode=mode, rows=rows)


def check_layer_norm(x: Shape, gamma: Shape, beta: Shape, *, channel_index: int = -1, epsilon: float = 1e-5) -> None:
    """The shape rule of `layer_norm`."""
    _check_norm("layer_norm", x, {"gamma": gamma, "beta": beta}, channel_index=channel_index, epsilon=epsilon)


def layer_norm(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, *, channel_index: int = -1, epsilon: float = 1e-5
) -> jax.Array:
    """Normalization along the channel axis alone, the same in both modes.

    Args:
        x: rank 2 or more.
        gamma, beta: scale and shift, `[C]`.
        channel_index: the normalized axis, of size C.
        epsilon: added to the variance.
    Returns: an array of x's shape.
    Raises:
        ShapeError: a parameter is not of shape `[C]`, or rank below 2.
        OptionError: an option outside its domain.
    Source: Ba et al. 2016, arXiv:1607.06450; Axon.Layers.layer_norm.
    """
    check_layer_norm(*map(jnp.shape, (x, gamma, beta)), channel_index=channel_index, epsilon=epsilon)
    axis = channel_index % x.ndim
    wide = _wide(x)
    average = partial(jnp.mean, axis=axis, keepdims=True)
    y = _standardize(wide, _along(wide, gamma, axis), _along(wide, beta, axis), average, epsilon)
    return y.astype(_float_dtype(x))


def _group_mean(x: jax.Array, groups: int, axis: int) -> jax.Array:
    """Mean per sample and group, `[batch, 1, ..., C, ...]`, of all channels first: that reads x in its own order."""
    others = tuple(other for other in range(1, x.ndim) if other != axis)
    size = x.shape[axis] // groups
    means = jnp.mean(jnp.mean(x, axis=others).reshape(x.shape[0], groups, size), axis=2)
    shape = [n if other in (0, axis) else 1 for other, n in enumerate(x.shape)]
    return jnp.repeat(means, size, axis=1).reshape(shape)


def check_group_norm(
    x: Shape,
    gamma: Shape,
    beta: Shape,
    *,
    num_groups: int,
    channel_index: int = -1,
    epsilon: float = 1e-5,
) -> None:
    """The shape rule of `group_norm`."""
    params = {"gamma": gamma, "beta": beta}
    axis = _check_norm("group_norm", x, params, channel_index=channel_index, epsilon=epsilon)
    groups = as_integer("group_norm", "num_groups", num_groups, at_least=1)
    if axis == 0:
        raise OptionError(f"group_norm: expected a channel_index behind the batch axis, got {channel_index}")
    if x[axis] % groups:
        raise ShapeError(f"group_norm: expected channels divisible by num_groups {groups}, got shape {x}")


def group_norm(
    x: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    *,
    num_groups: int,
    channel_index: int = -1,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Normalization per sample over groups of channels and all spatial axes.

    Args:
        x: rank 2 or more.
        gamma, beta: scale and shift, `[C]`.
        num_groups: how many groups the channels are split into; divides C.
        channel_index: the channel axis, of size C.
        epsilon: added to the variance.
    Returns: an array of x's shape.
    Raises:
        ShapeError: a parameter is not of shape `[C]`, C is not divisible, or rank below 2.
        OptionError: an option outside its domain.
    Source: Wu and He 2018, arXiv:1803.08494; Axon.Layers.group_norm.
    """
    check_group_norm(
        *map(jnp.shape, (x, gamma, beta)),
        num_groups=num_groups,
        channel_index=channel_index,
        epsilon=epsilon,
    )
    axis = channel_index % x.ndim
    wide = _wide(x)
    average = partial(_group_mean, groups=num_groups, axis=axis)
    y = _standardize(wide, _along(wide, gamma, axis), _along(wide, beta, axis), average, epsilon)
    return y.astype(_float_dtype(x))


def check_rms_norm(
    x: Shape,
    gamma: Shape,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-6,
    shift: float = 0.0,
    upcast: Literal["normalization", "all"] = "normalization",
) -> None:
    """The shape rule of `rms_norm`."""
    _check_norm("rms_norm", x, {"gamma": gamma}, channel_index=channel_index, epsilon=epsilon)
    require_number("rms_norm", "shift", shift)
    require_choice("rms_norm", "upcast", upcast, ("normalization", "all"))


def rms_norm(
    x: jax.Array,
    gamma: jax.Array,
    *,
    channel_index: int = -1,
    epsilon: float = 1e-6,
    shift: float = 0.0,
    upcast: Literal["normalization", "all"] = "normalization",
) -> jax.Array:
    r"""Root-mean-square normalization: $y = x / \sqrt{mean(x^2) + \epsilon} \cdot (shift + \gamma)$.

    Args:
        x: rank 2 or more.
        gamma: scale, `[C]`.
        channel_index: the normalized axis, of size C.
        epsilon: added to the mean square.
        shift: added to gamma (1 where a checkpoint stores scales around zero).
        upcast: `normalization` casts the normalized value back to x's dtype before scaling; `all` scales in float32,
            and gives it.
    Returns: an array of x's shape.
    Raises:
        ShapeError: gamma is not of shape `[C]`, or rank below 2.
        OptionError: an option outside its domain.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467; Axon.Layers.rms_norm.
    """
    check_rms_norm(
        *map(jnp.shape, (x, gamma)),
        channel_index=channel_index,
        epsilon=epsilon,
        shift=shift,
        upcast=upcast,
    )
    axis = channel_index % x.ndim
    wide = _wide(x)
    normal = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=axis, keepdims=True) + epsilon)
    if upcast == "normalization":
        normal = normal.astype(_float_dtype(x))
    return normal * (shift + spread(_along(normal, gamma, axis), normal.shape))
