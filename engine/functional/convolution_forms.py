"""How a convolution is written for XLA: its own operation, or one of four forms that the CPU is faster at.

Measured with JAX 0.10.2 on the CPU. There XLA's convolution keeps to one core below 128 units, takes 25 times as long
as shifted products where every channel stands for itself, and runs over all the zeros for the kernel's gradient of a
transposed one. All forms give the same values and derivatives up to rounding; every other case, and every accelerator,
gets XLA's own.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from engine.functional.options import Channels
from engine.functional.windows import dilated
from engine.shapes import Shape

Pads = tuple[tuple[int, int], ...]
Tangent = jax.Array | SymbolicZero

# Windows up to this size are unrolled, for compile time's sake.
_UNROLLED_WINDOW = 32
# Where images side by side paid: enough channels for a product of matrices, few enough units, enough rows in a batch.
_WIDE_CHANNELS = range(32, 128)
_WIDE_SIZES = range(5, 65)
_WIDE_BATCH = 8
# So many units fill a vector register.
_SINGLE_UNITS = 8


class Geometry(NamedTuple):
    """Everything about a convolution but its arrays; one entry per spatial axis."""

    strides: Shape
    padding: Pads
    input_dilation: Shape
    kernel_dilation: Shape
    channels: Channels
    feature_group_size: int
    batch_group_size: int


Product = Callable[[jax.Array, jax.Array, Geometry], jax.Array]


def convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The convolution of arrays of one dtype, checked before, without bias."""
    form = _choose(x.shape, kernel.shape, x.dtype, geometry)
    if form is None:
        return _plain(x, kernel, geometry)
    y: jax.Array = _formed(x, kernel, geometry, form)
    return y


def _plain(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    axes = tuple(range(x.ndim))
    if geometry.channels == "last":
        image, weights = (0, axes[-1], *axes[1:-1]), (axes[-1], axes[-2], *axes[:-2])
    else:
        image = weights = axes
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, weights, image),
        feature_group_count=geometry.feature_group_size,
        batch_group_count=geometry.batch_group_size,
    )


# The choice


def _choose(x: Shape, kernel: Shape, dtype: jnp.dtype, geometry: Geometry) -> str | None:
    """The name of the form that is faster here, or None for XLA's own."""
    if jax.default_backend() != "cpu" or dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return None
    window, channels, units = kernel[:-2], x[-1], kernel[-1]
    small = geometry.channels == "last" and math.prod(window) <= _UNROLLED_WINDOW and geometry.batch_group_size == 1
    if not small or not all(isinstance(size, int) for size in x):
        return None
    if set(geometry.input_dilation) != {1}:
        few = math.prod(geometry.input_dilation) <= _UNROLLED_WINDOW
        return "phases" if few and set(geometry.strides) == {1} else None
    if channels == units == geometry.feature_group_size:
        return "depthwise"
    if channels == 1 and units >= _SINGLE_UNITS:
        return "single"
    return "wide" if dtype == jnp.float32 and _goes_wide(x, units, window, geometry) else None


def _goes_wide(x: Shape, units: int, window: Shape, geometry: Geometry) -> bool:
    batch, *sizes, channels = x
    fits = all(max(pair) < size for pair, size in zip(geometry.padding, window, strict=True))
    simple = set(geometry.strides) | set(geometry.kernel_dilation) | {geometry.feature_group_size} == {1}
    enough = channels in _WIDE_CHANNELS and units in _WIDE_CHANNELS and batch >= _WIDE_BATCH
    return len(sizes) == 2 and sizes[1] in _WIDE_SIZES and max(window) > 1 and fits and simple and enough


# The forms


def _elements(x: jax.Array, window: Shape, geometry: Geometry) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each place in the window, and what all windows have there, `[batch, *out, channels]`."""
    padded = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    # Otherwise the CPU decides at every element of every slice whether it is padding.
    padded = lax.optimization_barrier(padded)  # type: ignore[no-untyped-call]
    extents = [dilated(size, hole) for size, hole in zip(window, geometry.kernel_dilation, strict=True)]
    lasts = [size - extent for size, extent in zip(padded.shape[1:-1], extents, strict=True)]
    for place in itertools.product(*map(range, window)):
        starts = [at * hole for at, hole in zip(place, geometry.kernel_dilation, strict=True)]
        ends = [start + last + 1 for start, last in zip(starts, lasts, strict=True)]
        limits = (x.shape[0], *ends, x.shape[-1])
        yield place, lax.slice(padded, (0, *starts, 0), limits, (1, *geometry.strides, 1))


def _shifted(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Every channel by itself, or one alone: the sum of shifted inputs times one number per unit, in one loop."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    terms = [
        element.astype(wide) * kernel[place][0].astype(wide)
        for place, element in _elements(x, kernel.shape[:-2], geometry)
    ]
    return functools.reduce(operator.add, terms).astype(x.dtype)


def _shifted_apart(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`_shifted` as a loop of its own: a sum behind it would take in the terms, each from a slice in memory.

    XLA drops a barrier too early for that; a select, which changes nothing, it keeps apart.
    """
    y = _shifted(x, kernel, geometry)
    return jnp.where(jnp.isnan(y), jnp.nan, y)


