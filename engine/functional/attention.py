r"""Attention: scaled dot products, and the layer of several heads around them.

Masks say who may be attended to: true (or non-zero) means attend. (That is the opposite of a recurrent layer's mask.)
A query that may attend to nothing gets zeros, and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine.errors import OptionError, ShapeError
from engine.functional import keys
from engine.functional.linear import check_dense, dense
from engine.functional.options import MODES, Mode, as_integer, require_choice, require_number
from engine.functional.positional import check_rotary_embedding, rotary_embedding
from engine.functional.stateful import StatefulOutput
from engine.shapes import Shape, require_rank

Projection = Mapping[str, jax.Array]
ProjectionShapes = Mapping[str, Shape]
Implementation = Literal["cudnn"] | None


# Shape rules


def _check_mask(op: str, mask: Shape, wanted: Shape) -> None:
    """A mask of rank 2 to 4 that broadcasts to `[batch, heads, time, keys]`, a missing axis of heads included."""
    full = _mask_shape(mask)
    if len(full) != 4 or any(size not in (1, want) for size, want in zip(full, wanted, strict=True)):
        batch, heads, time, keys = wanted
        raise ShapeError(
            f"{op}: expected a mask of shape {(time, keys)}, {(batch, time, keys)} or {(batch, heads, time, keys)} "
            f"(or with 1 for a size), got {mask}"
        )


def _mask_shape(mask: Shape) -> Shape:
    """The mask's shape with axes for batch and heads."""
    if len(mask) == 3:
        return (mask[0], 1, *mask[1:])
    return (1,) * (4 - len(mask)) + mask if len(mask) == 2 else mask


def _check_dropout(op: str, rate: float, key: object, mode: Mode) -> None:
    require_number(op, "dropout_rate", rate, at_least=0, less_than=1)
    require_choice(op, "mode", mode, MODES)
    if rate > 0 and mode == "train" and key is None:
        raise OptionError(f"{op}: expected a dropout_key to train with dropout_rate {rate}, got None")


def check_scaled_dot_product_attention(
    query: Shape,
    key: Shape,
    value: Shape,
    *,
    mask: Shape | None = None,
    key_padding_mask: Shape | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Shape | None = None,
    mode: Mode = "inference",
) -> None:
    """The shape rule of `scaled_dot_product_attention`."""
    op = "scaled_dot_product_attention"
    for shape in (query, key, value):
        require_rank(op, shape, exactly=4)
    if key != value or key[0] != query[0] or key[3] != query[3] or 0 in key[1:]:
        raise ShapeError(
            f"{op}: expected key and value of one shape ({query[0]}, keys, heads, {query[3]}) for a query of shape "
            f"{query}, got {key} and {value}"
        )
    if query[2] % key[2]:
        raise ShapeError(f"{op}: expected heads divisible by the {key[2]} heads of keys, got {query[2]}")
    if mask is not None:
        _check_mask(op, mask, (query[0], query[2], query[1], key[1]))
    if key_padding_mask is not None and key_padding_mask != key[:2]:
        raise ShapeError(f"{op}: expected a key_padding_mask of shape {key[:2]}, got {key_padding_mask}")
    if scale is not None:
        require_number(op, "scale", scale)
    _check_dropout(op, dropout_rate, dropout_key, mode)


# The formula


def _combine_masks(mask: jax.Array | None, key_padding_mask: jax.Array | None) -> jax.Array | None:
    """One mask that broadcasts to `[batch, heads, time, keys]`, or None."""
    parts = []
    if mask is not None:
        parts.append(mask.astype(bool).reshape(_mask_shape(mask.shape)))
    if key_padding_mask is not None:
        parts.append(key_padding_mask.astype(bool)[:, None, None, :])
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]


def _causal(time: int, keys: int) -> jax.Array:
    """Query `t` may attend to keys `0 ... t`."""
    return jnp.tril(jnp.ones((time, keys), bool))[None, None]


