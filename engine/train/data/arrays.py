"""Rows of arrays, in memory or mapped, in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer, require_number
from engine.train.data.order import Order
from engine.train.data.plan import ArrayIterator, Arrays, Plan, Transform
from engine.train.data.prefetch import PrefetchIterator
from engine.train.data.protocol import Batch, BatchIterator
from engine.train.data.workers import Pools, WorkerIterator

_PREFETCHED = 2


class ArrayData:
    """Rows of arrays in shuffled batches.

    Epoch n is shuffled by (seed, n): any epoch, and any batch of it, can be had again without those before, so a run
    goes on exactly from any iteration. A batch's rows are gathered by one `take` per array.

    Args:
        inputs: arrays `[rows, ...]`, alone, by name, or in tuples. Memory-mapped arrays stay mapped; only a batch's
            rows are read, and those of arrays beyond 256 MiB leave no pages in this process's memory.
        targets: likewise; None gives batches of inputs alone, for steps of one's own.
        batch_size: rows per batch.
        shuffle: whether to shuffle, anew in every epoch.
        seed: of the shuffling, and of what `transform` draws.
        drop_remainder: leave out a last batch with fewer rows.
        pad_remainder: fill a last batch with fewer rows up by repeating them with weight 0, so that all batches have
            one shape and the step is compiled once. Every batch then has row weights, unless nothing is to be filled.
        transform: `(batch, generator) -> batch`, such as random crops. The generator is seeded by seed, epoch and
            batch, so what it draws does not depend on what ran before.
        prefetch: batches made ready ahead by a thread; None: 2 where more than 256 MiB are mapped or there is a
            transform, else 0, since gathering from memory is faster than handing over.
        workers: processes that make the batches, for transforms that take long (Grain's, spawned: a script needs its
            `if __name__ == "__main__"`). Arrays in memory are copied to each of them, mapped ones are mapped again.
    Raises:
        DataError: no rows, arrays of different lengths, or no batch at all.
        OptionError: batch_size, seed, prefetch or workers outside their domain; both drop_remainder and
            pad_remainder; pad_remainder without targets.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_remainder: bool = False,
        pad_remainder: bool = False,
        transform: Transform | None = None,
        prefetch: int | None = None,
        workers: int = 0,
    ) -> None:
        if drop_remainder and pad_remainder:
            raise OptionError("data: expected drop_remainder or pad_remainder, got both")
        if pad_remainder and targets is None:
            raise OptionError("data: expected targets with pad_remainder, got none")
        self._batch_size = as_integer("data", "batch_size", batch_size, at_least=1)
        self._seed = as_integer("data", "seed", seed, at_least=0)
        self._workers = as_integer("data", "workers", workers, at_least=0)
        self._shuffle = shuffle
        self._drop_remainder = drop_remainder
        self._pad_remainder = pad_remainder
        self._transform = transform
        self._order = Order(_count_rows(inputs, targets))
        self._arrays = Arrays.of(inputs, targets)
        slow = transform is not None or self._arrays.wait_for_disk
        default = _PREFETCHED if slow and not workers else 0
        self._prefetch = default if prefetch is None else as_integer("data", "prefetch", prefetch, at_least=0)
        self._begin()

    def _begin(self) -> None:
        if len(self) == 0:
            least = self._batch_size if self._drop_remainder else 1
            raise DataError(f"data: expected at least {least} rows for one batch, got {self.rows}")
        self._pools = Pools(self._workers)
        self._plan = Plan(
            self._arrays,
            self._order,
            batches=len(self),
            batch_size=self._batch_size,
            seed=self._seed,
            shuffles=self._shuffle,
            pads=self._pad_remainder and self.rows % self._batch_size > 0,
            transform=self._transform,
        )

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._order.count

    def __len__(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(self.rows, self._batch_size)
        return whole + (rest > 0 and not self._drop_remainder)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.epoch(0))

    def peek(self) -> Batch:
        """A batch of the first rows, to take shapes, types and the presence of row weights from."""
        return self._plan.batch(self._order.rows(0, self._batch_size), 0, 0)

    def epoch(self, n: int) -> BatchIterator:
        """The batches of epoch n."""
        if self._workers:
            return WorkerIterator(self._pools, self._plan, n)
        batches = ArrayIterator(self._plan, n)
        return PrefetchIterator(batches, self._prefetch) if self._prefetch else batches

    def chunks(self, rows: int = 4096) -> Iterator[Any]:
        """The inputs in their order, so many rows at a time and untransformed, to fit preprocessing on."""
        for start in range(0, self.rows, as_integer("data", "rows", rows, at_least=1)):
            yield self._arrays.inputs(self._order.rows(start, start + rows))

    def split(self, fraction: float, *, seed: int = 0) -> tuple[ArrayData, ArrayData]:
        """`(training, validation)`: `fraction` of the rows, drawn by `seed`, are the validation part.

        The arrays are shared. The validation part is not shuffled or transformed and keeps all its rows (padded, if
        this is).

        Raises:
            OptionError: `fraction` outside (0, 1).
            DataError: a part would be without a batch.
        """
        require_number("split", "fraction", fraction, at_least=0.0, less_than=1.0)
        seeds = [as_integer("split", "seed", seed, at_least=0)]
        held_out, others = self._order.split(round(self.rows * fraction), seeds)
        training = self._part(_order=others)
        return training, self._part(_order=held_out, _shuffle=False, _drop_remainder=False, _transform=None)

    def _part(self, **changed: Any) -> ArrayData:
        part = object.__new__(ArrayData)
        part.__dict__.update(self.__dict__ | changed)
        part._begin()
        return part


def _count_rows(inputs: Any, targets: Any) -> int:
    paths = [("input", inputs)] + ([] if targets is None else [("target", targets)])
    named = {
        f"{what} {jax.tree_util.keystr(path)}".strip(): np.asarray(leaf)
        for what, tree in paths
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if not named:
        raise DataError("data: expected an array, got none")
    for name, array in named.items():
        if array.dtype.hasobject or array.dtype.kind in "SUMm":
            raise DataError(f"data: expected arrays of numbers, got dtype {array.dtype} for {name}")
        if array.ndim == 0:
            raise DataError(f"data: expected arrays with rows, got a scalar for {name}")
    lengths = {name: len(array) for name, array in named.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"data: expected the same number of rows everywhere, got {lengths}")
    return next(iter(lengths.values()))
