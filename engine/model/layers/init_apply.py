"""Modules of other libraries as layers: any pair of pure functions `init` and `apply`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from engine.errors import GraphError
from engine.model.graph import JointInitializer, Namer, ParamSpec
from engine.model.layers.special import layer
from engine.model.state import flatten
from engine.precision import name_of

if TYPE_CHECKING:
    from engine.model.model import Model

_OPEN_SIZES = (1, 32)
"""What stands for an open size when parameters are made; the larger where the smaller is too small for a window."""


def layer_from_init_apply(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    inputs: Model | Sequence[Model],
    *,
    is_state: Callable[[str], bool] = lambda path: False,
    passes_mode: bool = False,
    row_wise: bool = False,
    op_name: str = "module",
    name: Namer = None,
    **options: Any,
) -> Model:
    """A layer from a pair of pure functions, as Haiku, Flax and Equinox give them.

    Args:
        init: `init(key, *inputs) -> params`, params any pytree of arrays; called with zeros.
        apply: `apply(params, *inputs, **options) -> output`, an array or tuples and dicts of arrays.
        inputs: one model or several, of declared shapes.
        is_state: which leaves, by their dotted path, gradients do not reach; those that are no floats never are.
        passes_mode: whether `apply` gets `mode` (`train` or `inference`) too.
        row_wise, op_name, name: as in `layer`.
    Returns: the model that ends in the layer. Its parameters are named by their paths in the tree, and drawn by one
        call of `init` with the layer's key.
    Raises: `GraphError` for inputs without declared shapes, or a leaf that is no array.
    Example:
        >>> module = flax.linen.Dense(10)
        >>> layer_from_init_apply(module.init, module.apply, input("x", shape=(None, 784)))
    """
    models = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    drawn, shapes = _shapes(init, models)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = _names([path for path, _ in leaves])
    specs = [
        ParamSpec(path, _fixed(leaf.shape), JointInitializer(drawn, i), _kind(path, leaf, is_state), _dtype(path, leaf))
        for i, (path, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
    ]
    roots = {path.split(".")[0] for path in names}

    def function(*values: Any, **keywords: Any) -> Any:
        found = dict(flatten({root: keywords.pop(root) for root in roots}))
        return apply(jax.tree.unflatten(tree, [found[path] for path in names]), *values, **keywords)

    return layer(
        function,
        models,
        params=specs,
        passes_mode=passes_mode,
        row_wise=row_wise,
        op_name=op_name,
        name=name,
        **options,
    )


def _shapes(init: Callable[..., Any], models: Sequence[Model]) -> tuple[Callable[[Any], list[Any]], Any]:
    """`key -> leaves`, and the abstract tree of parameters."""
    from engine.model.block import open_shapes
    from engine.model.layers.basics import container

    declared = open_shapes(container(tuple(models)))
    failure: Exception | None = None
    for size in _OPEN_SIZES:
        draw = _Draw(init, jax.tree.map(lambda leaf, size=size: _closed(leaf, size), declared))
        try:
            return draw, jax.eval_shape(draw.tree, jax.random.key(0))
        except Exception as error:
            # A module may fail with anything on a size it cannot take.
            failure = error
    raise GraphError(f"layer_from_init_apply: expected init to work on inputs {declared}, got {failure!r}") from failure


@dataclass(frozen=True, slots=True)
class _Draw:
    init: Callable[..., Any]
    inputs: tuple[Any, ...]

    def tree(self, key: jax.Array) -> Any:
        return self.init(key, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.inputs))

    def __call__(self, key: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(self.tree(key))


def _closed(leaf: Any, size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(size if n is None else n for n in leaf.shape), leaf.dtype)  # type: ignore[no-untyped-call]


def _fixed(shape: tuple[int, ...]) -> Callable[..., tuple[int, ...]]:
    return lambda *_: shape


def _kind(path: str, leaf: Any, is_state: Callable[[str], bool]) -> Any:
    return "parameter" if jnp.issubdtype(leaf.dtype, jnp.floating) and not is_state(path) else "state"


def _dtype(path: str, leaf: Any) -> str:
    try:
        return name_of(leaf.dtype)
    except TypeError as error:
        raise GraphError(f"layer_from_init_apply: parameter {path!r}: {error}") from None


def _names(paths: Sequence[Any]) -> list[str]:
    """A dotted name per leaf of a tree, each part valid, all distinct."""
    taken: dict[str, None] = {}
    for path in paths:
        base = name = ".".join(_part(key) for key in path) or "value"
        count = 1
        while name in taken or any(other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in taken):
            name, count = f"{base}_{count}", count + 1
        taken[name] = None
    return list(taken)


def _part(key: Any) -> str:
    """One step of a path as a name: `mlp/~/linear_0` becomes `mlp_linear_0`, the index 0 becomes `_0`."""
    text = re.sub(r"[^A-Za-z0-9-]+", "_", jax.tree_util.keystr((key,), simple=True)).strip("_")[:100]
    return text if re.match(r"[A-Za-z]", text) else f"_{text}"
