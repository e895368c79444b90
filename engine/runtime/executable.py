"""A model ready to serve: parameters on the device, one program compiled ahead of time per batch size.

Calling never compiles: a size without a program is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from engine.errors import OptionError, ShapeError
from engine.model.build import build, infer, needs_x64, template_of
from engine.model.model import Model
from engine.model.outputs import output_names, with_outputs
from engine.model.state import ModelState
from engine.model.walk import LayerInfo, abstract
from engine.precision import dtype_of
from engine.runtime.rows import mixing_reason


@dataclass(frozen=True, slots=True)
class Signature:
    """A named array: shape with None for the open batch size, and dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype


def signature(model: Model, layers: Sequence[LayerInfo] | None = None) -> tuple[list[Signature], list[Signature]]:
    """Inputs and outputs of a model, outputs named after their node, or by their path in a container.

    `layers` are what `infer` has found for any batch size, to save a walk.

    Raises: `OptionError` when an input leaves a size open besides the batch, `ShapeError` when shapes do not fit.
    """
    inputs = []
    for name, node in model.inputs().items():
        shape = node.options["shape"]
        if shape is None or None in shape[1:]:
            raise OptionError(f"input {name!r}: expected declared sizes after the batch, got shape {shape}")
        inputs.append(Signature(name, shape, dtype_of(node.options["dtype"])))
    open_batch = all(s.shape[:1] == (None,) for s in inputs)
    layer = (layers or infer(model, template_of(model, batch=2)))[-1]
    names, leaves = output_names(model), jax.tree.leaves(layer.output)
    if len(names) != len(leaves):
        raise OptionError(f"output {layer.name!r}: expected arrays, got a structure; take its parts with elem or fetch")
    outputs = [
        Signature(name, (None, *leaf.shape[1:]) if open_batch and leaf.shape else leaf.shape, np.dtype(leaf.dtype))
        for name, leaf in zip(names, leaves, strict=True)
    ]
    return inputs, outputs


Exposed = bool | Sequence[str]
"""Names of layers whose values may be asked for besides the outputs; True: of all that can be."""


def intermediates(model: Model, exposed: Exposed) -> list[Signature]:
    """The layers whose values `exposed` lets callers ask for; a declared output's name stays that output's.

    Raises: `GraphError` for the name of no layer, `OptionError` for a layer without one row per row of the inputs.
    """
    if not exposed:
        return []
    names = model.names()
    wanted = list(names.values()) if exposed is True else list(exposed)
    with_outputs(model, wanted)
    declared = {*output_names(model), *(model.inputs() if exposed is True else ())}
    open_batch = all((node.options["shape"] or ())[:1] == (None,) for node in model.inputs().values())
    two, three = ({layer.node: layer for layer in infer(model, template_of(model, batch=rows))} for rows in (2, 3))
    found = []
    for node, name in names.items():
        if name not in wanted or name in declared:
            continue
        value, larger = two[node].output, three[node].output
        is_array = isinstance(value, jax.ShapeDtypeStruct)
        if is_array and (not open_batch or (value.shape[:1], larger.shape[:1]) == ((2,), (3,))):
            shape = (None, *value.shape[1:]) if open_batch else value.shape
            found.append(Signature(name, shape, np.dtype(value.dtype)))
        elif exposed is not True:
            got = f"shape {value.shape}" if is_array else "a structure"
            raise OptionError(f"layer {name!r}: expected an array with a row per row of the inputs, got {got}")
    return found


