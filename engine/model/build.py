"""From a graph to two pure functions: one makes the state, one predicts.

Both walk the nodes in a fixed order; shapes come from tracing that same walk, so there is one rule for both.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, EngineError, GraphError, OptionError, ShapeError, StateError
from engine.functional.initializers import from_spec
from engine.functional.rows import Rows
from engine.model.block import BLOCK
from engine.model.graph import JointInitializer, Mode, ParamSpec
from engine.model.hooks import functions_for, report
from engine.model.model import Model
from engine.model.open_sizes import Opened, open_axes
from engine.model.state import ModelState, Tree, flatten, near, unflatten
from engine.model.walk import Inputs, LayerInfo, Observer, Walk, abstract, abstract_input, by_name, read_state
from engine.precision import dtype_of, is_wide, name_of

Seed = Any
"""An integer or a JAX random key."""
PartialState = ModelState | Mapping[str, Any] | None
"""Some of a model's leaves: a model state, or a nested dict in which parameters and layer state may be mixed."""


_TRIED = tuple(2**power for power in range(11))
"""Sizes tried for open axes that nobody declared."""


class TrainOutput(NamedTuple):
    """What a training prediction gives: the prediction and the changed layer state `{layer: {name: array}}`."""

    prediction: Any
    state: Tree


def build(model: Model, *, mode: Mode = "inference") -> tuple[Callable[..., ModelState], Callable[..., Any]]:
    """Turn a graph into `(init_fn, predict_fn)`, both pure and fit for jit, grad and vmap.

    `init_fn(template, seed=0, state=None)` makes the state for inputs like `template` (arrays or
    `jax.ShapeDtypeStruct`, by input name; None takes the declared shapes with 1 row and `workable` sizes). A
    `ModelState` or a nested dict as `state` gives some of the leaves, and its frozen marks and ties; the others are
    initialised as they would be without. Floats are cast among themselves, integers to floats.

    `predict_fn(state, inputs, rows=None)` gives the prediction; in mode `train` a `TrainOutput`. `rows` are weights
    `[batch]`, 0 for rows of padding, which batch statistics leave out.

    Raises: `GraphError` for a malformed graph, `OptionError` for an unknown mode; the functions raise `ShapeError`,
        `DtypeError` and `StateError` that name layer, op, expected and got (an unknown path of a given state too), and
        `GraphError` when rows are given and the answer for one depends on others in a layer that does not take them.
    Source: Axon.build/2.
    """
    if mode not in ("train", "inference"):
        raise OptionError(f"build: expected mode 'train' or 'inference', got {mode!r}")
    walk = Walk(model, mode)

    def init_fn(template: Inputs = None, seed: Seed = 0, state: PartialState = None) -> ModelState:
        return _initialise(model, template, seed, state)

    def predict_fn(state: ModelState, inputs: Inputs, rows: Rows = None) -> Any:
        with x64(model):
            prediction, updates = walk.run(walk.bind(inputs), read_state(state), rows)
        return prediction if mode == "inference" else TrainOutput(prediction, updates)

    return init_fn, predict_fn


def needs_x64(model: Model) -> bool:
    """Whether any input, constant, parameter or policy of the graph is 64 bits wide."""
    for node in model.nodes():
        if node.op is BLOCK and needs_x64(node.options["block"].model):
            return True
        if node.op.name == "input" and is_wide(dtype_of(node.options["dtype"])):
            return True
        if node.op.name == "constant" and is_wide(node.options["value"].dtype):
            return True
        if "f64" in (node.policy.compute, node.policy.output) or any(is_wide(_param_dtype(s)) for s in node.specs()):
            return True
    return False


@contextmanager
def x64(model: Model) -> Iterator[None]:
    """JAX's 64-bit mode as the graph needs it: on for a wide graph, off for any other."""
    with jax.enable_x64(needs_x64(model)):
        yield


