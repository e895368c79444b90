"""From a graph to two pure functions: one makes the state, one predicts.

Both walk the nodes in a fixed order; shapes come from tracing that same walk, so there is one rule for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import OptionError, ShapeError
from engine.functional.initializers import from_spec
from engine.functional.rows import Rows
from engine.model.block import BLOCK
from engine.model.graph import Mode, ParamSpec
from engine.model.model import Model
from engine.model.state import ModelState, Tree, unflatten
from engine.model.walk import Inputs, LayerInfo, Walk, abstract, abstract_input, by_name, read_state
from engine.precision import dtype_of, is_wide

Seed = Any
"""An integer or a JAX random key."""


class TrainOutput(NamedTuple):
    """What a training prediction gives: the prediction and the changed layer state `{layer: {name: array}}`."""

    prediction: Any
    state: Tree


def build(model: Model, *, mode: Mode = "inference") -> tuple[Callable[..., ModelState], Callable[..., Any]]:
    """Turn a graph into `(init_fn, predict_fn)`, both pure and fit for jit, grad and vmap.

    `init_fn(template, seed=0)` makes the state for inputs like `template` (arrays or `jax.ShapeDtypeStruct`, by input
    name; None takes the declared shapes with 1 for open sizes). `predict_fn(state, inputs, rows=None)` gives the
    prediction; in mode `train` a `TrainOutput`. `rows` are weights `[batch]`, 0 for rows of padding, which batch
    statistics leave out.

    Raises: `GraphError` for a malformed graph, `OptionError` for an unknown mode; the functions raise `ShapeError`,
        `DtypeError` and `StateError` that name layer, op, expected and got, and `GraphError` when rows are given and
        the answer for one depends on others in a layer that does not take them.
    Source: Axon.build/2.
    """
    if mode not in ("train", "inference"):
        raise OptionError(f"build: expected mode 'train' or 'inference', got {mode!r}")
    walk = Walk(model, mode)

    def init_fn(template: Inputs = None, seed: Seed = 0) -> ModelState:
        return _initialise(model, template, seed)

    def predict_fn(state: ModelState, inputs: Inputs, rows: Rows = None) -> Any:
        with x64(model):
            prediction, updates = walk.run(walk.bind(inputs), read_state(state), rows)
        return prediction if mode == "inference" else TrainOutput(prediction, updates)

    return init_fn, predict_fn


def needs_x64(model: Model) -> bool:
    """Whether any input, constant or parameter of the graph is 64 bits wide."""
    for node in model.nodes():
        if node.op is BLOCK and needs_x64(node.options["block"].model):
            return True
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
    walk = Walk(model, "inference")
    found: list[LayerInfo] = []
    seen: set[str] = set()

    def note(layer: LayerInfo) -> None:
        # A further call of a block brings no parameters of its own.
        found.append(layer if layer.name not in seen else replace(layer, params={}))
        seen.add(layer.name)

    def trace(values: dict[str, Any]) -> Any:
        def params(path: str, specs: tuple[ParamSpec, ...], shapes: tuple[Any, ...]) -> dict[str, Any]:
            return {spec.name: jnp.zeros(spec.shape(*shapes), _param_dtype(spec)) for spec in specs}

        return walk.run(values, params, observe=note)[0]

    with x64(model):
        jax.eval_shape(trace, walk.bind(template_of(model, template)))
    return found


def template_of(model: Model, template: Inputs = None, *, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract inputs by name; for None the declared shapes, with `batch` for an open first size and 1 for others."""
    given = by_name(model.inputs(), template) if template is not None else {}
    result = {}
    for name, node in model.inputs().items():
        if name in given:
            result[name] = abstract_input(name, node, given[name])
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
