"""A model ready to serve: parameters on the devices, one program compiled ahead of time per batch and open sizes.

Calling never compiles: sizes without a program are an error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import EngineError, ShapeError
from engine.model.build import build, needs_x64
from engine.model.model import Model
from engine.model.open_sizes import OpenSize, check_open_sizes, combinations
from engine.model.outputs import with_outputs
from engine.model.policy import apply_policy
from engine.model.state import ModelState
from engine.model.walk import abstract
from engine.precision import Policy
from engine.runtime.rows import mixing_reason
from engine.runtime.signature import (
    Exposed,
    Signature,
    has_open_batch,
    input_signatures,
    intermediates_at,
    outputs_at,
    sizes_text,
    walk_sizes,
)

Key = tuple[int, ...]
"""What a program is compiled for: the batch size, then one size of each open size."""
WarmUp = Literal["none", "zeros", "random"]


class _Partition(NamedTuple):
    """One device: the leaves of the state that are on it, and its programs."""

    leaves: list[jax.Array]
    programs: dict[Key, Any]


class Executable:
    """One model on one or more devices, with a compiled program per batch size and combination of open sizes.

    May be called from several threads at the same time.

    Attributes:
        inputs, outputs: what it takes and gives; inputs without the masks.
        masks: inputs that say which positions of an open size are real.
        intermediates: what it gives besides, because it was asked to.
        buckets: the batch sizes it was compiled for, ascending.
        open_sizes: the other sizes it was compiled for, in every combination.
        partitions: how many devices hold it.
        mixes_rows: why requests must not share a batch, None when they may.
        warm_up_s: how long the longest of the first runs took, in seconds; 0 without a warm-up.
    """

    def __init__(
        self,
        model: Model,
        state: ModelState,
        *,
        buckets: Sequence[int],
        open_sizes: Sequence[OpenSize] = (),
        devices: Sequence[jax.Device] | None = None,
        exposed: Exposed = False,
        warm_up: WarmUp = "none",
        policy: Policy | str | None = None,
    ) -> None:
        """Compile; takes as long as XLA does.

        Args:
            buckets: batch sizes to compile; for a model without an open batch size its own size counts.
            open_sizes: the sizes of all other axes that the inputs leave open.
            devices: each gets a copy; None takes JAX's default.
            exposed: layers whose values each call gives besides the outputs; see `intermediates`.
            warm_up: what every program is run on once.
            policy: of all layers, in place of their own; what a call takes and gives keeps its dtypes.
        Raises: `OptionError` for open axes whose sizes are not declared, an unknown policy, and as `signature`;
            `ShapeError`, `StateError` when model and state do not fit, naming the sizes.
        """
        check_open_sizes(model, open_sizes)
        walks = walk_sizes(model, open_sizes)
        masks = {each.mask for each in open_sizes}
        self.open_sizes = tuple(open_sizes)
        self._arguments = list(input_signatures(model, open_sizes))
        self._names = [s.name for s in self._arguments]
        self.inputs = [s for s in self._arguments if s.name not in masks]
        self.masks = [s for s in self._arguments if s.name in masks]
        self.outputs = outputs_at(model, walks)
        self.intermediates = intermediates_at(model, exposed, walks)
        results = [*self.outputs, *self.intermediates]
        self._results = [s.name for s in results]
        self._x64 = needs_x64(model)
        self._open_batch = has_open_batch(model)
        fixed = [s.shape[0] for s in self._arguments if s.shape and s.shape[0] is not None]
        self.buckets = tuple(sorted(set(buckets))) if self._open_batch else (fixed[0] if fixed else 1,)
        # Where a call shows which program it needs: argument and axis, for each open size.
        self._sizes_at = tuple(
            (self._names.index(name), axes[0]) for each in open_sizes for name, axes in list(each.axes.items())[:1]
        )
        keys = [(rows, *sizes) for rows in self.buckets for sizes in combinations(open_sizes)]
        computing = model if policy is None else apply_policy(model, policy)
        call = _flat(computing, state, [s.name for s in self.intermediates], [s.dtype for s in results])
        with jax.enable_x64(self._x64):
            self._partitions = [
                self._place(jax.tree.leaves(state), device, call, keys) for device in devices or jax.local_devices()[:1]
            ]
        self.partitions = len(self._partitions)
        self.warm_up_s = self._warm_up(warm_up, keys)
        self.mixes_rows = mixing_reason(model, open_sizes) or self._probe()

    def _place(self, leaves: Sequence[Any], device: jax.Device, call: Any, keys: Sequence[Key]) -> _Partition:
        """Copy the state to a device and compile every program there."""
        placed = jax.device_put(list(leaves), device)
        abstract_leaves = [abstract(leaf.shape, leaf.dtype) for leaf in placed]
        sharding = jax.sharding.SingleDeviceSharding(device)
        programs = {}
        for key in keys:
            arguments = [abstract(self._shape(s, key), s.dtype) for s in self._arguments]
            try:
                programs[key] = jax.jit(call, in_shardings=sharding).lower(abstract_leaves, arguments).compile()
            except EngineError as error:
                if not self.open_sizes:
                    raise
                where = f"with batch {key[0]} and {sizes_text(self.open_sizes, key[1:])}"
                raise type(error)(f"{error}; {where}") from None
        return _Partition(placed, programs)

    def _shape(self, s: Signature, key: Key) -> tuple[int, ...]:
        """The shape of an argument in a program."""
        return tuple(
            size if size is not None else key[0] if axis == 0 else key[1 + s.open_axes[axis]]
            for axis, size in enumerate(s.shape)
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        """Run one batch on a device and wait for it.

        Args:
            inputs: arrays by name, masks included, whose first size is one of `buckets`, and whose open sizes are of
                `open_sizes`.
            partition: index of the device.
        Returns: host arrays by the names of outputs and intermediates; they may be read-only.
        Raises: `ShapeError` for sizes without a program.
        """
        arguments = [inputs[name] for name in self._names]
        rows = arguments[0].shape[0] if self._open_batch else self.buckets[0]
        key = (rows, *[arguments[i].shape[axis] for i, axis in self._sizes_at]) if self._sizes_at else (rows,)
        leaves, programs = self._partitions[partition]
        program = programs.get(key)
        if program is None:
            raise ShapeError(self._unknown(key))
        if self._x64:
            with jax.enable_x64(True):
                results = program(leaves, arguments)
        else:
            results = program(leaves, arguments)
        return {name: np.asarray(result) for name, result in zip(self._results, results, strict=True)}

    def _unknown(self, key: Key) -> str:
        if key[0] not in self.buckets:
            return f"expected a batch size out of {', '.join(map(str, self.buckets))}, got {key[0]}"
        each, size = next(pair for pair in zip(self.open_sizes, key[1:], strict=True) if pair[1] not in pair[0].sizes)
        return f"expected a size of {each} out of {', '.join(map(str, each.sizes))}, got {size}"

    def close(self) -> None:
        """Free the parameters and programs."""
        for leaves, programs in self._partitions:
            for leaf in leaves:
                leaf.delete()
            leaves.clear()
            programs.clear()

    def _warm_up(self, kind: WarmUp, keys: Sequence[Key]) -> float:
        """Run every program once, so that what XLA and the device put off is done; returns the longest, in seconds."""
        longest_s = 0.0
        if kind == "none":
            return longest_s
        for key in keys:
            if kind == "zeros":
                inputs = {s.name: np.zeros(self._shape(s, key), s.dtype) for s in self._arguments}
            else:
                inputs = self._sample(key, seed=0)
            for partition in range(self.partitions):
                began = time.perf_counter()
                self(inputs, partition)
                longest_s = max(longest_s, time.perf_counter() - began)
        return longest_s

    def _probe(self) -> str | None:
        """Run two batches that agree in row 0 alone; a difference there means that rows mix.

        With open sizes in the smallest and in the largest program of a batch size.
        """
        rows = next((bucket for bucket in self.buckets if bucket > 1), None)
        if rows is None:
            return None
        ends = {tuple(each.sizes[end] for each in self.open_sizes) for end in (0, -1)}
        for key in sorted((rows, *sizes) for sizes in ends):
            first, second = self._sample(key, seed=1), self._sample(key, seed=2)
            for name, array in second.items():
                array[0] = first[name][0]
            a, b = self(first), self(second)
            for name in a:
                if not np.array_equal(a[name][0], b[name][0], equal_nan=True):
                    return f"output {name!r} of one row changed with its neighbours"
        return None

    def _sample(self, key: Key, *, seed: int) -> dict[str, np.ndarray]:
        return {s.name: _random(self._shape(s, key), s.dtype, seed) for s in self._arguments}


def _flat(model: Model, state: ModelState, exposed: Sequence[str], dtypes: Sequence[np.dtype]) -> Any:
    """`(state leaves, inputs in order) -> leaves of the outputs, then exposed`: flat lists keep the call cheap.

    The results are of `dtypes`, whatever the layers' policies are.
    """
    _, predict = build(with_outputs(model, exposed) if exposed else model)
    structure = jax.tree.structure(state)
    names = list(model.inputs())

    def call(leaves: list[jax.Array], arguments: list[jax.Array]) -> list[jax.Array]:
        prediction = predict(jax.tree.unflatten(structure, leaves), dict(zip(names, arguments, strict=True)))
        if exposed:
            outputs, values = prediction["outputs"], prediction["intermediates"]
            prediction = [*jax.tree.leaves(outputs), *(values[name] for name in exposed)]
        return [jnp.asarray(leaf, dtype) for leaf, dtype in zip(jax.tree.leaves(prediction), dtypes, strict=True)]

    return call


def _random(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
