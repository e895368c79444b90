"""Batches from anything that can be iterated: lists, generators, loaders of other libraries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from engine.errors import DataError
from engine.train.data.memory import copied
from engine.train.data.protocol import Batch


@runtime_checkable
class Tensor(Protocol):
    """A tensor of another library that can be seen as a NumPy array, as PyTorch's can on the CPU."""

    def numpy(self) -> np.ndarray:
        """The values."""


class Batches:
    """An iterable of batches, iterated anew in every epoch.

    Arrays are copied as they come, and tensors of other libraries become arrays: JAX on the CPU reads aligned memory
    where it lies, later than it was given, so an iterable that fills its buffers again would change batches under way.
    The copy is aligned, and costs what XLA's own would have.

    The position is the number of batches taken, and going back to one means iterating up to it: exact where the
    iterable gives the same batches again. A one-shot iterator, such as a generator, has a single epoch and no position
    (None): a run resumed with it takes what comes next.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        if not isinstance(batches, Iterable):
            raise DataError(f"data: expected an iterable of batches, got {type(batches).__name__}")
        self._batches = batches
        self._is_one_shot = iter(batches) is batches if isinstance(batches, Iterator) else False
        self._peeked: tuple[Batch, Iterator[Batch]] | None = None

    def peek(self) -> Batch:
        """The first batch, which the next epoch still gives; raises `DataError` when there is none."""
        if self._peeked is None:
            iterator = iter(self._batches)
            try:
                self._peeked = owned(next(iterator)), iterator
            except StopIteration:
                raise DataError("data: expected at least one batch, got none") from None
        return self._peeked[0]

    def epoch(self, n: int) -> CountingIterator:
        """The batches of epoch n: the same ones in the same order, unless the iterable itself varies them."""
        if self._peeked is None:
            return CountingIterator(map(owned, self._batches), not self._is_one_shot)
        first, rest = self._peeked
        self._peeked = None
        return CountingIterator(chain([first], map(owned, rest)), not self._is_one_shot)


class CountingIterator:
    """An iterator whose state is the number of batches taken, unless it cannot be had again."""

    def __init__(self, batches: Iterator[Batch], counts: bool = True) -> None:
        self._batches = batches
        self._counts = counts
        self._taken = 0

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any] | None:
        """The number of batches taken; None for a one-shot iterator."""
        return {"batch": self._taken} if self._counts else None

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Skip to a state that `get_state` gave; raises `DataError` when there are fewer batches."""
        missing = int(state["batch"]) - self._taken
        if missing < 0:
            raise DataError(f"data: expected a state of {self._taken} batches or more, got {state['batch']}")
        skipped = sum(1 for _ in islice(self._batches, missing))
        if skipped != missing:
            raise DataError(f"data: expected at least {state['batch']} batches to resume from, got {skipped}")
        self._taken += skipped


def owned(batch: Batch) -> Batch:
    """The batch with arrays of its own in place of NumPy's and other libraries'."""
    return jax.tree.map(_owned, batch)


def _owned(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return copied(leaf)
    return copied(np.asarray(leaf.numpy())) if isinstance(leaf, Tensor) else leaf
