"""Grain's data sets and iterators, which keep their position themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import DataError
from engine.train.data.iterables import owned
from engine.train.data.protocol import Batch


def is_grain(value: object) -> bool:
    """Whether this is a data set, loader or iterator of Grain's. Imports nothing: whoever has one has imported it."""
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(
        value,
        grain.MapDataset | grain.IterDataset | grain.DatasetIterator | grain.DataLoader | grain.DataLoaderIterator,
    )


class GrainData:
    """Batches of a Grain pipeline; whatever it does (shuffle, batch, worker processes) is its own affair.

    Every epoch of a `MapDataset` is its own pass, shuffled anew as Grain shuffles on `repeat`; an `IterDataset` or
    `DataLoader` is iterated anew in every epoch; an iterator goes on where it stands, so give `iterations=` for one
    without end. All are resumed exactly, by Grain's own state.

    Raises: `DataError` for a data set that is empty, or is endless where a pass is wanted.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def peek(self) -> Batch:
        """The first batch, which the next epoch still gives; raises `DataError` when there is none."""
        batches = self._iterator(0)
        before = batches.get_state()
        try:
            batch = owned(next(batches))
        except StopIteration:
            raise DataError("data: expected at least one batch, got none") from None
        batches.set_state(before)  # of use where `batches` is the caller's own iterator
        return batch

    def epoch(self, n: int) -> GrainIterator:
        """The batches of epoch n."""
        return GrainIterator(self._iterator(n), n)

    def _iterator(self, n: int) -> Any:
        import grain

        if not isinstance(self._dataset, grain.MapDataset):
            return iter(self._dataset)
        length = len(self._dataset)
        if length == sys.maxsize:
            raise DataError("data: expected a Grain data set with an end, got one that repeats for ever")
        return iter(self._dataset.repeat()[n * length : (n + 1) * length].to_iter_dataset())


class GrainIterator:
    """The batches of one epoch; its state holds Grain's."""

    def __init__(self, batches: Any, epoch: int) -> None:
        self._batches = batches
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return owned(next(self._batches))

    def get_state(self) -> dict[str, Any]:
        """The epoch, and Grain's state as JSON text."""
        state = self._batches.get_state()
        return {"epoch": self._epoch, "grain": state.decode() if isinstance(state, bytes) else json.dumps(state)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Move to a state that `get_state` gave; raises `DataError` for one of another epoch or source."""
        text = state.get("grain")
        if state.get("epoch") != self._epoch or not isinstance(text, str):
            raise DataError(f"data: expected a state of Grain in epoch {self._epoch}, got {dict(state)!s:.200}")
        is_text = isinstance(self._batches.get_state(), bytes)
        self._batches.set_state(text.encode() if is_text else json.loads(text))