def infer(
    model: Model, template: Inputs = None, *, mode: Mode = "inference", limit_s: float = math.inf
) -> list[LayerInfo]:
    """Shapes of every node and parameter for inputs like `template`; computes nothing. Sizes may be symbolic.

    Args:
        template: None takes the declared shapes with 1 row and workable sizes, see `workable`.
        limit_s: how much CPU time it may take.
    Raises: `ShapeError`, `DtypeError` naming layer, op, expected and got; `GraphError` when it takes longer.
    """
    if template is None:
        return workable(model, mode=mode, limit_s=limit_s)[1]
    walk = Walk(model, mode)
    observer = Observer(limit_s)

    def trace(values: dict[str, Any]) -> Any:
        def params(path: str, specs: tuple[ParamSpec, ...], shapes: tuple[Any, ...]) -> dict[str, Any]:
            return {spec.name: jnp.zeros(spec.shape(*shapes), _param_dtype(spec)) for spec in specs}

        return walk.run(values, params, observe=observer)[0]

    with x64(model):
        jax.eval_shape(trace, walk.bind(template_of(model, template)))
    return observer.layers


Template = dict[str, jax.ShapeDtypeStruct]


def workable(
    model: Model,
    *,
    batch: int = 1,
    mode: Mode = "inference",
    limit_s: float = math.inf,
    check: Callable[[Template], None] = lambda template: None,
) -> tuple[Template, list[LayerInfo]]:
    """Abstract inputs of the declared shapes that fit the graph, and the shapes that follow.

    Every open axis besides the batch gets the same size, the first of 1, 2, 4 ... 1024 that fits: a window needs more
    than 1. Inputs of an undeclared shape must be optional.

    Args:
        batch: size of an open first axis.
        check: called with each template before it is traced; may raise.
    Raises: as `infer` for the last size tried.
    """
    axes = open_axes(model)
    until_s = time.thread_time() + limit_s
    failure: Exception | None = None
    for size in _TRIED if axes else _TRIED[:1]:
        template = declared_template(model, batch, dict.fromkeys(axes, size))
        left_s = limit_s if failure is None else until_s - time.thread_time()
        if failure is not None and left_s <= 0:
            break
        try:
            check(template)
        except EngineError as error:
            raise failure or error from None
        try:
            return template, infer(model, template, mode=mode, limit_s=left_s)
        except Exception as error:
            # Sizes reach arithmetic in every op: one that is too small may fail in any way.
            failure = error
    assert failure is not None
    raise failure


def declared_template(model: Model, batch: int, opened: Opened) -> Template:
    """Abstract inputs of the declared shapes, with `batch` for an open first size and those of `opened` for others."""
    result = {}
    for name, node in model.inputs().items():
        shape = node.options["shape"]
        if shape is not None:
            sizes = (
                (batch if axis == 0 else opened[name, axis]) if size is None else size
                for axis, size in enumerate(shape)
            )
            result[name] = abstract(tuple(sizes), dtype_of(node.options["dtype"]))
        elif not node.options["optional"]:
            raise ShapeError(f"input {name!r}: expected a template, or a declared shape, got neither")
    return result


def template_of(model: Model, template: Inputs = None, *, batch: int = 1) -> Template:
    """Abstract inputs by name; for None the declared shapes, with `batch` for an open first size.

    Other open sizes are then as in `workable`, which raises where none fits.
    """
    if template is None:
        return workable(model, batch=batch)[0] if open_axes(model) else declared_template(model, batch, {})
    given = by_name(model.inputs(), template)
    result = {}
    for name, node in model.inputs().items():
        if name in given:
            result[name] = abstract_input(name, node, given[name])
        elif not node.options["optional"]:
            raise ShapeError(f"input {name!r}: expected a template, or a declared shape, got neither")
    return result


