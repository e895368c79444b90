"""From a graph to two pure functions: one makes the state, one predicts.

Both walk the nodes in a fixed order; shapes come from tracing that same walk, so there is one rule for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, EngineError, GraphError, OptionError, ShapeError, StateError
from engine.functional.initializers import from_spec
from engine.functional.stateful import StatefulOutput
from engine.model.graph import Mode, Node, ParamSpec
from engine.model.model import Model
from engine.model.state import ModelState, Tree, flatten, unflatten
from engine.precision import dtype_of, is_wide, name_of

MISSING = None
"""The value of an absent optional input."""
Inputs = Any
"""A dict of arrays by input name, or a bare array for a model with one input."""
Seed = Any
"""An integer or a JAX random key."""


class TrainOutput(NamedTuple):
    """What a training prediction gives: the prediction and the changed layer state `{layer: {name: array}}`."""

    prediction: Any
    state: Tree


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What shape inference finds out about a node: abstract inputs, output and parameters (name -> shape)."""

    name: str
    node: Node
    inputs: tuple[Any, ...]
    output: Any
    params: Mapping[str, jax.ShapeDtypeStruct]

    def specs(self) -> list[ParamSpec]:
        """The specifications of its parameters; none where the layer is passed over for want of an optional input."""
        return [spec for spec in self.node.op.params(self.node.options) if spec.name in self.params]

    def trained(self) -> list[str]:
        """Names of the parameters that gradients reach; the others are state."""
        return [spec.name for spec in self.specs() if spec.kind == "parameter"]


def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A value that has a shape and a dtype only."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def build(
    model: Model, *, mode: Mode = "inference"
) -> tuple[Callable[..., ModelState], Callable[[ModelState, Inputs], Any]]:
    """Turn a graph into `(init_fn, predict_fn)`, both pure and fit for jit, grad and vmap.

    `init_fn(template, seed=0)` makes the state for inputs like `template` (arrays or `jax.ShapeDtypeStruct`, by input
    name; None takes the declared shapes with 1 for open sizes). `predict_fn(state, inputs)` gives the prediction; in
    mode `train` a `TrainOutput`.

    Raises: `GraphError` for a malformed graph, `OptionError` for an unknown mode; the functions raise `ShapeError`,
        `DtypeError` and `StateError` that name layer, op, expected and got.
    Source: Axon.build/2.
    """
    if mode not in ("train", "inference"):
        raise OptionError(f"build: expected mode 'train' or 'inference', got {mode!r}")
    walk = _Walk(model, mode)

    def init_fn(template: Inputs = None, seed: Seed = 0) -> ModelState:
        return _initialise(model, template, seed)

    def predict_fn(state: ModelState, inputs: Inputs) -> Any:
        with x64(model):
            prediction, updates = walk.run(walk.bind(inputs), walk.reader(state))
        return prediction if mode == "inference" else TrainOutput(prediction, updates)

    return init_fn, predict_fn


def needs_x64(model: Model) -> bool:
    """Whether any input, constant or parameter of the graph is 64 bits wide."""
    for node in model.nodes():
        if node.op.name == "input" and is_wide(dtype_of(node.options["dtype"])):
            return True
        if node.op.name == "constant" and is_wide(node.options["value"].dtype):
            return True
    return False


@contextmanager
def x64(model: Model) -> Iterator[None]:
    """JAX's 64-bit mode as the graph needs it: on for a wide graph, off for any other."""
    with jax.enable_x64(needs_x64(model)):
        yield


def infer(model: Model, template: Inputs = None) -> list[LayerInfo]:
    """Shapes of every node and parameter for inputs like `template`; computes nothing.

    Raises: `ShapeError`, `DtypeError` naming layer, op, expected and got.
    """
    walk = _Walk(model, "inference")
    found: list[LayerInfo] = []

    def trace(values: dict[str, Any]) -> Any:
        def params(index: int, shapes: tuple[Any, ...]) -> dict[str, jax.Array]:
            return {s.name: jnp.zeros(s.shape(*shapes), _param_dtype(s)) for s in walk.specs[index]}

        return walk.run(values, params, observe=found.append)[0]

    with x64(model):
        jax.eval_shape(trace, walk.bind(template_of(model, template)))
    return found


