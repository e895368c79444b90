"""Batches made ready ahead of their use by a thread of the same process."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.functional.options import as_integer
from engine.train.data.protocol import Batch, BatchIterator, Data

Place = Callable[[Batch], Batch]


class Prefetched:
    """Data whose batches are made by a thread, a few ahead of the loop, and put where the loop needs them.

    Args:
        data: where the batches come from; it is used by one thread at a time.
        batches: how many lie ready at most.
        place: called in the thread with every batch, such as `jax.device_put`, so that the copy to the device is under
            way before the step asks for it. It enters whatever context it needs: those of JAX belong to a thread.
    Raises: `OptionError` for less than one batch.
    """

    def __init__(self, data: Data, *, batches: int = 2, place: Place | None = None) -> None:
        self._data = data
        self._batches = as_integer("prefetch", "batches", batches, at_least=1)
        self._place = place

    def peek(self) -> Batch:
        """A batch to take shapes and types from."""
        return self._data.peek()

    def epoch(self, n: int) -> PrefetchIterator:
        """The batches of epoch n."""
        return PrefetchIterator(self._data.epoch(n), self._batches, self._place)


@dataclass(frozen=True, slots=True)
class _Made:
    """A batch, and the state of its iterator after it."""

    batch: Batch
    state: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class _End:
    """Nothing follows: the batches have come to their end, or to an error."""

    error: BaseException | None


class PrefetchIterator:
    """The batches of another iterator. Its state is that of the batches given, not of those made ready."""

    def __init__(self, batches: BatchIterator, ahead: int, place: Place | None = None) -> None:
        self._inner = batches
        self._ahead = ahead
        self._place = place
        self._state = batches.get_state()
        self._feed: _Feed | None = None
        self._end: _End | None = None

    def __iter__(self) -> PrefetchIterator:
        return self

    def __next__(self) -> Batch:
        if self._end is not None:
            raise StopIteration
        if self._feed is None:
            self._feed = _Feed(self._inner, self._ahead, self._place)
            self._finalize = weakref.finalize(self, self._feed.stop)
        made = self._feed.get()
        if isinstance(made, _End):
            self._end = made
            self.close()
            if made.error is not None:
                raise made.error
            raise StopIteration
        self._state = made.state
        return made.batch

    def get_state(self) -> dict[str, Any] | None:
        """The state after the last batch given."""
        return self._state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Move to a state that `get_state` gave; raises what the iterator beneath raises."""
        self.close()
        self._inner.set_state(state)
        self._state, self._end = self._inner.get_state(), None

    def close(self) -> None:
        """Stop the thread and wait for it. Happens of itself when the iterator is dropped, and when Python exits."""
        if self._feed is not None:
            self._finalize()
            self._feed = None


class _Feed:
    """The thread and its queue. It knows nothing of the iterator it serves, so that this one can be dropped."""

    def __init__(self, batches: BatchIterator, ahead: int, place: Place | None) -> None:
        self._queue: queue.Queue[_Made | _End] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(batches, place), name="prefetch", daemon=True)
        self._thread.start()

    def get(self) -> _Made | _End:
        return self._queue.get()

    def stop(self) -> None:
        self._stopped.set()
        while True:  # room for the batch that the thread may be waiting to put
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, batches: BatchIterator, place: Place | None) -> None:
        end = _End(None)
        try:
            while not self._stopped.is_set():
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                state = batches.get_state()
                self._queue.put(_Made(batch if place is None else place(batch), state))
        except BaseException as error:  # raised where the batch is asked for
            end = _End(error)
        if not self._stopped.is_set():
            self._queue.put(end)
