"""Convolution: output sizes against jax.lax, layouts, groups, derivatives, errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional import (
    check_conv,
    check_conv_transpose,
    check_depthwise_conv,
    check_separable_conv2d,
    conv,
    conv_transpose,
    depthwise_conv,
    separable_conv2d,
    separable_conv3d,
)
from engine.shapes import Shape
from tests.effort import examples
from tests.engine.functional.support import assert_gradient, values

LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def shape_of(x: Shape, kernel: Shape, **options: Any) -> Shape:
    """The output's shape, without computing it."""
    arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, kernel))
    return jax.eval_shape(partial(conv, **options), *arrays).shape


@st.composite
def problems(draw: st.DrawFn) -> tuple[Shape, Shape, dict[str, Any]]:
    """An input, a kernel and options, of one to three spatial axes, channels last."""
    rank = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    groups = draw(st.integers(1, 2))
    x = (2, *per_axis(1, 9), 2 * groups)
    kernel = (*per_axis(1, 4), 2, 3 * groups)
    options = {
        "strides": per_axis(1, 3),
        "padding": draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * rank)),
        "input_dilation": per_axis(1, 3),
        "kernel_dilation": per_axis(1, 3),
        "feature_group_size": groups,
    }
    return x, kernel, options


@given(problems())
@settings(max_examples=examples(80), deadline=None)
def test_output_shape_is_that_of_lax(problem: tuple[Shape, Shape, dict[str, Any]]) -> None:
    """Sizes follow lax for all strides, paddings and dilations; where lax has no window left, an error says so."""
    x, kernel, options = problem
    numbers = LAST[len(x) - 2]
    expected = jax.eval_shape(
        partial(
            lax.conv_general_dilated,
            window_strides=options["strides"],
            padding=options["padding"],
            lhs_dilation=options["input_dilation"],
            rhs_dilation=options["kernel_dilation"],
            dimension_numbers=numbers,
            feature_group_count=options["feature_group_size"],
        ),
        jax.ShapeDtypeStruct(x, jnp.float32),
        jax.ShapeDtypeStruct(kernel, jnp.float32),
    ).shape
    if 0 in expected:
        with pytest.raises(ShapeError, match="conv: expected spatial sizes of at least the window"):
            shape_of(x, kernel, **options)
    else:
        assert shape_of(x, kernel, **options) == expected


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=examples(60), deadline=None)
def test_same_padding_keeps_the_size_divided_by_the_stride(size: int, window: int, stride: int, dilation: int) -> None:
    """The output has ceil(size / stride) elements, whatever the window."""
    shape = shape_of((1, size, 1), (window, 1, 1), strides=stride, padding="same", kernel_dilation=dilation)
    assert shape == (1, -(-size // stride), 1)


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_same_padding_with_stride_one_equals_lax(window: int) -> None:
    """Without strides `same` is lax's, the odd element of padding behind."""
    x, kernel = values(2, 6, 5, 3).astype(np.float32), values(window, 3, 3, 2).astype(np.float32)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAST[2])
    np.testing.assert_allclose(conv(x, kernel, padding="same"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layouts_agree(rank: int) -> None:
    """Channels first is channels last with axes moved."""
    x = values(2, *range(5, 5 + rank), 4).astype(np.float32)
    kernel, bias = values(*[3] * rank, 2, 6).astype(np.float32), values(6).astype(np.float32)
    options = {"strides": 2, "padding": "same", "feature_group_size": 2}
    last = conv(x, kernel, bias, **options)
    moved = np.moveaxis(kernel, (-1, -2), (0, 1))
    first = conv(np.moveaxis(x, -1, 1), moved, bias, channels="first", **options)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "same"},
        {"padding": [(1, 2), (0, 1)], "kernel_dilation": 2},
        {"input_dilation": 2},
        {"feature_group_size": 2},
        {"batch_group_size": 2},
    ],
)
def test_gradient_matches_central_differences(options: dict[str, Any]) -> None:
    """Input, kernel and bias get their derivatives."""
    channels = 2 // options.get("feature_group_size", 1)
    assert_gradient(partial(conv, **options), values(2, 5, 6, 2), values(3, 2, channels, 4, seed=1), values(4, seed=2))


