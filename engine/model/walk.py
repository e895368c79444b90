"""Running a graph: its nodes in a fixed order, blocks within it, and what each layer is given.

Prediction, initialisation and shape inference are the same walk with other sources of parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, EngineError, GraphError, ShapeError, StateError
from engine.functional.rows import Rows
from engine.functional.stateful import StatefulOutput
from engine.model.block import BLOCK
from engine.model.graph import Mode, Node, ParamSpec, owners
from engine.model.hooks import functions_for, report, report_gradient
from engine.model.layers.basics import as_structure
from engine.model.model import Model
from engine.model.padding import padding_reason
from engine.model.state import ModelState, Tree, branch, flatten, leaf_at, unflatten
from engine.precision import NO_CAST, cast, dtype_of, name_of

MISSING = None
"""The value of an absent optional input."""
Inputs = Any
"""A dict of arrays by input name, or a bare array for a model with one input."""
ParamSource = Callable[[str, tuple[ParamSpec, ...], tuple[Any, ...]], dict[str, Any]]
"""Parameters of the layer at a path, for its specifications and input shapes, by their paths within the layer."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What a walk sees of a node: abstract inputs, output and parameters (name -> shape).

    `name` is its path: layers of a block have the block's name in front.
    """

    name: str
    node: Node
    inputs: tuple[Any, ...]
    output: Any
    params: Mapping[str, jax.ShapeDtypeStruct]

    def specs(self) -> list[ParamSpec]:
        """The specifications of its parameters; none where the layer is passed over for want of an optional input."""
        return [spec for spec in self.node.specs() if spec.name in self.params]

    def trained(self) -> list[str]:
        """Names of the parameters that gradients reach; the others are state."""
        return [spec.name for spec in self.specs() if spec.kind == "parameter"]


def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A value that has a shape and a dtype only."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def read_state(state: ModelState) -> ParamSource:
    """Parameters and state of each layer out of a model state; raises `StateError` or `ShapeError` where they lack."""
    ties = {tie.destination: tie for tie in state.ties}

    def read(path: str, specs: tuple[ParamSpec, ...], shapes: tuple[Any, ...]) -> dict[str, Any]:
        if not specs:
            return {}
        layer = dict(flatten(branch(state.parameters, path))) | dict(flatten(branch(state.state, path)))
        for spec in specs:
            if ties and (tie := ties.get(f"{path}.{spec.name}")) is not None:
                layer[spec.name] = tie.value(leaf_at(state.parameters, tie.source))
            if spec.name not in layer:
                got = ", ".join(layer) or "none"
                raise StateError(f"layer {path!r}: expected {spec.kind} {spec.name!r}, got {got}")
            expected, shape = spec.shape(*shapes), jnp.shape(layer[spec.name])
            if expected != shape:
                raise ShapeError(f"layer {path!r}: expected {spec.name} of shape {expected}, got {shape}")
        return {spec.name: layer[spec.name] for spec in specs}

    return read


@dataclass
class Observer:
    """What a walk that only works out shapes has found, layer by layer.

    A further call of a block with values of the same shapes is not traced again: the values of the first one stand for
    its own. `limit_s` bounds the CPU time of the walk in its thread; where it ends `GraphError` is raised.
    """

    limit_s: float = math.inf
    layers: list[LayerInfo] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    calls: dict[Any, tuple[Any, Tree, int, int]] = field(default_factory=dict)
    started_s: float = field(default_factory=time.thread_time)

    def note(self, layer: LayerInfo) -> None:
        """Add a layer. A further call of a block brings no parameters of its own."""
        self.layers.append(layer if layer.name not in self.seen else replace(layer, params={}))
        self.seen.add(layer.name)
        if time.thread_time() - self.started_s > self.limit_s:
            raise GraphError(f"expected shapes that are known within {self.limit_s:g} s, got more work")

    def call(self, path: str, arguments: tuple[Any, ...], run: Callable[..., tuple[Any, Tree]]) -> tuple[Any, Tree]:
        """The value and changed state of a call of the block whose parameters stand at `path`."""
        leaves, structure = jax.tree.flatten(arguments)
        key = (path, structure, *map(jax.typeof, leaves))
        if key in self.calls:
            value, changed, start, end = self.calls[key]
            for layer in self.layers[start:end]:
                self.note(layer)
            return value, changed
        start = len(self.layers)
        value, changed = run(*arguments)
        self.calls[key] = value, changed, start, len(self.layers)
        return value, changed


class Walk:
    """The fixed order of a graph's nodes and how to run it."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self.mode = mode
        names = model.names()
        self.nodes = list(names.items())
        self.inputs = model.inputs()
        owner = owners(names)
        index = {node: i for i, node in enumerate(names)}
        self._sources = [tuple(index[parent] for parent in node.inputs) for node in names]
        self._batched: list[bool] = []
        for node, sources in zip(names, self._sources, strict=True):
            self._batched.append(node.op.name == "input" or any(self._batched[source] for source in sources))
        self._arguments = [node.op.arguments(node.options) for node in names]
        self._specs = [node.specs() for node in names]
        self._passes = [_passes(node, mode) for node in names]
        self._plain = [not node.hooks and node.policy == NO_CAST for node in names]
        self._owners = [owner[node] for node in names]
        inner = {node.options["block"]: None for node in names if node.op is BLOCK}
        walks = {block: Walk(block.model, mode) for block in inner}
        self._block_inputs = [node.options["block"].inputs if node.op is BLOCK else () for node in names]
        self._inner = [walks[node.options["block"]] if node.op is BLOCK else None for node in names]

    def bind(self, inputs: Inputs) -> dict[str, Any]:
        """Values by input name, checked against the declared shapes and dtypes."""
        given = by_name(self.inputs, inputs)
        bound = {}
        for name, node in self.inputs.items():
            if name in given:
                bound[name] = _bind_one(name, node, given[name])
            elif not node.options["optional"]:
                raise GraphError(f"input {name!r}: expected a value, got inputs {', '.join(given) or 'none'}")
        return bound

    def run(
        self,
        inputs: dict[str, Any],
        params: ParamSource,
        rows: Rows = None,
        observe: Observer | None = None,
        prefix: str = "",
    ) -> tuple[Any, Tree]:
        """Values node by node; returns the last one and the layer state that changed.

        `rows` are the weights of the batch's rows. Raises `GraphError` where a layer cannot leave padding out.
        """
        values: list[Any] = []
        updates: Tree = {}
        for index, (node, name) in enumerate(self.nodes):
            arguments = tuple(values[source] for source in self._sources[index])
            used: dict[str, Any] = {}
            if node.op.name == "input":
                value: Any = inputs.get(name, MISSING)
                if node.hooks and value is not MISSING:
                    value = self._report(node, value)
            else:
                apply = self._apply if self._plain[index] else self._apply_with
                try:
                    value, used, changed = apply(index, arguments, params, rows, observe, prefix)
                except Exception as error:
                    raise _located(error, f"{prefix}{name}", node, arguments) from error
                if changed:
                    updates[self._owners[index]] = changed
            values.append(value)
            if observe is not None:
                observe.note(_info(f"{prefix}{name}", node, arguments, value, used))
        if values[-1] is MISSING:
            raise self._no_output([name for name in self.inputs if name not in inputs])
        return values[-1], updates

    def _no_output(self, absent: list[str]) -> GraphError:
        if absent:
            return GraphError(f"expected an output, got none because of the missing inputs {', '.join(absent)}")
        node, name = self.nodes[-1]
        return GraphError(
            f"expected an output, got None from layer {name!r} ({node.op.name}, built at {node.built_at})"
        )

    def _apply(
        self,
        index: int,
        arguments: tuple[Any, ...],
        params: ParamSource,
        rows: Rows,
        observe: Observer | None,
        prefix: str,
    ) -> tuple[Any, dict[str, Any], Tree]:
        """A node's value, the parameters it used, and its changed state."""
        node, given, path = self.nodes[index][0], self._arguments[index], f"{prefix}{self._owners[index]}"
        op = node.op
        if not op.takes_missing and any(a is MISSING for a in arguments):
            return MISSING, {}, {}
        rows = rows if self._batched[index] else None
        inner = self._inner[index]
        if inner is not None:

            def run(*values: Any) -> tuple[Any, Tree]:
                given = dict(zip(self._block_inputs[index], values, strict=True))
                return inner.run(given, params, rows, observe, f"{path}.")

            if observe is not None:
                value, changed = observe.call(path, arguments, run)
            else:
                value, changed = (jax.checkpoint(run) if node.options["block"].remat else run)(*arguments)
            return value, {}, changed
        shapes = tuple(jnp.shape(a) if isinstance(a, jax.Array) else () for a in arguments)
        op.check(*shapes, **given)
        used = params(path, self._specs[index], shapes)
        if self._passes[index]:
            return arguments[0], used, {}
        more: dict[str, Any] = {"mode": self.mode} if op.has_modes else {}
        if rows is not None:
            more |= self._row_argument(index, shapes, rows)
        value = op.apply(*arguments, **unflatten(used), **given, **more)
        return (value.output, used, value.state) if isinstance(value, StatefulOutput) else (value, used, {})

    def _apply_with(
        self,
        index: int,
        arguments: tuple[Any, ...],
        params: ParamSource,
        rows: Rows,
        observe: Observer | None,
        prefix: str,
    ) -> tuple[Any, dict[str, Any], Tree]:
        """`_apply` with the node's policy and hooks around it."""
        node = self.nodes[index][0]
        # A block's layers have policies of their own, and a layer that is passed over computes nothing.
        policy = NO_CAST if node.op is BLOCK else node.policy
        compute = NO_CAST if self._passes[index] else policy
        arguments = cast(compute, arguments, "compute")
        report(functions_for(node.hooks, "pre_forward", self.mode), *(a for a in arguments if a is not MISSING))
        used: dict[str, Any] = {}

        def in_compute(path: str, specs: tuple[ParamSpec, ...], shapes: tuple[Any, ...]) -> dict[str, Any]:
            used.update(params(path, specs, shapes))
            return used | {s.name: cast(compute, used[s.name], "compute") for s in specs if s.kind == "parameter"}

        source = params if node.op is BLOCK else in_compute
        value, _, changed = self._apply(index, arguments, source, rows, observe, prefix)
        if value is not MISSING:
            value = cast(policy, self._report(node, value), "output")
        return value, used, changed

    def _report(self, node: Node, value: Any) -> Any:
        """A node's value, shown to its hooks."""
        report(functions_for(node.hooks, "forward", self.mode), value)
        return report_gradient(functions_for(node.hooks, "backward", self.mode), value)

    def _row_argument(self, index: int, shapes: tuple[Any, ...], rows: jax.Array) -> dict[str, Any]:
        """The weights for an op that takes them; `GraphError` for one that does not and lets rows meet."""
        node, _ = self.nodes[index]
        if node.op.takes_rows:
            return {"rows": rows} if self.mode == "train" else {}
        reason = padding_reason(node, shapes, [self._batched[source] for source in self._sources[index]])
        if reason is not None:
            raise GraphError(f"{node.op.name}: expected a batch without rows of padding, got row weights, but {reason}")
        return {}


