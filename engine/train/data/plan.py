"""What a batch is made of: everything needed to make batch k of epoch n, in this process or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from engine.errors import DataError
from engine.train.data.memory import file_rows, packed, take, unpacked
from engine.train.data.order import Order
from engine.train.data.protocol import Batch

Transform = Callable[[Batch, np.random.Generator], Batch]
_GROUP = 16  # row numbers are worked out for so many batches at once


class Arrays:
    """Arrays of one length in a structure: inputs, or inputs and targets."""

    def __init__(self, leaves: Sequence[np.ndarray], structure: Any, has_targets: bool) -> None:
        # A plain view of a memory map reads from the same pages without memmap's cost per access.
        self._leaves = [np.asarray(leaf) for leaf in leaves]
        self._structure = structure
        self._has_targets = has_targets
        self._files = [file_rows(leaf) for leaf in self._leaves]

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> Arrays:
        """The arrays of `inputs`, and of `targets` unless None."""
        leaves, structure = jax.tree.flatten(inputs if targets is None else (inputs, targets))
        return cls(leaves, structure, targets is not None)

    @property
    def wait_for_disk(self) -> bool:
        """Whether any of them is read from a file large enough not to stay in the kernel's cache for certain."""
        return any(file is not None for file in self._files)

    def take(self, rows: np.ndarray) -> Any:
        """Those rows of each, in the structure."""
        pairs = zip(self._leaves, self._files, strict=True)
        return self._structure.unflatten(
            [take(leaf, rows) if file is None else file.take(rows) for leaf, file in pairs]
        )

    def inputs(self, rows: np.ndarray) -> Any:
        """Those rows of the inputs alone."""
        taken = self.take(rows)
        return taken[0] if self._has_targets else taken

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process mapped arrays are mapped again; others are copied to it."""
        return _arrays, ([packed(leaf) for leaf in self._leaves], self._structure, self._has_targets)


def _arrays(leaves: list[Any], structure: Any, has_targets: bool) -> Arrays:
    return Arrays([unpacked(leaf) for leaf in leaves], structure, has_targets)


@dataclass(frozen=True)
class Plan:
    """How arrays become batches; see `ArrayData`. `batches` is the length of an epoch."""

    arrays: Arrays
    order: Order
    batches: int
    batch_size: int
    seed: int
    shuffles: bool
    pads: bool
    transform: Transform | None

    def epoch_order(self, epoch: int) -> Order:
        """The order of the rows in an epoch."""
        return self.order.shuffled([self.seed, epoch]) if self.shuffles else self.order

    def rows(self, order: Order, start: int, stop: int) -> np.ndarray:
        """The row numbers of batches `start` up to `stop`; none beyond the last."""
        return order.rows(start * self.batch_size, min(stop, self.batches) * self.batch_size)

    def batch(self, rows: np.ndarray, epoch: int, number: int) -> Batch:
        """The batch of these rows, filled up and transformed where that is asked for."""
        made = self._padded(rows) if self.pads else self.arrays.take(rows)
        if self.transform is None:
            return made
        # The 1 keeps these seeds apart from those of the epochs' orders.
        return self.transform(made, np.random.default_rng([self.seed, epoch, number, 1]))

    def _padded(self, rows: np.ndarray) -> Batch:
        real = len(rows)
        inputs, targets = self.arrays.take(np.resize(rows, self.batch_size))  # repeats them
        return inputs, targets, (np.arange(self.batch_size) < real).astype(np.float32)


class ArrayIterator:
    """The batches of one epoch; its state is the epoch and the number of batches taken."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self._plan = plan
        self._epoch = epoch
        self._order = plan.epoch_order(epoch)
        self._taken = 0
        self._group = np.zeros(0, np.int64)

    def __iter__(self) -> ArrayIterator:
        return self

    def __next__(self) -> Batch:
        number, plan = self._taken, self._plan
        if number >= plan.batches:
            raise StopIteration
        within = number % _GROUP
        if within == 0 or self._group.size == 0:
            first = number - within
            self._group = plan.rows(self._order, first, first + _GROUP)
        rows = self._group[within * plan.batch_size : (within + 1) * plan.batch_size]
        self._taken = number + 1
        return plan.batch(rows, self._epoch, number)

    def get_state(self) -> dict[str, Any]:
        """The epoch and the number of batches taken."""
        return {"epoch": self._epoch, "batch": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Move to a state that `get_state` gave; raises `DataError` for one of another epoch or length."""
        self._taken = batch_of(state, self._epoch, self._plan.batches)
        self._group = self._group[:0]


def batch_of(state: Mapping[str, Any], epoch: int, batches: int) -> int:
    """The number of batches taken in a state of this epoch; raises `DataError` for a foreign one."""
    batch = state.get("batch")
    if state.get("epoch") != epoch or type(batch) is not int or not 0 <= batch <= batches:
        raise DataError(
            f"data: expected a state of epoch {epoch} with a batch in [0, {batches}], got {dict(state)!s:.200}"
        )
    return batch