def test_dtypes_are_promoted() -> None:
    """An input of integers meets a float kernel."""
    assert conv(jnp.ones((1, 4, 1), jnp.int32), jnp.ones((2, 1, 3))).dtype == jnp.float32
    assert conv(jnp.ones((1, 4, 1), jnp.bfloat16), jnp.ones((2, 1, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "message"),
    [
        ((2, 5), (3, 5, 1), None, "conv: expected an input of rank 3 or more, got shape \\(2, 5\\)"),
        ((2, 5, 3), (3, 3, 3, 1), None, "conv: expected a kernel of rank 3 for x of shape \\(2, 5, 3\\)"),
        ((2, 5, 3), (3, 2, 4), None, "conv: expected a kernel of 3 input channels for x of shape \\(2, 5, 3\\)"),
        ((2, 5, 3), (3, 3, 4), (3,), "conv: expected a bias of shape \\(4,\\), got \\(3,\\)"),
        ((2, 2, 3), (3, 3, 4), None, "conv: expected spatial sizes of at least the window's \\(3,\\)"),
    ],
)
def test_shapes_that_do_not_fit_raise(x: Shape, kernel: Shape, bias: Shape | None, message: str) -> None:
    """The check speaks before XLA can, and names what was expected and what came."""
    with pytest.raises(ShapeError, match=message):
        check_conv(x, kernel, bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": 0}, "expected strides to be an integer of at least 1, got 0"),
        ({"strides": (1, 1, 1)}, "expected strides to be an integer or 2 integers"),
        ({"strides": 1.5}, "expected strides to be an integer of at least 1, got 1.5"),
        ({"strides": True}, "expected strides to be an integer"),
        ({"padding": "full"}, "expected padding to be one of 'valid', 'same', got 'full'"),
        ({"padding": [(1, 1)]}, r"expected padding 'valid', 'same' or 2 pairs"),
        ({"padding": [(1, -1), (0, 0)]}, "expected padding to be an integer of at least 0, got -1"),
        ({"padding": 3}, r"expected padding 'valid', 'same' or 2 pairs"),
        ({"kernel_dilation": "2"}, "expected kernel_dilation to be an integer"),
        ({"channels": "middle"}, "expected channels to be one of 'first', 'last', got 'middle'"),
        ({"feature_group_size": 0}, "expected feature_group_size to be an integer of at least 1"),
    ],
)
def test_wrong_options_raise(options: dict[str, Any], message: str) -> None:
    """Every option's domain is checked."""
    with pytest.raises(OptionError, match=message):
        check_conv((2, 5, 5, 3), (3, 3, 3, 4), **options)


def test_groups_must_divide() -> None:
    """Channels, units and batch are split evenly."""
    with pytest.raises(ShapeError, match="divisible by feature_group_size 2, got 3 in and 4 out"):
        check_conv((2, 5, 3), (3, 1, 4), feature_group_size=2)
    with pytest.raises(ShapeError, match="divisible by batch_group_size 2, got 3, 4"):
        check_conv((3, 5, 3), (3, 3, 4), batch_group_size=2)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("window", "strides"), [(2, 1), (3, 2), (2, 3), (5, 2), (4, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolution_is_that_of_lax(padding: Any, window: int, strides: int, dilation: int) -> None:
    """The same sizes and values as lax.conv_transpose, in both layouts."""
    x, kernel = values(2, 5, 4, 3).astype(np.float32), values(window, 2, 3, 2).astype(np.float32)
    options = {"strides": (strides, 1), "padding": padding, "kernel_dilation": dilation}
    expected = lax.conv_transpose(
        x, kernel, (strides, 1), padding.upper(), (dilation, dilation), dimension_numbers=LAST[2]
    )
    np.testing.assert_allclose(conv_transpose(x, kernel, **options), expected, rtol=1e-4, atol=1e-5)
    first = conv_transpose(np.moveaxis(x, -1, 1), np.moveaxis(kernel, (-1, -2), (0, 1)), channels="first", **options)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), expected, rtol=1e-4, atol=1e-5)


