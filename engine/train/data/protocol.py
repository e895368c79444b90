"""What a loop takes batches from.

A batch is `(inputs, targets)`, or `(inputs, targets, rows)` with a weight per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

Batch = Any


class BatchIterator(Protocol):
    """The batches of one epoch. `get_state` is plain JSON; `set_state` moves to where it was taken.

    The state is None where there is no going back: a resumed run takes what comes next.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any] | None: ...
    def set_state(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Data(Protocol):
    """Batches in epochs; `epoch(n)` gives those of epoch n, the same ones each time it is asked."""

    def epoch(self, n: int) -> BatchIterator: ...
    def peek(self) -> Batch: ...
