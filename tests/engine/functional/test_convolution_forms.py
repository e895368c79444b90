"""The CPU's forms of a convolution: values and derivatives are those of XLA's own operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.functional import convolution_forms as forms
from engine.functional.convolution_forms import Geometry
from engine.shapes import Shape
from tests.engine.functional.support import values


def geometry(rank: int, **options: Any) -> Geometry:
    """Stride 1, no padding, no dilation, channels last."""
    ones = (1,) * rank
    defaults = Geometry(ones, ((0, 0),) * rank, ones, ones, "last", 1, 1)
    return defaults._replace(**options)


SAME = ((1, 1), (1, 1))
CASES: list[tuple[str, Shape, Shape, Geometry]] = [
    ("single", (2, 7, 6, 1), (3, 3, 1, 8), geometry(2, padding=SAME)),
    ("single", (2, 9, 8, 1), (3, 2, 1, 8), geometry(2, strides=(2, 3), padding=((0, 4), (2, 0)))),
    ("single", (3, 12, 1), (3, 1, 9), geometry(1, kernel_dilation=(2,))),
    ("single", (2, 4, 5, 4, 1), (2, 2, 2, 1, 8), geometry(3, strides=(1, 2, 1))),
    ("single", (0, 5, 5, 1), (3, 3, 1, 8), geometry(2)),
    ("depthwise", (2, 7, 6, 5), (3, 3, 1, 5), geometry(2, padding=SAME, feature_group_size=5)),
    (
        "depthwise",
        (2, 9, 8, 3),
        (2, 3, 1, 3),
        geometry(2, strides=(2, 3), padding=((0, 4), (2, 0)), feature_group_size=3),
    ),
    ("depthwise", (2, 12, 4), (3, 1, 4), geometry(1, kernel_dilation=(3,), feature_group_size=4)),
    ("depthwise", (0, 5, 5, 2), (3, 3, 1, 2), geometry(2, feature_group_size=2)),
    ("phases", (2, 5, 6, 3), (3, 3, 3, 2), geometry(2, input_dilation=(2, 2), padding=((2, 1), (1, 2)))),
    ("phases", (2, 5, 4, 3), (2, 4, 3, 2), geometry(2, input_dilation=(3, 2), padding=((1, 2), (3, 3)))),
    ("phases", (2, 6, 5, 2), (1, 3, 2, 2), geometry(2, input_dilation=(4, 1), padding=((0, 3), (0, 2)))),
    ("phases", (2, 7, 3), (3, 3, 2), geometry(1, input_dilation=(2,), kernel_dilation=(2,), padding=((5, 4),))),
    ("phases", (2, 7, 3), (4, 3, 2), geometry(1, input_dilation=(6,), kernel_dilation=(4,), padding=((20, 1),))),
    ("phases", (2, 4, 4, 4), (3, 3, 2, 6), geometry(2, input_dilation=(2, 2), feature_group_size=2, padding=SAME)),
    ("phases", (2, 3, 2, 3, 2), (2, 3, 2, 2, 2), geometry(3, input_dilation=(2, 1, 3))),
    ("phases", (0, 5, 5, 2), (3, 3, 2, 3), geometry(2, input_dilation=(2, 2))),
    ("wide", (8, 5, 7, 32), (3, 3, 32, 33), geometry(2, padding=SAME)),
    ("wide", (9, 6, 5, 33), (2, 4, 33, 32), geometry(2, padding=((0, 1), (3, 0)))),
    ("wide", (8, 4, 6, 32), (1, 5, 32, 32), geometry(2, padding=((0, 0), (0, 4)))),
    ("wide", (8, 4, 6, 32), (3, 2, 32, 32), geometry(2)),
]


def problem(x: Shape, kernel: Shape, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Fixed numbers."""
    return jnp.asarray(values(*x), dtype), jnp.asarray(values(*kernel, seed=1), dtype)


def outcomes(convolve: Callable[..., jax.Array], *arrays: jax.Array) -> list[Any]:
    """Value, tangent and both gradients, in float32."""

    @jax.jit
    def all_of(x: jax.Array, kernel: jax.Array) -> list[jax.Array]:
        y, tangent = jax.jvp(convolve, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))
        cotangent = jnp.asarray(values(*y.shape, seed=2), y.dtype)
        return [y, tangent, *jax.vjp(convolve, x, kernel)[1](cotangent)]

    found = all_of(*arrays)
    assert {array.dtype for array in found} == {arrays[0].dtype}
    return [np.asarray(array, np.float32) for array in found]


