"""Training data: batches per epoch, shuffled, from an iterator that can be stopped and continued.

A loop takes anything that is `Data`, or a plain iterable of batches, which `as_data` wraps. A batch is `(inputs,
targets)`, or `(inputs, targets, rows)` with a weight per row: 0 for padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer, require_number

_BATCHES_PER_GROUP = 16  # spreads Grain's 10 us per element over as many batches
_ALIGNMENT = 64
_WORTH_ALIGNING = 16_384
Arrays = np.ndarray | Mapping[str, np.ndarray]
Batch = Any


class BatchIterator(Protocol):
    """The batches of one epoch. `get_state` is plain JSON; `set_state` moves to where it was taken."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Data(Protocol):
    """Batches in epochs; `epoch(n)` gives those of epoch n, the same ones each time it is asked."""

    def epoch(self, n: int) -> BatchIterator: ...
    def peek(self) -> Batch: ...


class ArrayData:
    """Rows of arrays in shuffled batches, over Grain.

    Grain iterates and keeps the position; one element of its data set is the row numbers of several batches, and a
    batch's rows are gathered by one `take` per array. For batches of 128 rows of MNIST that is 33 us each, of which
    28 are the gathering; shuffling and batching row by row inside Grain cost 700 us, a Grain element per batch 44 us.
    Epoch n is shuffled by (seed, n): any epoch, and any batch of it, can be had again without those before.

    Args:
        inputs: name -> array `[rows, ...]`. Memory-mapped arrays stay mapped; only a batch's rows are read.
        targets: array `[rows, ...]`, or name -> array.
        batch_size: rows per batch.
        shuffle: whether to shuffle, anew in every epoch.
        seed: of the shuffling.
        drop_remainder: leave out a last batch with fewer rows.
        pad_remainder: fill a last batch with fewer rows up by repeating them with weight 0, so that all batches have
            one shape and the step is compiled once. Every batch then has row weights, unless nothing is to be filled.
    Raises:
        DataError: no rows, arrays of different lengths, or no batch at all.
        OptionError: batch_size or seed outside their domain, or both drop_remainder and pad_remainder.
    """

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        targets: Arrays,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_remainder: bool = False,
        pad_remainder: bool = False,
    ) -> None:
        if not isinstance(inputs, Mapping) or not inputs:
            raise DataError(f"data: expected inputs by name, got {type(inputs).__name__}")
        # A plain view of a memory map reads from the same pages without memmap's cost per access.
        self._inputs = {name: np.asarray(array) for name, array in inputs.items()}
        self._targets = (
            {name: np.asarray(array) for name, array in targets.items()}
            if isinstance(targets, Mapping)
            else np.asarray(targets)
        )
        self._batch_size = as_integer("data", "batch_size", batch_size, at_least=1)
        self._seed = as_integer("data", "seed", seed, at_least=0)
        self._shuffle = shuffle
        if drop_remainder and pad_remainder:
            raise OptionError("data: expected drop_remainder or pad_remainder, got both")
        self._drop_remainder = drop_remainder
        self._pad_remainder = pad_remainder
        self._rows = np.arange(self._count_rows())
        self._check_length()

    def _count_rows(self) -> int:
        named = {f"input {name!r}": array for name, array in self._inputs.items()}
        if isinstance(self._targets, dict):
            named |= {f"target {name!r}": array for name, array in self._targets.items()}
        else:
            named["targets"] = self._targets
        if scalars := [name for name, array in named.items() if array.ndim == 0]:
            raise DataError(f"data: expected arrays with rows, got a scalar for {scalars[0]}")
        lengths = {name: len(array) for name, array in named.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"data: expected the same number of rows everywhere, got {lengths}")
        return next(iter(lengths.values()))

    def _check_length(self) -> None:
        if len(self) == 0:
            least = self._batch_size if self._drop_remainder else 1
            raise DataError(f"data: expected at least {least} rows for one batch, got {self.rows}")

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def __len__(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(self.rows, self._batch_size)
        return whole + (rest > 0 and not self._drop_remainder)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.epoch(0))

    def peek(self) -> Batch:
        """A batch of the first rows, to take shapes, types and the presence of row weights from."""
        return self._gather(self._rows[: self._batch_size])

    def epoch(self, n: int) -> ArrayIterator:
        """The batches of epoch n."""
        rows = self._rows
        if self._shuffle:
            rows = np.random.default_rng([self._seed, n]).permutation(rows)
        size = self._batch_size
        return ArrayIterator(self._gather, rows[: len(self) * size], size, n)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[ArrayData, ArrayData]:
        """`(training, validation)`: `fraction` of the rows, drawn by `seed`, are the validation part.

        The arrays are shared. The validation part is not shuffled and keeps all its rows (padded, if this is).

        Raises:
            OptionError: `fraction` outside (0, 1).
            DataError: a part would be without a batch.
        """
        require_number("split", "fraction", fraction, at_least=0.0, less_than=1.0)
        rows = np.random.default_rng(as_integer("split", "seed", seed, at_least=0)).permutation(self._rows)
        held_out = round(self.rows * fraction)
        training = self._part(np.sort(rows[held_out:]), shuffle=self._shuffle)
        return training, self._part(np.sort(rows[:held_out]), shuffle=False, drop_remainder=False)

    def _part(self, rows: np.ndarray, *, shuffle: bool, drop_remainder: bool | None = None) -> ArrayData:
        part = object.__new__(ArrayData)
        part.__dict__.update(self.__dict__)
        part._rows, part._shuffle = rows, shuffle
        part._drop_remainder = self._drop_remainder if drop_remainder is None else drop_remainder
        part._check_length()
        return part

    def _gather(self, rows: np.ndarray) -> Batch:
        real = len(rows)
        padded = self._pad_remainder and self.rows % self._batch_size > 0
        if padded:
            rows = np.resize(rows, self._batch_size)  # repeats them
        targets = (
            {name: _take(array, rows) for name, array in self._targets.items()}
            if isinstance(self._targets, dict)
            else _take(self._targets, rows)
        )
        inputs = {name: _take(array, rows) for name, array in self._inputs.items()}
        if not padded:
            return inputs, targets
        return inputs, targets, (np.arange(self._batch_size) < real).astype(np.float32)