def template_of(model: Model, template: Inputs = None, *, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract inputs by name; for None the declared shapes, with `batch` for an open first size and 1 for others."""
    given = _by_name(model.inputs(), template) if template is not None else {}
    result = {}
    for name, node in model.inputs().items():
        if name in given:
            value = given[name]
            dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
            result[name] = abstract(np.shape(value), _input_dtype(name, node, np.dtype(dtype)))
        elif template is None and node.options["shape"] is not None:
            sizes = tuple(
                (batch if axis == 0 else 1) if size is None else size for axis, size in enumerate(node.options["shape"])
            )
            result[name] = abstract(sizes, dtype_of(node.options["dtype"]))
        elif not node.options["optional"]:
            raise ShapeError(f"input {name!r}: expected a template, or a declared shape, got neither")
    return result


def _initialise(model: Model, template: Inputs, seed: Seed) -> ModelState:
    layers = infer(model, template)
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed, impl="threefry2x32")

    def draw(key: jax.Array) -> tuple[Tree, Tree]:
        trees: dict[str, dict[str, jax.Array]] = {"parameter": {}, "state": {}}
        for layer in layers:
            for spec in layer.specs():
                path = f"{layer.name}.{spec.name}"
                shape = layer.params[spec.name].shape
                trees[spec.kind][path] = _draw(spec, shape, jax.random.fold_in(key, path_hash(path)))
        return unflatten(trees["parameter"]), unflatten(trees["state"])

    with x64(model):
        return ModelState(*jax.jit(draw)(key))


def path_hash(path: str) -> int:
    """First 32 bits of the md5 of a parameter's path: its key depends on its name, not on its place in the graph."""
    return int.from_bytes(hashlib.md5(path.encode(), usedforsecurity=False).digest()[:4], "big")


def _draw(spec: ParamSpec, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    if spec.initializer == "key":
        return jax.random.key_data(key)
    return from_spec(spec.initializer, layout=spec.layout)(shape, _param_dtype(spec), key)


def _param_dtype(spec: ParamSpec) -> np.dtype:
    return dtype_of(spec.dtype or "f32")


ParamSource = Callable[[int, tuple[Any, ...]], dict[str, Any]]
"""Parameters of the node with this index for these input shapes, by their paths within the layer."""


class _Walk:
    """The fixed order of a graph's nodes and how to run it."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self.mode = mode
        self.names = list(model.names().items())
        self.inputs = model.inputs()
        index = {node: i for i, (node, _) in enumerate(self.names)}
        self.sources = [tuple(index[parent] for parent in node.inputs) for node, _ in self.names]
        self.arguments = [node.op.arguments(node.options) for node, _ in self.names]
        self.specs = [node.op.params(node.options) for node, _ in self.names]

    def bind(self, inputs: Inputs) -> dict[str, Any]:
        """Values by input name, checked against the declared shapes and dtypes."""
        given = _by_name(self.inputs, inputs)
        bound = {}
        for name, node in self.inputs.items():
            if name in given:
                bound[name] = _bind_one(name, node, given[name])
            elif not node.options["optional"]:
                raise GraphError(f"input {name!r}: expected a value, got inputs {', '.join(given) or 'none'}")
        return bound

    def reader(self, state: ModelState) -> ParamSource:
        """Parameters and state of each layer, checked to be there."""

        def read(index: int, shapes: tuple[Any, ...]) -> dict[str, Any]:
            name = self.names[index][1]
            layer = dict(flatten(state.layer(name)))
            for spec in self.specs[index]:
                if spec.name not in layer:
                    raise StateError(
                        f"layer {name!r}: expected {spec.kind} {spec.name!r}, got {', '.join(layer) or 'none'}"
                    )
                expected, got = spec.shape(*shapes), jnp.shape(layer[spec.name])
                if expected != got:
                    raise ShapeError(f"layer {name!r}: expected {spec.name} of shape {expected}, got {got}")
            return {spec.name: layer[spec.name] for spec in self.specs[index]}

        return read

    def run(
        self, inputs: dict[str, Any], params: ParamSource, observe: Callable[[LayerInfo], None] | None = None
    ) -> tuple[Any, Tree]:
        """Values node by node; returns the last one and the layer state that changed."""
        values: list[Any] = []
        updates: Tree = {}
        for index, (node, name) in enumerate(self.names):
            if node.op.name == "input":
                value: Any = inputs.get(name, MISSING)
                used: dict[str, Any] = {}
                arguments: tuple[Any, ...] = ()
            else:
                arguments = tuple(values[source] for source in self.sources[index])
                value, used = self._apply(index, arguments, params, updates)
            values.append(value)
            if observe is not None:
                observe(_info(name, node, arguments, value, used))
        if values[-1] is MISSING:
            absent = [name for name in self.inputs if name not in inputs]
            raise GraphError(f"expected an output, got none because of the missing inputs {', '.join(absent)}")
        return values[-1], updates

    def _apply(
        self, index: int, arguments: tuple[Any, ...], params: ParamSource, updates: Tree
    ) -> tuple[Any, dict[str, Any]]:
        node, name = self.names[index]
        op = node.op
        try:
            shapes = tuple(jnp.shape(a) if isinstance(a, jax.Array) else () for a in arguments)
            if any(a is MISSING for a in arguments):
                return op.apply(*arguments, **self.arguments[index]) if op.takes_missing else MISSING, {}
            op.check(*shapes, **self.arguments[index])
            used = params(index, shapes)
            if (op.train_only and self.mode == "inference") or (op.inference_only and self.mode == "train"):
                return arguments[0], used
            mode = {"mode": self.mode} if op.has_modes else {}
            value = op.apply(*arguments, **unflatten(used), **self.arguments[index], **mode)
        except Exception as error:
            raise _located(error, name, node, [getattr(a, "shape", None) for a in arguments]) from error
        if isinstance(value, StatefulOutput):
            updates[name] = value.state
            value = value.output
        return value, used


def _located(error: Exception, name: str, node: Node, shapes: list[Any]) -> Exception:
    """The same kind of error with the place in front, so that one line says it all."""
    where = f"in layer {name!r} ({node.op.name}, built at {node.built_at}), input shapes {shapes}"
    if isinstance(error, EngineError):
        return type(error)(f"{error}; {where}")
    if isinstance(error, TypeError | ValueError):
        return ShapeError(f"{node.op.name}: {error}; {where}")
    error.add_note(where)
    return error


def _info(name: str, node: Node, arguments: tuple[Any, ...], value: Any, used: dict[str, Any]) -> LayerInfo:
    def abstract_tree(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: abstract(jnp.shape(leaf), jnp.result_type(leaf)), tree)

    return LayerInfo(name, node, abstract_tree(arguments), abstract_tree(value), abstract_tree(used))


def _by_name(inputs: Mapping[str, Node], given: Inputs) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    if len(inputs) != 1:
        raise GraphError(f"expected a dict with the inputs {', '.join(inputs)}, got a bare {type(given).__name__}")
    return {next(iter(inputs)): given}


def _input_dtype(name: str, node: Node, got: np.dtype) -> np.dtype:
    """The declared dtype; a value is cast to it, but a float is never taken for an integer."""
    declared = dtype_of(node.options["dtype"])
    if declared != got and jnp.issubdtype(got, jnp.floating) and not jnp.issubdtype(declared, jnp.floating):
        raise DtypeError(f"input {name!r}: expected dtype {name_of(declared)}, got {got}")
    return declared


def _bind_one(name: str, node: Node, value: Any) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        shape, dtype = value.shape, np.dtype(value.dtype)
    else:
        shape, dtype = jnp.shape(value), np.dtype(getattr(value, "dtype", None) or np.asarray(value).dtype)
    declared = node.options["shape"]
    fits = declared is None or (
        len(declared) == len(shape) and all(want in (None, got) for want, got in zip(declared, shape, strict=True))
    )
    if not fits:
        raise ShapeError(f"input {name!r}: expected shape {declared}, got {tuple(shape)}")
    target = _input_dtype(name, node, dtype)
    return value if isinstance(value, jax.ShapeDtypeStruct) else jnp.asarray(value, target)