@pytest.mark.parametrize(("form", "x", "kernel", "geometry"), CASES)
def test_form_gives_values_and_derivatives_of_xla(form: str, x: Shape, kernel: Shape, geometry: Geometry) -> None:
    """Value, tangent and gradients agree up to the order of sums."""
    arrays = problem(x, kernel)
    assert forms._choose(x, kernel, arrays[0].dtype, geometry) == form
    expected = outcomes(lambda x, kernel: forms._plain(x, kernel, geometry), *arrays)
    for got, want in zip(outcomes(lambda *a: forms.convolve(*a, geometry), *arrays), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[9]])
def test_half_precision_is_as_exact_as_xla(case: tuple[str, Shape, Shape, Geometry], dtype: Any) -> None:
    """Against float32 the value is off by no more than one rounding, the gradients by a few."""
    form, *shapes, geometry = case
    arrays = problem(*shapes, dtype)
    assert forms._choose(*shapes, arrays[0].dtype, geometry) == form
    exact = outcomes(lambda *a: forms._plain(*a, geometry), *(array.astype(jnp.float32) for array in arrays))
    step = float(jnp.finfo(dtype).eps)
    found = outcomes(lambda *a: forms.convolve(*a, geometry), *arrays)
    for got, want, steps in zip(found, exact, (0.51, 4, 4, 4), strict=True):
        np.testing.assert_allclose(got, want, rtol=steps * step, atol=steps * step * np.abs(want).max())


@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[10], CASES[-2]])
def test_form_can_be_mapped_and_differentiated_twice(case: tuple[str, Shape, Shape, Geometry]) -> None:
    """Gradients per example, and the product of a second derivative with a vector."""
    _, *shapes, geometry = case
    x, kernel = problem(*shapes)

    def loss(convolve: Callable[..., jax.Array], kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(convolve(x, kernel, geometry)))

    def outcome(convolve: Callable[..., jax.Array]) -> list[jax.Array]:
        gradient = jax.grad(lambda *a: loss(convolve, *a))
        each = jax.vmap(gradient, (None, 0))(kernel, jnp.stack([x, 2 * x]))
        second = jax.grad(lambda kernel: jnp.vdot(gradient(kernel, x), jnp.cos(kernel)))(kernel)
        return [each, second]

    for got, want in zip(outcome(forms.convolve), outcome(forms._plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((8, 6, 6, 32), (3, 3, 32, 32), {"strides": (2, 2)}),
        ((8, 6, 6, 32), (3, 3, 32, 32), {"padding": ((3, 0), (0, 0))}),
        ((8, 6, 6, 32), (3, 3, 32, 128), {}),
        ((8, 6, 6, 32), (1, 1, 32, 32), {}),
        ((8, 32, 6, 6), (32, 32, 3, 3), {"channels": "first"}),
        ((2, 6, 6, 4), (3, 3, 2, 4), {"feature_group_size": 2}),
        ((2, 6, 6, 1), (3, 3, 1, 8), {"input_dilation": (2, 1), "strides": (1, 2)}),
        ((2, 6, 6, 1), (3, 3, 1, 8), {"batch_group_size": 2}),
        ((2, 9, 9, 1), (6, 6, 1, 8), {}),
    ],
)
def test_other_convolutions_are_xlas_own(x: Shape, kernel: Shape, options: dict[str, Any]) -> None:
    """Where no form was measured to be faster, there is one operation and nothing else."""
    arrays = problem(x, kernel)
    program = jax.make_jaxpr(lambda *a: forms.convolve(*a, geometry(2, **options)))(*arrays)
    assert [equation.primitive for equation in program.jaxpr.eqns] == [lax.conv_general_dilated_p]


def test_accelerators_and_open_batches_get_xlas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms are for the CPU, and for a batch that is known."""
    x, kernel = (8, 6, 6, 32), (3, 3, 32, 32)
    batch = jax.export.symbolic_shape("b")[0]
    assert forms._choose((batch, *x[1:]), kernel, jnp.dtype("float32"), geometry(2)) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert forms._choose(x, kernel, jnp.dtype("float32"), geometry(2)) is None