def test_transposed_convolution_takes_padding_as_it_is() -> None:
    """Pairs are those of the convolution of the dilated input."""
    x, kernel = values(1, 4, 2).astype(np.float32), values(3, 2, 2).astype(np.float32)
    expected = conv(x, kernel, padding=[(1, 0)], input_dilation=2)
    np.testing.assert_allclose(conv_transpose(x, kernel, strides=2, padding=[(1, 0)]), expected, rtol=1e-6)
    assert_gradient(partial(conv_transpose, strides=2), x, kernel, values(2))


def test_grouped_transposed_convolution_treats_groups_alone() -> None:
    """Each group of channels is convolved with its own units."""
    x, kernel = values(1, 4, 4).astype(np.float32), values(3, 2, 6).astype(np.float32)
    alone = [conv_transpose(x[..., 2 * i : 2 * i + 2], kernel[..., 3 * i : 3 * i + 3], strides=2) for i in range(2)]
    grouped = conv_transpose(x, kernel, strides=2, feature_group_size=2)
    np.testing.assert_allclose(grouped, np.concatenate(alone, -1), rtol=1e-5, atol=1e-6)


def test_depthwise_convolution_treats_channels_alone() -> None:
    """Each input channel is convolved with its own filters."""
    x, kernel = values(2, 5, 5, 3).astype(np.float32), values(3, 2, 1, 6).astype(np.float32)
    alone = [conv(x[..., i : i + 1], kernel[..., 2 * i : 2 * i + 2], padding="same") for i in range(3)]
    np.testing.assert_allclose(depthwise_conv(x, kernel, padding="same"), np.concatenate(alone, -1), rtol=1e-5)
    assert_gradient(depthwise_conv, x, kernel, values(6))


def test_separable_convolution_equals_the_product_of_its_kernels() -> None:
    """One window per axis, without strides or biases: the outer product as one depthwise kernel."""
    x = values(2, 5, 6, 2).astype(np.float32)
    k1, k2 = values(3, 1, 1, 4).astype(np.float32), values(1, 2, 1, 4, seed=1).astype(np.float32)
    np.testing.assert_allclose(separable_conv2d(x, k1, k2), depthwise_conv(x, k1 * k2), rtol=1e-4, atol=1e-5)
    volume = values(1, 4, 4, 4, 2).astype(np.float32)
    kernels = [
        values(*shape, 1, 2, seed=i).astype(np.float32) for i, shape in enumerate([(2, 1, 1), (1, 3, 1), (1, 1, 2)])
    ]
    product = kernels[0] * kernels[1] * kernels[2]
    np.testing.assert_allclose(
        separable_conv3d(volume, *kernels), depthwise_conv(volume, product), rtol=1e-4, atol=1e-5
    )
    assert_gradient(separable_conv2d, x, k1, k2, values(4), values(4))


def test_other_convolutions_check_their_shapes() -> None:
    """Each speaks in its own name."""
    with pytest.raises(ShapeError, match="depthwise_conv: expected a kernel of 1 input channels"):
        check_depthwise_conv((1, 5, 3), (2, 3, 3))
    with pytest.raises(ShapeError, match="separable_conv2d: expected an input of rank 4"):
        check_separable_conv2d((1, 5, 3), (2, 1, 3), (2, 1, 3))
    with pytest.raises(ShapeError, match="separable_conv2d: expected spatial sizes"):
        check_separable_conv2d((1, 5, 2, 3), (2, 1, 1, 3), (1, 3, 1, 3))
    with pytest.raises(ShapeError, match="conv_transpose: expected a kernel of rank 3"):
        check_conv_transpose((1, 5, 3), (3, 3))
    with pytest.raises(OptionError, match="conv_transpose: expected padding to be one of"):
        check_conv_transpose((1, 5, 3), (2, 3, 3), padding="full")  # type: ignore[arg-type]