def _take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows, where it matters in memory that starts at a multiple of 64 bytes.

    XLA's CPU client uses such memory as it is and copies any other (measured: 29 us less for a batch of MNIST).
    """
    shape = (len(rows), *array.shape[1:])
    size = math.prod(shape) * array.itemsize
    if size < _WORTH_ALIGNING:
        return array.take(rows, axis=0)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    out = memory[start : start + size].view(array.dtype).reshape(shape)
    return array.take(rows, axis=0, out=out, mode="clip")  # without buffering; rows are in range


class _RowGroups:
    """The row numbers of an epoch in groups of several batches, as a Grain data source."""

    def __init__(self, rows: np.ndarray, size: int) -> None:
        self._rows = rows
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rows[index * self._size : (index + 1) * self._size]


class ArrayIterator:
    """The batches of one epoch of `ArrayData`; its state is the epoch and the number of batches taken."""

    def __init__(self, gather: Callable[[np.ndarray], Batch], rows: np.ndarray, batch_size: int, epoch: int) -> None:
        import grain  # takes seconds, so only where data is iterated

        self._gather = gather
        self._batch_size = batch_size
        self._epoch = epoch
        self._batches = -(-len(rows) // batch_size)
        self._taken = 0
        self._group = rows[:0]
        # No prefetching threads: gathering is short, and they cost more than they hide on the CPU (measured).
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        groups = grain.MapDataset.source(_RowGroups(rows, batch_size * _BATCHES_PER_GROUP))
        self._groups = iter(groups.to_iter_dataset(options))

    def __iter__(self) -> ArrayIterator:
        return self

    def __next__(self) -> Batch:
        within = self._taken % _BATCHES_PER_GROUP
        if within == 0:
            self._group = next(self._groups)
        rows = self._group[within * self._batch_size : (within + 1) * self._batch_size]
        if len(rows) == 0:
            raise StopIteration
        self._taken += 1
        return self._gather(rows)

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Move to a state that `get_state` gave; raises `DataError` for one of another epoch or length."""
        batch = state.get("batch")
        if state.get("epoch") != self._epoch or not isinstance(batch, int) or not 0 <= batch <= self._batches:
            raise DataError(
                f"data: expected a state of epoch {self._epoch} with a batch in [0, {self._batches}], got {dict(state)}"
            )
        group, within = divmod(batch, _BATCHES_PER_GROUP)
        self._groups.set_state({"next_index": group})
        if within:
            self._group = next(self._groups)
        self._taken = batch


class Batches:
    """A plain iterable of batches, iterated anew in every epoch.

    A one-shot iterator has a single epoch. Its position is the number of batches taken; going back to one means
    iterating up to it. JAX may use a batch's arrays where they lie, and later than they were given: an iterable must
    not write to them again.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        if not isinstance(batches, Iterable):
            raise DataError(f"data: expected an iterable of batches, got {type(batches).__name__}")
        self._batches = batches
        self._peeked: tuple[Batch, Iterator[Batch]] | None = None

    def peek(self) -> Batch:
        """The first batch, which the next epoch still gives; raises `DataError` when there is none."""
        if self._peeked is None:
            iterator = iter(self._batches)
            try:
                self._peeked = next(iterator), iterator
            except StopIteration:
                raise DataError("data: expected at least one batch, got none") from None
        return self._peeked[0]

    def epoch(self, n: int) -> CountingIterator:
        """The batches of epoch n: the same ones in the same order, unless the iterable itself varies them."""
        if self._peeked is None:
            return CountingIterator(iter(self._batches))
        first, rest = self._peeked
        self._peeked = None
        return CountingIterator(chain([first], rest))


class CountingIterator:
    """An iterator whose state is the number of batches taken."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._taken = 0

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"batch": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Skip to a state that `get_state` gave; raises `DataError` when there are fewer batches."""
        missing = int(state["batch"]) - self._taken
        skipped = sum(1 for _ in islice(self._batches, missing))
        if skipped != missing:
            raise DataError(f"data: expected at least {state['batch']} batches to resume from, got {skipped}")
        self._taken += skipped


def as_data(data: Data | Iterable[Batch]) -> Data:
    """`data` itself when it comes in epochs, else the iterable wrapped in `Batches`."""
    return data if isinstance(data, Data) else Batches(data)
