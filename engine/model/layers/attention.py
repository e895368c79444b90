"""Attention layers. Masks say who may be attended to: non-zero means attend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from engine import functional as F
from engine.errors import GraphError, ShapeError
from engine.model import options
from engine.model.graph import Mode, Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.shapes import Shape, require_rank

if TYPE_CHECKING:
    from engine.model.model import Model


class _Inputs(NamedTuple):
    """A node's inputs (arrays or shapes) by their roles."""

    query: Any
    key: Any
    value: Any
    mask: Any
    key_padding_mask: Any

    def masks(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {"mask": self.mask, "key_padding_mask": self.key_padding_mask}


def _by_role(op: str, inputs: Sequence[Any], *, has_key: bool, has_mask: bool, has_key_padding_mask: bool) -> _Inputs:
    """Raises `ShapeError` when a graph gives a wrong number of inputs."""
    present = {"query": True, "key": has_key, "value": has_key, "mask": has_mask}
    roles = [role for role, given in {**present, "key_padding_mask": has_key_padding_mask}.items() if given]
    if len(inputs) != len(roles):
        raise ShapeError(f"{op}: expected the inputs {', '.join(roles)}, got {len(inputs)}")
    found = dict(zip(roles, inputs, strict=True))
    query = found["query"]
    key, value = found.get("key", query), found.get("value", query)
    return _Inputs(query, key, value, found.get("mask"), found.get("key_padding_mask"))


_COMMON = {
    "is_causal": options.boolean,
    "scale": options.nullable(options.number()),
    "dropout_rate": options.number(0, 1, open_high=True),
    "has_mask": options.boolean,
    "has_key_padding_mask": options.boolean,
}
_ABSENT = {"has_mask": False, "has_key_padding_mask": False}


def _state(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    if values["dropout_rate"] == 0:
        return ()
    return (ParamSpec("dropout_key", lambda *_: (2,), "key", kind="state", dtype="u32"),)


def _mixes_rows(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    place = len(shapes) - 1 - values["has_key_padding_mask"]
    if values["has_mask"] and len(shapes[place]) < 3:
        return "its mask has no axis for the batch"
    return None


def _attend(
    *inputs: jax.Array,
    has_mask: bool,
    has_key_padding_mask: bool,
    mode: Mode,
    dropout_key: jax.Array | None = None,
    **given: Any,
) -> Any:
    op = "scaled_dot_product_attention"
    found = _by_role(op, inputs, has_key=True, has_mask=has_mask, has_key_padding_mask=has_key_padding_mask)
    return F.scaled_dot_product_attention(
        found.query,
        found.key,
        found.value,
        **found.masks(),
        dropout_key=dropout_key,
        mode=mode,
        **given,
    )


def _check_attend(*shapes: Shape, has_mask: bool, has_key_padding_mask: bool, **given: Any) -> None:
    op = "scaled_dot_product_attention"
    found = _by_role(op, shapes, has_key=True, has_mask=has_mask, has_key_padding_mask=has_key_padding_mask)
    F.check_scaled_dot_product_attention(found.query, found.key, found.value, **found.masks(), **given)


SCALED_DOT_PRODUCT_ATTENTION = Op(
    "scaled_dot_product_attention",
    apply=_attend,
    params=_state,
    check=_check_attend,
    options=_COMMON,
    apply_options={option: option for option in _COMMON},
    arity=(3, 5),
    has_modes=True,
    defaults=_ABSENT,
    mixes_rows=_mixes_rows,
)


def _present(*models: Model | None) -> list[Model]:
    return [model for model in models if model is not None]


def scaled_dot_product_attention(
    query: Model,
    key: Model,
    value: Model,
    *,
    mask: Model | None = None,
    key_padding_mask: Model | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    name: Namer = None,
) -> Model:
    r"""$softmax(scale \cdot Q K^T) V$ for every head.

    Args:
        query: `[batch, time, heads, size]`.
        key, value: `[batch, keys, key_value_heads, size]`; their number of heads divides that of queries.
        mask: `[time, keys]`, `[batch, time, keys]` or `[batch, heads, time, keys]`; non-zero means attend.
        key_padding_mask: `[batch, keys]`; non-zero for keys that are no padding.
        is_causal: whether query `t` sees keys up to `t` only.
        scale: `size ** -0.5` when None.
        dropout_rate: part of the weights that is zeroed, in training only.
    Returns: the shape of query; zeros where a query may attend to nothing. State, with dropout: dropout_key u32`[2]`.
    Raises: `OptionError`; at build `ShapeError`.
    Source: Vaswani et al. 2017, arXiv:1706.03762; proposed for Axon.
    """
    values = {
        "is_causal": is_causal,
        "scale": scale,
        "dropout_rate": dropout_rate,
        "has_mask": mask is not None,
        "has_key_padding_mask": key_padding_mask is not None,
    }
    inputs = [query, key, value, *_present(mask, key_padding_mask)]
    return extend(SCALED_DOT_PRODUCT_ATTENTION, inputs, values, name)


# Heads


_OP = "multi_head_attention"
_PROJECTIONS = ("query", "key", "value", "output")


def _heads(values: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of queries and of keys."""
    return values["num_heads"], values["num_key_value_heads"] or values["num_heads"]


def _sizes(values: Mapping[str, Any], found: _Inputs) -> dict[str, Shape]:
    """The kernels' shapes."""
    query, key, value = found.query, found.key, found.value
    heads, groups = _heads(values)
    size = values["head_size"]
    if size is None:
        if query[-1] % heads:
            raise ShapeError(f"{_OP}: expected a head_size, or a last axis divisible by {heads} heads, got {query}")
        size = query[-1] // heads
    return {
        "query": (query[-1], heads * size),
        "key": (key[-1], groups * size),
        "value": (value[-1], groups * size),
        "output": (heads * size, values["units"] or query[-1]),
    }


def _roles(values: Mapping[str, Any], inputs: Sequence[Any]) -> _Inputs:
    flags = {flag: values[flag] for flag in ("has_key", "has_mask", "has_key_padding_mask")}
    return _by_role(_OP, inputs, **flags)


def _head_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    def kernel(name: str) -> ParamSpec:
        def shape(*shapes: Shape) -> Shape:
            return _sizes(values, _roles(values, shapes))[name]

        return ParamSpec(f"{name}.kernel", shape, values["kernel_initializer"])

    def bias(name: str) -> ParamSpec:
        def shape(*shapes: Shape) -> Shape:
            return _sizes(values, _roles(values, shapes))[name][1:]

        return ParamSpec(f"{name}.bias", shape, values["bias_initializer"])

    specs = [kernel(name) for name in _PROJECTIONS]
    return (*specs, *((bias(name) for name in _PROJECTIONS) if values["use_bias"] else ()), *_state(values))


_SHAPED = ("head_size", "units", "use_bias", "has_key", "has_mask", "has_key_padding_mask")


def _forwarded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the function itself."""
    return {option: value for option, value in values.items() if option not in _SHAPED}


def _apply_heads(
    *inputs: jax.Array,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    mode: Mode,
    dropout_key: jax.Array | None = None,
    **values: Any,
) -> Any:
    found = _roles(values, inputs)
    return F.multi_head_attention(
        found.query,
        found.key,
        found.value,
        {"query": query, "key": key, "value": value, "output": output},
        **found.masks(),
        dropout_key=dropout_key,
        mode=mode,
        **_forwarded(values),
    )


def _check_heads(*shapes: Shape, **values: Any) -> None:
    found = _roles(values, shapes)
    for shape in (found.query, found.key, found.value):
        require_rank(_OP, shape, exactly=3)
    kernels = {name: {"kernel": shape} for name, shape in _sizes(values, found).items()}
    F.check_multi_head_attention(found.query, found.key, found.value, kernels, **found.masks(), **_forwarded(values))


_HEAD_OPTIONS = {
    "num_heads": options.positive,
    "num_key_value_heads": options.nullable(options.positive),
    "head_size": options.nullable(options.positive),
    "units": options.nullable(options.positive),
    "use_bias": options.boolean,
    "rotary_base": options.nullable(options.number(1)),
    "kernel_initializer": options.initializer,
    "bias_initializer": options.initializer,
    "has_key": options.boolean,
    **_COMMON,
}

MULTI_HEAD_ATTENTION = Op(
    _OP,
    apply=_apply_heads,
    params=_head_params,
    check=_check_heads,
    options=_HEAD_OPTIONS,
    apply_options={option: option for option in _HEAD_OPTIONS if not option.endswith("_initializer")},
    arity=(1, 5),
    has_modes=True,
    defaults={**_ABSENT, "has_key": False},
    mixes_rows=_mixes_rows,
)


def multi_head_attention(
    x: Model,
    num_heads: int,
    *,
    key: Model | None = None,
    value: Model | None = None,
    mask: Model | None = None,
    key_padding_mask: Model | None = None,
    num_key_value_heads: int | None = None,
    head_size: int | None = None,
    units: int | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    rotary_base: float | None = None,
    dropout_rate: float = 0.0,
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    name: Namer = None,
) -> Model:
    """Attention of several heads over projections of x, or from x to another sequence.

    Args:
        x: the queries' sequence, `[batch, time, in]`.
        key: `[batch, keys, in_key]`; x itself when None.
        value: `[batch, keys, in_value]`; key when None.
        num_key_value_heads: a divisor of `num_heads`, which it is when None.
        head_size: features of a head; `in / num_heads` when None.
        units: features of the output; those of x when None.
        rotary_base: base of a rotary embedding of queries and keys; none when None.
    Other arguments and errors as `scaled_dot_product_attention`; `GraphError` for a value without a key.
    Returns: `[batch, time, units]`. Parameters: `query.kernel` `[in, num_heads * head_size]`, `key.kernel` and
        `value.kernel` `[.., num_key_value_heads * head_size]`, `output.kernel` `[num_heads * head_size, units]`, a bias
        beside each; state, with dropout: dropout_key u32`[2]`.
    Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
    """
    if value is not None and key is None:
        raise GraphError("multi_head_attention: expected a key with the value, got none")
    values = {
        "num_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_size": head_size,
        "units": units,
        "use_bias": use_bias,
        "rotary_base": rotary_base,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
        "is_causal": is_causal,
        "scale": scale,
        "dropout_rate": dropout_rate,
        "has_key": key is not None,
        "has_mask": mask is not None,
        "has_key_padding_mask": key_padding_mask is not None,
    }
    keys = [] if key is None else [key, key if value is None else value]
    return extend(MULTI_HEAD_ATTENTION, [x, *keys, *_present(mask, key_padding_mask)], values, name)