def _initialise(model: Model, template: Inputs, seed: Seed, state: PartialState) -> ModelState:
    layers = infer(model, template)
    specs = {f"{layer.name}.{spec.name}": (spec, layer.params[spec.name]) for layer in layers for spec in layer.specs()}
    key = seed if isinstance(seed, jax.Array) else jax.random.key(seed, impl="threefry2x32")
    with x64(model):
        known = _partial(specs, state)
        given = dict(flatten(known.parameters))
        tied = {tie.destination for tie in known.ties}
        wanted = [path for path in specs if path not in given and path not in tied]
        given |= _drawn({path: specs[path] for path in wanted}, key)
        _report_made(layers, given)
    trees: dict[str, dict[str, jax.Array]] = {"parameter": {}, "state": {}}
    for path, (spec, _) in specs.items():
        if path not in tied:
            trees[spec.kind][path] = given[path]
    made = ModelState(unflatten(trees["parameter"]), unflatten(trees["state"]), known.frozen, known.ties)
    # Keys in the order in which every JAX transformation returns them.
    ordered: ModelState = jax.tree.map(lambda leaf: leaf, made)
    return ordered


def _report_made(layers: list[LayerInfo], made: Mapping[str, Any]) -> None:
    """Show every layer's parameters to its hooks."""
    for layer in layers:
        if layer.node.hooks:
            paths = {spec.name: f"{layer.name}.{spec.name}" for spec in layer.specs()}
            own = {name: made[path] for name, path in paths.items() if path in made}
            report(functions_for(layer.node.hooks, "initialize"), unflatten(own))


Specs = Mapping[str, tuple[ParamSpec, jax.ShapeDtypeStruct]]


def _partial(specs: Specs, state: PartialState) -> ModelState:
    """The given leaves of a model, checked and cast, all of them under `parameters`; its marks, checked."""
    if not isinstance(state, ModelState):
        if not isinstance(state, Mapping | None):
            raise StateError(f"init: expected a ModelState or nested dicts of arrays, got {type(state).__name__}")
        state = ModelState.new(state or {})
    leaves = [*flatten(state.parameters), *flatten(state.state)]
    marks = [*state.frozen, *(path for tie in state.ties for path in (tie.destination, tie.source))]
    for path in (*(path for path, _ in leaves), *marks):
        if path not in specs:
            raise StateError(f"init: expected a path of the model, such as {near(path, specs)}; got {path!r}")
    for tie in state.ties:
        tie.check(specs[tie.destination][1], specs[tie.source][1])
    given = unflatten({path: _fitting(path, leaf, specs[path][1]) for path, leaf in leaves})
    return ModelState(given, {}, state.frozen, state.ties)


def _fitting(path: str, leaf: Any, expected: jax.ShapeDtypeStruct) -> jax.Array:
    """A given leaf in the model's dtype; raises `ShapeError`, and `DtypeError` for a float in place of an integer."""
    if jnp.shape(leaf) != expected.shape:
        raise ShapeError(f"init: expected {path!r} of shape {expected.shape}, got {jnp.shape(leaf)}")
    if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.issubdtype(expected.dtype, jnp.floating):
        raise DtypeError(f"init: expected {path!r} of dtype {expected.dtype}, got {leaf.dtype}")
    return jnp.asarray(leaf, expected.dtype)


def init(model: Model, template: Inputs = None, *, seed: Seed = 0, state: PartialState = None) -> ModelState:
    """The state of a model: `build`'s `init_fn`, called. Source: Axon.init/4."""
    return build(model)[0](template, seed, state)


def predict(model: Model, state: ModelState, inputs: Inputs, *, mode: Mode = "inference") -> Any:
    """One prediction: `build`'s `predict_fn`, called. Nothing is compiled or kept. Source: Axon.predict/4."""
    return build(model, mode=mode)[1](state, inputs)


