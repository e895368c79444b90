"""Layers around sequences and structured values: masks, parts of a value, reversal, both directions, positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from engine import functional as F
from engine.errors import GraphError, OptionError, ShapeError
from engine.model import options
from engine.model.graph import Namer, Node, Op, ParamSpec, post_order
from engine.model.layers import combine
from engine.model.layers.basics import MAX_DEPTH, extend
from engine.model.options import Option
from engine.shapes import Shape, normalize_axis

if TYPE_CHECKING:
    from engine.model.model import Model


MASK = Op(
    "mask",
    apply=lambda x, *, eos_token: (x == eos_token).astype(jnp.uint8),
    options={"eos_token": options.integer()},
    apply_options={"eos_token": "eos_token"},
)


def mask(x: Model, eos_token: int, *, name: Namer = None) -> Model:
    """Where tokens are padding: 1 where `x` equals `eos_token`, else 0, as recurrent layers take it.

    Args:
        x: integer tokens, `[batch, time]`.
    Returns: u8 of the shape of x; 1 means ignore, the opposite of an attention mask.
    Source: Axon.mask/3.
    """
    return extend(MASK, [x], {"eos_token": eos_token}, name)


def _path(value: Any) -> tuple[int | str, ...]:
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    known = all(isinstance(item, int | str) and not isinstance(item, bool) for item in items)
    if not known or not 0 < len(items) <= MAX_DEPTH or any(isinstance(item, int) and item < 0 for item in items):
        raise ValueError
    return items


_STEP = options.any_of({"type": "integer", "minimum": 0}, {"type": "string"})
_PATH_SCHEMA = options.any_of(_STEP, options.list_schema(_STEP, 1, MAX_DEPTH))


def _take(x: Any, *, path: tuple[int | str, ...]) -> Any:
    part = x
    for step in path:
        inside = part if isinstance(part, Mapping) else dict(enumerate(part)) if isinstance(part, tuple) else {}
        if step not in inside:
            has = ", ".join(repr(key) for key in inside) or "no parts"
            raise ShapeError(f"elem: expected a value with a part {list(path)}, got one with {has} at {step!r}")
        part = inside[step]
    return part


ELEM = Op(
    "elem",
    apply=_take,
    options={"path": Option("a position, a key, or a list of them", _path, _PATH_SCHEMA)},
    apply_options={"path": "path"},
)


def elem(x: Model, path: int | str | Sequence[int | str], *, name: Namer = None) -> Model:
    """A part of a structured value: of a container, or of a layer with several results.

    Args:
        path: a position in a tuple, a key of a dict, or several of them from the outside in.
    Raises: at build `ShapeError` when there is no such part.
    Source: Axon 0.9 elem and fetch.
    """
    return extend(ELEM, [x], {"path": path}, name)


def fetch(x: Model, key: str, *, name: Namer = None) -> Model:
    """The entry of a dict under `key`, as `elem`. Source: Axon 0.9 fetch."""
    return elem(x, key, name=name)


def _reverse(x: jax.Array, like: jax.Array | None = None, *, axis: int) -> jax.Array:
    if like is not None:
        place = normalize_axis("reverse", axis, like.ndim)
        if x.ndim != like.ndim or x.shape[place] != like.shape[place]:
            return x
    return jnp.flip(x, normalize_axis("reverse", axis, x.ndim))


REVERSE = Op(
    "reverse",
    apply=_reverse,
    options={"axis": options.integer(-16, 15)},
    apply_options={"axis": "axis"},
    arity=(1, 2),
    mixes_rows=lambda values, shapes: "it reverses axis 0, the batch" if values["axis"] % len(shapes[0]) == 0 else None,
)


def reverse(x: Model, *, like: Model | None = None, axis: int = 1, name: Namer = None) -> Model:
    """The other way round along `axis`.

    Args:
        like: when given, x is reversed only if it has this model's rank and its size along `axis`.
    Raises: at build `OptionError` when the axis is out of range.
    """
    return extend(REVERSE, [x] if like is None else [x, like], {"axis": axis}, name)


Nested = Any
"""Nested tuples and dicts of models."""

_MERGES: dict[str, Callable[..., Model]] = {
    "concatenate": combine.concatenate,
    "add": combine.add,
    "subtract": combine.subtract,
    "multiply": combine.multiply,
}


def bidirectional(
    x: Model,
    forward_fun: Callable[..., Nested],
    merge_fun: str | Callable[[Model, Model], Model] = "concatenate",
    *,
    mask: Model | None = None,
    axis: int = 1,
    name: str | None = None,
) -> Nested:
    """A sequence run in both directions by layers of their own, the results joined leaf by leaf.

    Of the second direction's results those that have the rank of x, and its size along `axis`, are turned back.

    Args:
        x: `[batch, time, ...]`.
        forward_fun: builds one direction from x: a model, or a nested tuple or dict of models such as `lstm` returns.
            It is called twice, so that each direction has its own parameters. Layers it names get the direction
            behind their name (`enc_forward`, `enc_backward`).
        merge_fun: `concatenate` (the last axis), `add`, `subtract`, `multiply`, or a function that builds a model from
            the two.
        mask: a mask of the sequence; `forward_fun` is then called with `(x, mask)`, both reversed the second time.
        name: put in front of all names, `<name>_forward_lstm_0`.
    Returns: what `forward_fun` returns, merged.
    Raises: `OptionError` for an unknown merge, `GraphError` when forward_fun returns something else.
    Source: Axon 0.9 bidirectional (before, both directions shared one set of parameters).
    """
    if isinstance(merge_fun, str) and merge_fun not in _MERGES:
        raise OptionError(f"bidirectional: expected merge_fun to be one of {', '.join(_MERGES)}, got {merge_fun!r}")
    merge = _MERGES[merge_fun] if isinstance(merge_fun, str) else merge_fun
    sources = [x] if mask is None else [x, mask]
    forward = forward_fun(*sources)
    backward = forward_fun(*(reverse(source, axis=axis) for source in sources))
    ours, theirs = (dict.fromkeys(post_order(*_nodes(nested))) for nested in (forward, backward))
    forward = _rename(forward, [node for node in ours if node not in theirs], "forward", name)
    backward = _rename(backward, [node for node in theirs if node not in ours], "backward", name)
    return _map(lambda first, second: merge(first, reverse(second, like=x, axis=axis)), forward, backward)


def _map(function: Callable[..., Model], nested: Nested, *others: Nested) -> Nested:
    """`function` at every leaf of nested values of one structure."""
    if isinstance(nested, Mapping):
        return {key: _map(function, item, *(other[key] for other in others)) for key, item in nested.items()}
    if isinstance(nested, tuple | list):
        return tuple(_map(function, *items) for items in zip(nested, *others, strict=True))
    if not isinstance(getattr(nested, "node", None), Node):
        raise GraphError(f"bidirectional: expected forward_fun to return models, got {type(nested).__name__}")
    return function(nested, *others)


def _nodes(nested: Nested) -> list[Node]:
    found: list[Node] = []

    def note(model: Model) -> Model:
        found.append(model.node)
        return model

    _map(note, nested)
    return found


def _rename(nested: Nested, own: Sequence[Node], direction: str, name: str | None) -> Nested:
    """The same models with the names of one direction's own nodes told apart from the other's."""
    counts: Counter[str] = Counter()
    copies: dict[Node, Node] = {}
    for node in own:
        label = node.name
        if name is not None and not callable(label):
            label = f"{name}_{direction}_{label or f'{node.op.name}_{counts[node.op.name]}'}"
        elif isinstance(label, str):
            label = f"{label}_{direction}"
        counts[node.op.name] += 1
        copies[node] = replace(node, inputs=tuple(copies.get(parent, parent) for parent in node.inputs), name=label)
    return _map(lambda model: type(model)(copies.get(model.node, model.node)), nested)


SINUSOIDAL_POSITION = Op(
    "sinusoidal_position",
    apply=F.sinusoidal_position,
    check=F.check_sinusoidal_position,
    options={"base": options.number(1)},
    apply_options={"base": "base"},
)


def sinusoidal_position(x: Model, *, base: float = 10000.0, name: Namer = None) -> Model:
    r"""Add fixed sines and cosines of the position: $\sin(p / base^{2i / size})$ at $2i$, its cosine at $2i + 1$.

    Args:
        x: `[batch, time, size]`, size even.
    Returns: the shape of x. Raises: at build `ShapeError`.
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    return extend(SINUSOIDAL_POSITION, [x], {"base": base}, name)


