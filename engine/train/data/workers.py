"""Batches made by other processes: Grain starts them, hands batches over in shared memory, and keeps their order."""

from __future__ import annotations

import multiprocessing
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from engine.errors import DataError
from engine.train.data.order import Order
from engine.train.data.plan import Plan, batch_of
from engine.train.data.protocol import Batch

_ENDLESS = 2**53
_AHEAD = 2


class _Batches:
    """All batches of all epochs, one after the other, as a Grain data source."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._epoch: tuple[int, Order] | None = None

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        plan = self._plan
        epoch, number = divmod(int(index), plan.batches)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, plan.epoch_order(epoch)
        return plan.batch(plan.rows(self._epoch[1], number, number + 1), epoch, number)


def die_with_parent(index: int, count: int) -> None:
    """In a worker: end with the process that started it, however that one ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class Pool:
    """Worker processes that go on from epoch to epoch, as long as batches are taken in order."""

    def __init__(self, plan: Plan, workers: int, start: int) -> None:
        import grain  # takes a second, so only where it is used
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags in programs that have no absl main too
        self.position = start
        source = grain.MapDataset.source(_Batches(plan))[start:]
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
        self._batches: Any = iter(source.to_iter_dataset(_no_threads()).mp_prefetch(options, die_with_parent))
        self._finalize = weakref.finalize(self, self._batches.close)

    def take(self) -> Batch:
        """The batch at `position`, moving on."""
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """End the processes. Happens of itself when the pool is dropped, and when Python exits."""
        self._finalize()


def _no_threads() -> Any:
    import grain

    return grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Pools:
    """The pool that waits between two epochs, so that processes are started once and not in every epoch."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._idle: list[Pool] = []

    def at(self, plan: Plan, position: int) -> Pool:
        """A pool whose next batch is the one at `position`, counted over all epochs."""
        while self._idle:
            pool = self._idle.pop()
            if pool.position == position:
                return pool
            pool.close()
        return Pool(plan, self._workers, position)

    def keep(self, pool: Pool) -> None:
        """Take a pool back."""
        self._idle.append(pool)


class WorkerIterator:
    """The batches of one epoch; its state is the epoch and the number of batches taken."""

    def __init__(self, pools: Pools, plan: Plan, epoch: int) -> None:
        self._pools = pools
        self._plan = plan
        self._epoch = epoch
        self._taken = 0
        self._pool: Pool | None = None

    def __iter__(self) -> WorkerIterator:
        return self

    def __next__(self) -> Batch:
        if self._taken >= self._plan.batches:
            if self._pool is not None:
                self._pools.keep(self._pool)
                self._pool = None
            raise StopIteration
        if self._pool is None:
            self._pool = self._pools.at(self._plan, self._epoch * self._plan.batches + self._taken)
        try:
            batch = self._pool.take()
        except StopIteration:
            raise DataError("data: expected a batch from every worker process, got the end of one") from None
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The epoch and the number of batches taken."""
        return {"epoch": self._epoch, "batch": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Move to a state that `get_state` gave; raises `DataError` for one of another epoch or length."""
        self.close()
        self._taken = batch_of(state, self._epoch, self._plan.batches)

    def close(self) -> None:
        """End the processes of an epoch that is left before its end."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