def compile(
    model: Model, template: Inputs = None, state: PartialState = None, *, mode: Mode = "inference", seed: Seed = 0
) -> tuple[ModelState, Callable[[ModelState, Inputs], Any]]:
    """The state of a model and its prediction, compiled now for inputs like `template` and for no others.

    Args:
        template, state, seed: as for `build`'s `init_fn`.
    Returns: `(state, predict)`; `predict(state, inputs)` never compiles. States of the same leaves and ties fit,
        whatever is frozen in them.
    Raises: as `build`; `predict` raises `ShapeError` for inputs or leaves of another shape, `GraphError` for other
        inputs, `StateError` for other leaves.
    Source: Axon.compile/4.
    """
    init_fn, predict_fn = build(model, mode=mode)
    walk = Walk(model, mode)
    initial = init_fn(template, seed, state)
    inputs = template_of(model, template)
    with x64(model):
        program = jax.jit(predict_fn).lower(replace(initial, frozen=frozenset()), inputs).compile()
    leaves = _leaves(initial)

    def predict(state: ModelState, values: Inputs) -> Any:
        with x64(model):
            bound = walk.bind(values)
            _check_same("input", inputs, bound)
            _check_same("leaf", leaves, _leaves(state))
            return program(replace(state, frozen=frozenset()), bound)

    return initial, predict


def _leaves(state: ModelState) -> dict[str, Any]:
    found = dict([*flatten(state.parameters), *flatten(state.state)])
    return found | {f"{tie.destination} ({tie.transform or 'value'} of {tie.source})": () for tie in state.ties}


def _check_same(what: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Refuse values for which a program was not compiled."""
    kind, several = (GraphError, "inputs") if what == "input" else (StateError, "leaves")
    if expected.keys() != got.keys():
        raise kind(f"compiled model: expected {several} {', '.join(expected)}; got {', '.join(got) or 'none'}")
    for name, want in expected.items():
        wanted, found = (jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree) for tree in (want, got[name]))
        if wanted != found:
            error = DtypeError if jax.tree.map(jnp.shape, want) == jax.tree.map(jnp.shape, got[name]) else ShapeError
            raise error(
                f"compiled model: {what} {name!r}: expected {_text(want)}, got {_text(got[name])}; compile it again"
            )


def _text(value: Any) -> str:
    leaves = [f"{name_of(leaf.dtype)} {tuple(leaf.shape)}" for leaf in jax.tree.leaves(value)]
    return ", ".join(leaves) or "no arrays"


def path_hash(path: str) -> int:
    """First 32 bits of the md5 of a parameter's path: its key depends on its name, not on its place in the graph."""
    return int.from_bytes(hashlib.md5(path.encode(), usedforsecurity=False).digest()[:4], "big")


def _drawn(specs: Specs, key: jax.Array) -> dict[str, jax.Array]:
    """The values at these paths; parameters that are alike are drawn by one program, which XLA compiles once."""
    programs: dict[Any, Any] = {}
    together: dict[str, Any] = {}
    drawn = {}
    for path, (spec, leaf) in specs.items():
        joint = spec.initializer if isinstance(spec.initializer, JointInitializer) else None
        if joint is None:
            kind = id(spec.initializer) if callable(spec.initializer) else repr(spec.initializer)
            alike = (kind, leaf.shape, leaf.dtype, spec.layout)
            if alike not in programs:
                programs[alike] = jax.jit(partial(_draw, spec, leaf.shape))
            drawn[path] = programs[alike](key, np.uint32(path_hash(path)))
            continue
        layer = path.removesuffix(f".{spec.name}")
        if layer not in together:
            together[layer] = jax.jit(partial(joint.draw))(jax.random.fold_in(key, path_hash(layer)))
        drawn[path] = jnp.asarray(together[layer][joint.index], leaf.dtype)
    return drawn


def _draw(spec: ParamSpec, shape: tuple[int, ...], key: jax.Array, path: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, path)
    if spec.initializer == "key":
        return jax.random.key_data(key)
    return from_spec(spec.initializer, layout=spec.layout)(shape, _param_dtype(spec), key)


def _param_dtype(spec: ParamSpec) -> np.dtype:
    return dtype_of(spec.dtype or "f32")
