"""Attention and positions: the formula in NumPy, masks, groups, dropout, derivatives, extremes, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import OptionError, ShapeError
from engine.functional import (
    StatefulOutput,
    keys,
    learned_position,
    multi_head_attention,
    rotary_embedding,
    scaled_dot_product_attention,
    sinusoidal_position,
    sinusoidal_table,
)
from engine.functional.attention import choose_implementation
from tests.engine.functional.support import assert_gradient, values

B, T, S, H, K, D = 2, 4, 5, 4, 2, 6
Q, KEY, VALUE = values(B, T, H, D), values(B, S, H, D, seed=1), values(B, S, H, D, seed=2)
USER = np.random.default_rng(3).random((B, H, T, S)) < 0.6
PADDING = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: Any = True, scale: float | None = None
) -> np.ndarray:
    """The formula in float64; rows without a key are zeros."""
    logits = np.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = np.where(allowed, logits, -np.inf)
    some = np.isfinite(logits).any(-1, keepdims=True)
    weights = np.where(some, softmax(np.where(some, logits, 0)), 0)
    return np.einsum("bhts,bshd->bthd", weights, v)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any) -> Any:
    """In float32."""
    return scaled_dot_product_attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), **options)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_equals_numpy(scale: float | None) -> None:
    """Scaled products, softmax over the keys, a weighted sum of values."""
    np.testing.assert_allclose(
        attend(Q, KEY, VALUE, scale=scale), reference(Q, KEY, VALUE, scale=scale), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("mask", [USER, USER[:, 0], USER[0, 0], USER[:1, :, :, :1], USER[:, :1, :1]], ids=str)
def test_user_masks_of_any_rank_broadcast(mask: np.ndarray) -> None:
    """`[T, S]`, `[B, T, S]` and `[B, H, T, S]`, with ones where all agree."""
    full = mask[:, None] if mask.ndim == 3 and mask.shape[0] == B and mask.shape[1:] == (T, S) else mask
    actual = attend(Q, KEY, VALUE, mask=jnp.asarray(mask, jnp.int32))
    np.testing.assert_allclose(actual, reference(Q, KEY, VALUE, full), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("user", [None, USER])
@pytest.mark.parametrize("padding", [None, PADDING])
def test_masks_combine(is_causal: bool, user: Any, padding: Any) -> None:
    """A key counts where all masks allow it; a query sees keys up to its own position when causal."""
    allowed = np.ones((B, H, T, S), bool)
    if is_causal:
        allowed &= np.tril(np.ones((T, S), bool))
    if user is not None:
        allowed &= user
    if padding is not None:
        allowed &= padding[:, None, None, :] == 1
    given = {"mask": user, "key_padding_mask": padding}
    given = {name: jnp.asarray(mask) for name, mask in given.items() if mask is not None}
    actual = attend(Q, KEY, VALUE, is_causal=is_causal, **given)
    np.testing.assert_allclose(actual, reference(Q, KEY, VALUE, allowed), rtol=1e-5, atol=1e-6)


def test_a_query_without_keys_gets_zeros_and_no_gradient() -> None:
    """No NaN, in the value or in any derivative, and nothing of the values it must not see."""
    padding = jnp.asarray([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert not np.asarray(attend(Q, KEY, VALUE, key_padding_mask=padding))[0].any()
    gradients = jax.grad(lambda *a: attend(*a, key_padding_mask=padding).sum(), argnums=(0, 1, 2))(Q, KEY, VALUE)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[0].any()


@pytest.mark.parametrize("is_causal", [False, True])
def test_fewer_heads_of_keys_equal_repeated_ones(is_causal: bool) -> None:
    """Grouped queries: each head of keys serves the neighbouring heads of queries."""
    k, v = KEY[:, :, :K], VALUE[:, :, :K]
    repeated = (np.repeat(a, H // K, axis=2) for a in (k, v))
    options = {"is_causal": is_causal, "mask": jnp.asarray(USER)}
    np.testing.assert_allclose(attend(Q, k, v, **options), attend(Q, *repeated, **options), rtol=1e-6, atol=1e-6)


def test_gradients_equal_finite_differences() -> None:
    """With respect to queries, keys and values, grouped and masked, in float64."""

    def grouped(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        output = scaled_dot_product_attention(q, k, v, mask=jnp.asarray(USER), is_causal=True)
        assert not isinstance(output, StatefulOutput)
        return output

    assert_gradient(grouped, Q, KEY[:, :, :K], VALUE[:, :, :K])


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_are_finite(sign: int) -> None:
    """Values and gradients, with and without masked rows."""
    q = sign * 1e4 * np.sqrt(D) * np.ones((B, T, H, D)) / D
    for options in ({}, {"mask": jnp.asarray(USER)}, {"is_causal": True}):
        k = np.where(np.arange(S)[:, None, None] % 2, 1.0, -1.0) * np.ones((B, S, H, D))
        output, gradients = jax.value_and_grad(lambda *a: attend(*a, **options).sum(), (0, 1, 2))(q, k, VALUE)  # noqa: B023
        assert np.isfinite(output)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_near_single(dtype: Any) -> None:
    """The softmax is taken in float32, the result has the inputs' dtype."""
    halves = [jnp.asarray(a, dtype) for a in (Q, KEY, VALUE)]
    output = scaled_dot_product_attention(*halves, is_causal=True)
    assert output.dtype == dtype
    expected = attend(*(np.asarray(a, np.float32) for a in halves), is_causal=True)
    np.testing.assert_allclose(np.asarray(output, np.float32), expected, rtol=2e-2, atol=1e-2)