def _learned_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    def shape(x: Shape) -> Shape:
        return (values["max_length"], x[-1])

    return (ParamSpec("kernel", shape, values["kernel_initializer"]),)


LEARNED_POSITION = Op(
    "learned_position",
    apply=lambda x, *, kernel, max_length: F.learned_position(x, kernel),
    params=_learned_params,
    check=lambda x, *, max_length: F.check_learned_position(x, (max_length, x[-1] if x else 0)),
    options={"max_length": options.positive, "kernel_initializer": options.initializer},
    apply_options={"max_length": "max_length"},
)


def learned_position(x: Model, max_length: int, *, kernel_initializer: Any = "uniform", name: Namer = None) -> Model:
    """Add a trained vector per position: an embedding of the positions.

    Args:
        x: `[batch, time, size]`, time at most `max_length`.
    Returns: the shape of x. Parameters: kernel `[max_length, size]`. Raises: at build `ShapeError`.
    Source: Gehring et al. 2017, arXiv:1705.03122.
    """
    return extend(LEARNED_POSITION, [x], {"max_length": max_length, "kernel_initializer": kernel_initializer}, name)


ROTARY_EMBEDDING = Op(
    "rotary_embedding",
    apply=F.rotary_embedding,
    check=F.check_rotary_embedding,
    options={"base": options.number(1)},
    apply_options={"base": "base"},
)


def rotary_embedding(x: Model, *, base: float = 10000.0, name: Namer = None) -> Model:
    """Rotate pairs of features (i of each half) by angles in proportion to the position.

    Args:
        x: queries or keys, `[batch, time, heads, size]`, size even.
    Returns: the shape of x. Raises: at build `ShapeError`.
    Source: Su et al. 2021, arXiv:2104.09864, in the layout of GPT-NeoX; see `functional.rotary_embedding`.
    """
    return extend(ROTARY_EMBEDDING, [x], {"base": base}, name)
