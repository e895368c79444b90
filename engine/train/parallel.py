"""Training on several devices: where the arrays of a loop lie.

Every program computes on the whole batch, whatever holds which part of it: XLA splits the work and adds what has to be
exchanged. So a loop on several devices gives the numbers of one on a single device, but for the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer

AXIS = "batch"
WORTH_SHARDING = 1024
"""Elements below which a parameter is kept whole on every device."""
State = TypeVar("State")
Devices = Literal["all"] | int | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a loop, each with its part of every batch, and a copy or its part of the parameters.

    Attributes:
        mesh: the devices along the axis `batch`; those of all processes after `jax.distributed.initialize`.
        shard_params: whether parameters and optimizer state are split over the devices too, along the longest axis
            that divides (fully sharded data parallelism: Rajbhandari et al. 2020, arXiv:1910.02054), instead of copied.
    """

    mesh: Mesh
    shard_params: bool = False

    def place_state(self, tree: Any) -> Any:
        """The arrays of a state where `state_shardings` says."""
        return jax.device_put(tree, self.state_shardings(tree))

    def keep_state(self, tree: State) -> State:
        """The same state, laid out as `state_shardings` says whatever XLA would prefer; for traced arrays."""
        kept: State = jax.lax.with_sharding_constraint(tree, self.state_shardings(tree))  # type: ignore[no-untyped-call]
        return kept

    def state_shardings(self, tree: Any) -> Any:
        """For every leaf of a state how it lies on the devices."""
        return jax.tree.map(lambda leaf: self._sharding(self._axes(np.shape(leaf))), tree)

    def place_batch(self, batch: Any) -> Any:
        """A batch split by rows. Every process gives the whole batch, and its devices take their rows of it.

        Raises: `DataError` when the rows cannot be split evenly.
        """
        return jax.tree.map(self._place_rows, batch)

    def _place_rows(self, leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        count = self.mesh.size
        if shape and shape[0] % count:
            raise DataError(
                f"data: expected batches of a multiple of {count} rows, one part per device, got {shape[0]}"
            )
        sharding = self._sharding([AXIS] if shape else [])
        if jax.process_count() == 1:
            placed: jax.Array = jax.device_put(leaf, sharding)
            return placed
        array = np.asarray(leaf)
        return jax.make_array_from_callback(shape, sharding, lambda index: array[index])

    def _axes(self, shape: tuple[int, ...]) -> list[str | None]:
        fitting = [axis for axis, size in enumerate(shape) if size % self.mesh.size == 0]
        if not self.shard_params or not fitting or math.prod(shape) < WORTH_SHARDING:
            return []
        longest = max(fitting, key=lambda axis: shape[axis])
        return [AXIS if axis == longest else None for axis in range(len(shape))]

    def _sharding(self, axes: list[str | None]) -> NamedSharding:
        return NamedSharding(self.mesh, jax.P(*axes))  # type: ignore[no-untyped-call]


def gathered(tree: State) -> State:
    """The same tree with leaves that this process can read alone; every process has to call it, with the same tree.

    A leaf that is spread over several processes (`shard_params`) is put together from all of them, one that each
    process has a copy of is that copy, anything else stays as it is.
    """
    whole: State = jax.tree.map(_whole, tree)
    return whole


def _whole(leaf: Any) -> Any:
    from jax.experimental import multihost_utils

    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)


def placement(devices: Devices | None, *, shard_params: bool = False) -> Placement | None:
    """The placement that `devices` names: `"all"` of all processes, the first so many, or a list of JAX devices.

    None leaves everything where JAX puts it. Raises: `OptionError` for none, or more than there are.
    """
    if devices is None:
        if shard_params:
            raise OptionError("trainer: expected devices to shard the parameters over, got none")
        return None
    known = jax.devices()
    if isinstance(devices, int):
        if as_integer("trainer", "devices", devices, at_least=1) > len(known):
            raise OptionError(f"trainer: expected at most {len(known)} devices, got {devices}")
        chosen: Sequence[Any] = known[:devices]
    else:
        chosen = known if devices == "all" else list(devices)
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise OptionError(f"trainer: expected devices to be 'all', a number or a list of JAX devices, got {devices!r}")
    return Placement(Mesh(np.asarray(chosen), (AXIS,)), shard_params)