def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    allowed: jax.Array | None,
    scale: float,
    dropout: tuple[jax.Array, float] | None,
) -> jax.Array:
    """The formula itself, in f32 for half precision; `allowed` broadcasts to `[batch, heads, time, keys]`."""
    batch, time, heads, size = query.shape
    groups = key.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    grouped = groups != heads
    if grouped:
        query = query.reshape(batch, time, groups, heads // groups, size)
    pattern = "btkgd,bskd->bkgts" if grouped else "bthd,bshd->bhts"
    logits = jnp.einsum(pattern, query, key, preferred_element_type=wide) * scale
    logits = logits.reshape(batch, heads, time, key.shape[1])
    if allowed is not None:
        # Finite, so that a row without a key has a softmax and a gradient.
        logits = jnp.where(allowed, logits, -0.7 * float(np.finfo(wide).max))
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout is not None:
        drop_key, rate = dropout
        drawn = keys.uniform(drop_key, weights.shape) < 1 - rate
        kept = lax.optimization_barrier(drawn)  # type: ignore[no-untyped-call]
        weights = jnp.where(kept, weights / (1 - rate), 0)
    weights = weights.astype(value.dtype)
    if not grouped:
        return jnp.einsum("bhts,bshd->bthd", weights, value)
    weights = weights.reshape(batch, groups, heads // groups, time, key.shape[1])
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(batch, time, heads, size)


def choose_implementation(platform: str, query: jax.Array, key: jax.Array, mask: jax.Array | None) -> Implementation:
    """The kernel `jax.nn.dot_product_attention` is asked for: it takes the one of cuDNN only by name.

    That one works in half precision, on heads of a multiple of 8 features up to 128, and materialises any mask but
    the causal one, so that the compiler's own program is as good there.
    """
    half = query.dtype in (jnp.float16, jnp.bfloat16)
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    fits = query.shape[3] % 8 == 0 and query.shape[3] <= 128
    return "cudnn" if platform == "gpu" and half and even and fits and mask is None else None


def scaled_dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    key_padding_mask: jax.Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    mode: Mode = "inference",
) -> jax.Array | StatefulOutput:
    r"""$softmax(scale \cdot Q K^T) V$ for every head.

    Heads of keys and values may be fewer than those of queries (grouped queries): each then serves several.

    Args:
        query: `[batch, time, heads, size]`.
        key, value: `[batch, keys, key_value_heads, size]`; the number of heads divides that of queries.
        mask: `[time, keys]`, `[batch, time, keys]` or `[batch, heads, time, keys]`; true means attend.
        key_padding_mask: `[batch, keys]`; true for keys that are no padding.
        is_causal: whether query `t` sees keys up to `t` only.
        scale: of the products; `size ** -0.5` when `None`.
        dropout_rate: part of the weights that is zeroed at random, in `train` mode only.
        dropout_key: random key (state), `uint32[2]`; needed in `train` mode with a rate above 0.
        mode: `train` or `inference`.
    Returns: `[batch, time, heads, size]`, zeros where a query may attend to nothing. In `train` mode with dropout a
        `StatefulOutput` with the new `dropout_key`.
    Raises:
        ShapeError: shapes do not fit.
        OptionError: an option outside its domain.
    Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
    """
    check_scaled_dot_product_attention(
        *(jnp.shape(a) for a in (query, key, value)),
        mask=None if mask is None else jnp.shape(mask),
        key_padding_mask=None if key_padding_mask is None else jnp.shape(key_padding_mask),
        is_causal=is_causal,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=None if dropout_key is None else jnp.shape(dropout_key),
        mode=mode,
    )
    dtype = jnp.result_type(query, key, value)
    query, key, value = (a.astype(dtype) for a in (query, key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    given = _combine_masks(mask, key_padding_mask)
    allowed = given
    if is_causal:
        causal = _causal(query.shape[1], key.shape[1])
        allowed = causal if given is None else given & causal
    following = None
    if dropout_key is not None and dropout_rate > 0 and mode == "train":
        following, current = keys.split(dropout_key)
        output = _attend(query, key, value, allowed, factor, (current, dropout_rate))
    elif jax.default_backend() == "cpu" or dtype == jnp.float64:
        # There is no fused kernel, and JAX's function is slower than the formula, or less precise.
        output = _attend(query, key, value, allowed, factor, None)
    else:
        chosen = choose_implementation(jax.default_backend(), query, key, given)
        output = jax.nn.dot_product_attention(
            query, key, value, mask=given, scale=factor, is_causal=is_causal, implementation=chosen
        )
    if given is not None and allowed is not None:
        output = jnp.where(jnp.swapaxes(allowed.any(-1, keepdims=True), 1, 2), output, 0)
    return output if following is None else StatefulOutput(output, {"dropout_key": following})


# Heads


def _check_projection(x: Shape, projection: ProjectionShapes) -> int:
    """The size of what `dense` makes of `x`."""
    check_dense(x, projection["kernel"], projection.get("bias"))
    return projection["kernel"][1]


def _split_heads(op: str, what: str, size: int, heads: int) -> int:
    if size % heads:
        raise ShapeError(f"{op}: expected the {what} projection's size to be divisible by {heads} heads, got {size}")
    return size // heads


def check_multi_head_attention(
    query: Shape,
    key: Shape,
    value: Shape,
    projections: Mapping[str, ProjectionShapes],
    *,
    num_heads: int,
    num_key_value_heads: int | None = None,
    mask: Shape | None = None,
    key_padding_mask: Shape | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    rotary_base: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Shape | None = None,
    mode: Mode = "inference",
) -> None:
    """The shape rule of `multi_head_attention`."""
    op = "multi_head_attention"
    for shape in (query, key, value):
        require_rank(op, shape, exactly=3)
    heads = as_integer(op, "num_heads", num_heads, at_least=1)
    groups = (
        heads if num_key_value_heads is None else as_integer(op, "num_key_value_heads", num_key_value_heads, at_least=1)
    )
    split = {
        name: (*x[:2], count, _split_heads(op, name, _check_projection(x, projections[name]), count))
        for name, x, count in (("query", query, heads), ("key", key, groups), ("value", value, groups))
    }
    check_scaled_dot_product_attention(
        split["query"],
        split["key"],
        split["value"],
        mask=mask,
        key_padding_mask=key_padding_mask,
        is_causal=is_causal,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        mode=mode,
    )
    if rotary_base is not None:
        check_rotary_embedding(split["query"], base=rotary_base)
    check_dense(
        (*query[:2], math.prod(split["query"][2:])), projections["output"]["kernel"], projections["output"].get("bias")
    )


def multi_head_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    projections: Mapping[str, Projection],
    *,
    num_heads: int,
    num_key_value_heads: int | None = None,
    mask: jax.Array | None = None,
    key_padding_mask: jax.Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    rotary_base: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    mode: Mode = "inference",
) -> jax.Array | StatefulOutput:
    """Attention of several heads, each over its own projection of queries, keys and values.

    Args:
        query: `[batch, time, in]`.
        key, value: `[batch, keys, in_key]` and `[batch, keys, in_value]`; the query itself for self-attention.
        projections: for `query`, `key`, `value` and `output` a dict of a `kernel` and, if wanted, a `bias` as `dense`
            takes them; kernels `[in, num_heads * size]`, `[in_key, num_key_value_heads * size]`, likewise for values,
            and `[num_heads * size, out]`.
        num_key_value_heads: `num_heads` when `None`; a divisor of it otherwise.
        rotary_base: base of a rotary embedding of queries and keys; none when `None`.
    Other arguments and errors as in `scaled_dot_product_attention`.
    Returns: `[batch, time, out]`; in `train` mode with dropout a `StatefulOutput` with the new `dropout_key`.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """
    arrays = (query, key, value, projections, mask, key_padding_mask, dropout_key)
    *shapes, mask_shape, padding_shape, key_shape = (jax.tree.map(jnp.shape, a) for a in arrays)
    check_multi_head_attention(
        *shapes,
        num_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        mask=mask_shape,
        key_padding_mask=padding_shape,
        is_causal=is_causal,
        scale=scale,
        rotary_base=rotary_base,
        dropout_rate=dropout_rate,
        dropout_key=key_shape,
        mode=mode,
    )
    groups = num_key_value_heads or num_heads

    def heads(name: str, x: jax.Array, count: int) -> jax.Array:
        projected = dense(x, **projections[name])
        split = projected.reshape(*x.shape[:2], count, projected.shape[-1] // count)
        return split if rotary_base is None or name == "value" else rotary_embedding(split, base=rotary_base)

    attended = scaled_dot_product_attention(
        heads("query", query, num_heads),
        heads("key", key, groups),
        heads("value", value, groups),
        mask=mask,
        key_padding_mask=key_padding_mask,
        is_causal=is_causal,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        mode=mode,
    )
    output, state = attended if isinstance(attended, StatefulOutput) else (attended, None)
    joined = output.reshape(*query.shape[:2], output.shape[2] * output.shape[3])
    result = dense(joined, **projections["output"])
    return result if state is None else StatefulOutput(result, state)