class Executable:
    """One model on one device, with a compiled program per batch size.

    Attributes:
        inputs, outputs: what it takes and gives.
        intermediates: what it gives besides, because it was asked to.
        buckets: the batch sizes it was compiled for, ascending.
        mixes_rows: why requests must not share a batch, None when they may.
    """

    def __init__(
        self,
        model: Model,
        state: ModelState,
        *,
        buckets: Sequence[int],
        device: jax.Device | None = None,
        exposed: Exposed = False,
    ) -> None:
        """Compile; takes as long as XLA does.

        Args:
            buckets: batch sizes to compile; for a model without an open batch size its own size counts.
            device: None takes JAX's default.
            exposed: layers whose values each call gives besides the outputs; see `intermediates`.
        Raises: `OptionError` as `signature`; `ShapeError`, `StateError` when model and state do not fit.
        """
        self.inputs, self.outputs = signature(model)
        self.intermediates = intermediates(model, exposed)
        self._results = [*self.outputs, *self.intermediates]
        self._x64 = needs_x64(model)
        self._device = device or jax.local_devices()[0]
        fixed = {s.shape[0] for s in self.inputs if s.shape and s.shape[0] is not None}
        self.buckets = tuple(sorted(fixed or set(buckets)))
        self._call = _flat(model, state, [s.name for s in self.intermediates])
        with jax.enable_x64(self._x64):
            self._leaves = jax.device_put(jax.tree.leaves(state), self._device)
            self._programs = {bucket: self._compile(bucket) for bucket in self.buckets}
        self.mixes_rows = mixing_reason(model) or self._probe()

    def _compile(self, bucket: int) -> Any:
        sharding = jax.sharding.SingleDeviceSharding(self._device)
        arguments = [abstract((bucket, *s.shape[1:]), s.dtype) for s in self.inputs]  # type: ignore[arg-type]
        leaves = [abstract(leaf.shape, leaf.dtype) for leaf in self._leaves]
        return jax.jit(self._call, in_shardings=sharding).lower(leaves, arguments).compile()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch and wait for it.

        Args:
            inputs: arrays by name whose first size is one of `buckets`.
        Returns: host arrays by the names of outputs and intermediates; they may be read-only.
        Raises: `ShapeError` for a batch size without a program.
        """
        arguments = [inputs[s.name] for s in self.inputs]
        rows = arguments[0].shape[0]
        program = self._programs.get(rows)
        if program is None:
            sizes = ", ".join(map(str, self.buckets))
            raise ShapeError(f"expected a batch size out of {sizes}, got {rows}")
        if self._x64:
            with jax.enable_x64(True):
                results = program(self._leaves, arguments)
        else:
            results = program(self._leaves, arguments)
        return {s.name: np.asarray(result) for s, result in zip(self._results, results, strict=True)}

    def close(self) -> None:
        """Free the parameters and programs."""
        for leaf in self._leaves:
            leaf.delete()
        self._leaves = []
        self._programs = {}

    def _probe(self) -> str | None:
        """Run two batches that agree in row 0 alone; a difference there means that rows mix."""
        rows = next((bucket for bucket in self.buckets if bucket > 1), None)
        if rows is None:
            return None
        first = {s.name: _sample(s, rows, seed=1) for s in self.inputs}
        second = {s.name: _sample(s, rows, seed=2) for s in self.inputs}
        for name, array in second.items():
            array[0] = first[name][0]
        a, b = self(first), self(second)
        for name in a:
            if not np.array_equal(a[name][0], b[name][0], equal_nan=a[name].dtype.kind == "f"):
                return f"output {name!r} of one row changed with its neighbours"
        return None


def _flat(model: Model, state: ModelState, exposed: Sequence[str]) -> Any:
    """`(state leaves, inputs in order) -> leaves of the outputs, then exposed`: flat lists keep the call cheap."""
    _, predict = build(with_outputs(model, exposed) if exposed else model)
    structure = jax.tree.structure(state)
    names = list(model.inputs())

    def call(leaves: list[jax.Array], arguments: list[jax.Array]) -> list[jax.Array]:
        prediction = predict(jax.tree.unflatten(structure, leaves), dict(zip(names, arguments, strict=True)))
        if not exposed:
            return jax.tree.leaves(prediction)
        return [*jax.tree.leaves(prediction["outputs"]), *(prediction["intermediates"][name] for name in exposed)]

    return call


def _sample(s: Signature, rows: int, *, seed: int) -> np.ndarray:
    shape = (rows, *s.shape[1:])
    generator = np.random.default_rng(seed)
    if np.issubdtype(s.dtype, np.integer) or s.dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(s.dtype)  # type: ignore[arg-type]
    return generator.standard_normal(shape).astype(s.dtype)  # type: ignore[arg-type]