def test_dropout_zeroes_weights_at_its_rate_and_keeps_the_mean() -> None:
    """With values of an identity the output shows the weights themselves; the key advances and decides all."""
    q, k = np.zeros((4, 64, 2, 64)), np.zeros((4, 64, 2, 64))
    v = np.broadcast_to(np.eye(64)[None, :, None], (4, 64, 2, 64))
    key = keys.from_seed(5)
    output, state = attend(q, k, v, dropout_rate=0.25, dropout_key=key, mode="train")
    weights = np.asarray(output) * 64
    dropped = weights == 0
    assert abs(dropped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / dropped.size)
    np.testing.assert_allclose(weights[~dropped], 1 / 0.75, rtol=1e-5)
    np.testing.assert_array_equal(attend(q, k, v, dropout_rate=0.25, dropout_key=key, mode="train").output, output)
    assert not np.array_equal(state["dropout_key"], key)
    again = attend(q, k, v, dropout_rate=0.25, dropout_key=state["dropout_key"], mode="train").output
    assert not np.array_equal(again, output)
    np.testing.assert_array_equal(attend(q, k, v, dropout_rate=0.25, dropout_key=key), attend(q, k, v))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((B, T, H), (B, S, H, D), (B, S, H, D)), {}, "rank 4"),
        (((B, T, H, D), (B, S, H, D + 1), (B, S, H, D + 1)), {}, "key and value of one shape"),
        (((B, T, H, D), (B, S, 3, D), (B, S, 3, D)), {}, "divisible by the 3 heads"),
        (((B, T, H, D), (B, S, H, D), (B, S, H, D)), {"mask": np.ones((S, T))}, "expected a mask of shape"),
        (((B, T, H, D), (B, S, H, D), (B, S, H, D)), {"key_padding_mask": np.ones((B, T))}, "key_padding_mask"),
    ],
)
def test_wrong_shapes_are_named(shapes: Any, options: dict[str, Any], message: str) -> None:
    """What was expected, what came."""
    with pytest.raises(ShapeError, match=message):
        scaled_dot_product_attention(*map(jnp.ones, shapes), **options)


def test_wrong_options_are_named() -> None:
    """Rates outside [0, 1), training without a key, unknown modes."""
    for options, match in (
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"dropout_rate": 0.1, "mode": "train"}, "expected a dropout_key"),
        ({"mode": "test"}, "mode"),
        ({"scale": float("inf")}, "scale"),
    ):
        with pytest.raises(OptionError, match=match):
            attend(Q, KEY, VALUE, **options)


def test_the_fused_kernel_is_asked_for_only_where_it_exists() -> None:
    """NVIDIA's needs half precision, heads of a multiple of 8 and no mask of one's own."""
    half = jnp.ones((2, 8, 4, 64), jnp.bfloat16)
    assert choose_implementation("gpu", half, half, None) == "cudnn"
    assert choose_implementation("gpu", half.astype(jnp.float32), half, None) is None
    assert choose_implementation("gpu", half[..., :60], half, None) is None
    assert choose_implementation("gpu", half, half, jnp.ones((1, 1, 8, 8), bool)) is None
    assert choose_implementation("tpu", half, half, None) is None