def _side_by_side(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The images of a batch in one row, with zeros between: XLA spreads a wide image over the cores."""
    batch, height, width, channels = x.shape
    rows, columns = geometry.padding
    gap = max(columns)
    lined = jnp.pad(x, ((0, 0), (0, 0), (0, gap), (0, 0))).transpose(1, 0, 2, 3)
    lined = lined.reshape(1, height, batch * (width + gap), channels)
    after = kernel.shape[1] - 1 - columns[0]
    y = _plain(lined, kernel, geometry._replace(padding=(rows, (columns[0], after))))
    split = y.reshape(y.shape[1], batch, width + gap, y.shape[3])
    return split[:, :, : width + sum(columns) - kernel.shape[1] + 1].transpose(1, 0, 2, 3)


def _gathered(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """One channel, as a product of matrices: the kernel's gradient sums over one axis, without a transposition."""
    found = [element[..., 0] for _, element in _elements(x, kernel.shape[:-2], geometry)]
    stacked = jnp.stack([element.reshape(-1) for element in found])
    y = lax.dot_general(stacked, kernel.reshape(len(found), kernel.shape[-1]), (((0,), (0,)), ((), ())))
    return y.reshape(*found[0].shape, kernel.shape[-1])


class _Phase(NamedTuple):
    """What the outputs `phase, phase + stride, ...` of one axis see: taps of the kernel, and x padded (or cut)."""

    taps: slice
    pads: tuple[int, int]
    dilation: int


def _phases(size: int, window: int, pads: tuple[int, int], stride: int, hole: int) -> tuple[int, list[_Phase | None]]:
    """The size of the output along one axis, and its phases; None for one that sees only zeros."""
    out = dilated(size, stride) + sum(pads) - dilated(window, hole) + 1
    phases: list[_Phase | None] = []
    for phase in range(stride):
        taps = [tap for tap in range(window) if (phase + tap * hole - pads[0]) % stride == 0]
        if not taps:
            phases.append(None)
            continue
        step = taps[1] - taps[0] if len(taps) > 1 else stride
        before = (pads[0] - phase - taps[0] * hole) // stride
        reach = (len(taps) - 1) * step * hole // stride
        after = -(-out // stride) + reach - size - before
        phases.append(_Phase(slice(taps[0], taps[-1] + 1, step), (before, after), step * hole // stride))
    return out, phases


def _phase_product(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, phases: Sequence[_Phase | None], product: Product
) -> jax.Array:
    """The outputs of one phase per axis."""
    whole = slice(None)
    ones = (1,) * len(phases)
    seen = [phase for phase in phases if phase is not None]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*phase.pads, 0) for phase in seen), (0, 0, 0)])
    plain = geometry._replace(
        padding=((0, 0),) * len(ones), input_dilation=ones, kernel_dilation=tuple(phase.dilation for phase in seen)
    )
    share = kernel[(*(phase.taps for phase in seen), whole, whole)]
    return product(padded, share, plain)


def _tapped(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of one product of two matrices per place in the window, for the sake of the kernel's gradient."""
    if geometry.feature_group_size > 1:
        return _plain(x, kernel, geometry)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    terms = []
    for place, element in _elements(x, kernel.shape[:-2], geometry):
        rows = element.reshape(math.prod(element.shape[:-1]), element.shape[-1])
        terms.append(jnp.matmul(rows, kernel[place], preferred_element_type=wide))
    total = functools.reduce(operator.add, terms).astype(x.dtype)
    return total.reshape(*element.shape[:-1], kernel.shape[-1])


def _by_phase(x: jax.Array, kernel: jax.Array, geometry: Geometry, product: Product) -> jax.Array:
    """A transposed convolution as a plain one per phase of its stride, which sees its share of the kernel.

    XLA's gradient of the kernel runs over the zeros between the elements of x.
    """
    strides, rank = geometry.input_dilation, x.ndim - 2
    per_axis = list(map(_phases, x.shape[1:-1], kernel.shape[:-2], geometry.padding, strides, geometry.kernel_dilation))
    sizes = [out for out, _ in per_axis]
    shape = (x.shape[0], *(-(-out // stride) for out, stride in zip(sizes, strides, strict=True)), kernel.shape[-1])
    parts = [
        jnp.zeros(shape, x.dtype) if None in phases else _phase_product(x, kernel, geometry, phases, product)
        for phases in itertools.product(*(phases for _, phases in per_axis))
    ]
    # From [*phase, batch, *part, units] to [batch, (part, phase), ..., units].
    stacked = jnp.stack(parts).reshape(*strides, *shape)
    order = [rank, *(axis for place in range(rank) for axis in (rank + 1 + place, place)), 2 * rank + 1]
    full = [part * stride for part, stride in zip(shape[1:-1], strides, strict=True)]
    y = stacked.transpose(order).reshape(shape[0], *full, shape[-1])
    return y[(slice(None), *map(slice, sizes))]


class Form(NamedTuple):
    """One way to write a convolution, and its derivatives."""

    value: Product
    of_x: Product
    of_kernel: Product


_FORMS = {
    "depthwise": Form(_shifted_apart, _shifted, _plain),
    "single": Form(_shifted_apart, _plain, _gathered),
    "phases": Form(partial(_by_phase, product=_plain), _plain, partial(_by_phase, product=_tapped)),
    "wide": Form(_side_by_side, _side_by_side, _plain),
}


# The derivatives


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _formed(x: jax.Array, kernel: jax.Array, geometry: Geometry, form: str) -> jax.Array:
    return _FORMS[form].value(x, kernel, geometry)


def _formed_jvp(
    geometry: Geometry, form: str, primals: tuple[jax.Array, jax.Array], tangents: tuple[Tangent, Tangent]
) -> tuple[jax.Array, jax.Array]:
    """Linear in each tangent, and written so that its transpose is fast."""
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    parts = []
    if not isinstance(x_dot, SymbolicZero):
        parts.append(_FORMS[form].of_x(x_dot, kernel, geometry))
    if not isinstance(kernel_dot, SymbolicZero):
        parts.append(_FORMS[form].of_kernel(x, kernel_dot, geometry))
    y: jax.Array = _formed(x, kernel, geometry, form)
    return y, functools.reduce(operator.add, parts)


_formed.defjvp(_formed_jvp, symbolic_zeros=True)