def _passes(node: Node, mode: Mode) -> bool:
    """Whether a layer hands its input on in this mode."""
    return (node.op.train_only and mode == "inference") or (node.op.inference_only and mode == "train")


def _located(error: Exception, name: str, node: Node, arguments: tuple[Any, ...]) -> Exception:
    """The same kind of error with the place in front, so that one line says it all."""
    shapes = [getattr(a, "shape", None) for a in arguments]
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


def by_name(inputs: Mapping[str, Node], given: Inputs) -> dict[str, Any]:
    """Values by input name, dataclass instances as dicts; a bare value belongs to the only input."""
    given = as_structure(given)
    if isinstance(given, Mapping):
        return dict(given)
    if len(inputs) != 1:
        raise GraphError(f"expected a dict with the inputs {', '.join(inputs)}, got a bare {type(given).__name__}")
    return {next(iter(inputs)): given}


def input_dtype(name: str, node: Node, got: np.dtype) -> np.dtype:
    """The declared dtype; a value is cast to it, but a float is never taken for an integer."""
    declared = dtype_of(node.options["dtype"])
    if declared != got and jnp.issubdtype(got, jnp.floating) and not jnp.issubdtype(declared, jnp.floating):
        raise DtypeError(f"input {name!r}: expected dtype {name_of(declared)}, got {got}")
    return declared


def abstract_input(name: str, node: Node, value: Any) -> Any:
    """The shape and declared dtype of an input's value, leaf by leaf for a structured one."""
    if isinstance(value, Mapping | tuple):
        return jax.tree.map(lambda leaf: abstract(np.shape(leaf), jnp.result_type(leaf)), value)
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    return abstract(np.shape(value), input_dtype(name, node, np.dtype(dtype)))


def _bind_one(name: str, node: Node, value: Any) -> Any:
    if isinstance(value, list):
        value = np.asarray(value)
    if isinstance(value, Mapping | tuple):
        if node.options["shape"] is not None:
            raise ShapeError(f"input {name!r}: expected one array, got a {type(value).__name__}")
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf), value)
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
    target = input_dtype(name, node, dtype)
    return value if isinstance(value, jax.ShapeDtypeStruct) else jnp.asarray(value, target)