def test_the_formula_equals_the_library() -> None:
    """What runs here is what `jax.nn` computes, which runs on accelerators."""
    arrays = [jnp.asarray(a, jnp.float32) for a in (Q, KEY[:, :, :K], VALUE[:, :, :K])]
    expected = jax.nn.dot_product_attention(*arrays, mask=jnp.asarray(USER | (np.arange(S) == 0)), is_causal=True)
    actual = scaled_dot_product_attention(*arrays, mask=jnp.asarray(USER | (np.arange(S) == 0)), is_causal=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# Heads


X, OTHER = values(B, T, 8), values(B, S, 3, seed=4)


def projections(key_size: int, groups: int, *, bias: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Four heads of six features, output of seven."""
    sizes = {"query": (8, 24), "key": (key_size, groups * 6), "value": (key_size, groups * 6), "output": (24, 7)}
    result = {name: {"kernel": values(*size, seed=i)} for i, (name, size) in enumerate(sizes.items())}
    if bias:
        for i, name in enumerate(sizes):
            result[name]["bias"] = values(sizes[name][1], seed=10 + i)
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [None, 2, 1])
def test_heads_equal_numpy(groups: int | None, bias: bool) -> None:
    """Cross-attention: projections, heads, attention, the output's projection."""
    count = groups or H
    given = projections(3, count, bias=bias)

    def project(name: str, x: np.ndarray, heads: int) -> np.ndarray:
        y = x @ given[name]["kernel"] + given[name].get("bias", 0)
        return y.reshape(*x.shape[:2], heads, -1)

    k, v = (np.repeat(project(name, OTHER, count), H // count, 2) for name in ("key", "value"))
    attended = reference(project("query", X, H), k, v).reshape(B, T, 24)
    expected = attended @ given["output"]["kernel"] + given["output"].get("bias", 0)
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (X, OTHER, OTHER, given))
    actual = multi_head_attention(*single, num_heads=H, num_key_value_heads=groups)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_heads_equal_finite_differences() -> None:
    """With respect to x and all projections, rotary and causal, in float64."""
    leaves, structure = jax.tree.flatten((X, projections(8, 2)))

    def attend_heads(*leaves: jax.Array) -> Any:
        x, given = jax.tree.unflatten(structure, leaves)
        return multi_head_attention(
            x, x, x, given, num_heads=H, num_key_value_heads=2, is_causal=True, rotary_base=100.0
        )

    assert_gradient(attend_heads, *leaves)


def test_causal_heads_do_not_look_ahead() -> None:
    """Changing the last step changes no earlier output."""
    changed = X.copy()
    changed[:, -1] += 1
    first, second = (
        multi_head_attention(x, x, x, projections(8, 4), num_heads=4, is_causal=True) for x in (X, changed)
    )
    np.testing.assert_allclose(first[:, :-1], second[:, :-1], rtol=1e-6, atol=1e-6)
    assert not np.allclose(first[:, -1], second[:, -1])


def test_wrong_heads_are_named() -> None:
    """Sizes that the heads do not divide, and kernels that do not fit."""
    with pytest.raises(ShapeError, match=r"query projection's size to be divisible by 5"):
        multi_head_attention(X, X, X, projections(8, 4), num_heads=5)
    with pytest.raises(ShapeError, match="dense: expected a kernel"):
        multi_head_attention(X, OTHER, OTHER, projections(8, 4), num_heads=4)


# Positions


def test_the_sinusoidal_table_is_that_of_the_paper() -> None:
    """Sines at even features, cosines at odd ones."""
    table = np.asarray(sinusoidal_table(50, 8))
    for p, i in ((0, 0), (3, 1), (49, 3)):
        angle = p / 10000 ** (2 * i / 8)
        np.testing.assert_allclose(table[p, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=2e-6)
    np.testing.assert_allclose(sinusoidal_position(jnp.zeros((2, 50, 8))), np.stack([table] * 2))


def test_learned_positions_are_rows_of_the_kernel() -> None:
    """Added to every sample, as many as there are steps."""
    kernel = values(6, 8, seed=7)
    np.testing.assert_allclose(learned_position(jnp.asarray(X), jnp.asarray(kernel)), X + kernel[:T], rtol=1e-6)
    with pytest.raises(ShapeError, match="4 positions or more"):
        learned_position(jnp.asarray(X), jnp.asarray(kernel[:3]))


def test_rotation_is_a_complex_product() -> None:
    """Feature i of the first half and of the second are real and imaginary part."""
    base = 100.0
    angles = np.arange(T)[:, None] * base ** (-2 * np.arange(D // 2) / D)
    turned = (Q[..., : D // 2] + 1j * Q[..., D // 2 :]) * np.exp(1j * angles)[:, None]
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotary_embedding(jnp.asarray(Q), base=base), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        rotary_embedding(jnp.asarray(Q), jnp.arange(T)[None] + jnp.zeros((B, 1)), base=base), expected, atol=1e-6
    )


def test_rotated_products_depend_on_the_distance_alone() -> None:
    """Shifting both positions changes no product of query and key."""

    def product(shift: int) -> jax.Array:
        places = jnp.arange(T) + shift
        q, k = (rotary_embedding(jnp.asarray(a), places) for a in (Q, KEY[:, :T]))
        return jnp.einsum("bthd,bshd->bhts", q, k)

    np.testing.assert_allclose(product(0), product(17), rtol=1e-4, atol=1e-5)


def test_wrong_positions_are_named() -> None:
    """Odd sizes, a base below one, positions of another length."""
    with pytest.raises(ShapeError, match="even size"):
        sinusoidal_table(3, 5)
    with pytest.raises(OptionError, match="base"):
        rotary_embedding(jnp.asarray(Q), base=0.5)
    with pytest.raises(ShapeError, match="positions of shape"):
        rotary_embedding(jnp.asarray(Q), jnp.arange(T + 1))
