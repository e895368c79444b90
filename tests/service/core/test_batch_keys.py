"""Batch keys: only requests of one key share a batch, the most urgent and oldest decides whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.core.batching import Batcher
from service.core.callers import AwaitingCaller
from service.core.errors import DeadlineExceeded
from service.core.request_queue import Pending
from service.core.statistics import Statistics
from service.core.types import ServingConfig
from tests.service.core.open_models import read_text, text, text_spec
from tests.service.core.served import WAIT_S, HeldClock, HeldModel, RealClock


@asynccontextmanager
async def batcher(
    model: HeldModel, clock: RealClock | HeldClock | None = None, **config: int
) -> AsyncIterator[Batcher]:
    """A batcher around `model`, closed at the end."""
    made = Batcher(model, ServingConfig(**config), clock or RealClock(), label="model", statistics=Statistics())
    try:
        yield made
    finally:
        model.gate.set()
        assert await asyncio.to_thread(made.close, WAIT_S)


class Queue:
    """Requests named by their first token, behind one that is being computed."""

    def __init__(self, made: Batcher, model: HeldModel, clock: HeldClock | None = None) -> None:
        self._made, self._model, self._clock = made, model, clock
        self.sent: list[Pending] = []

    async def hold(self) -> None:
        """Let the model begin with a request of its own, named 0."""
        self.send(0, 1)
        assert await asyncio.to_thread(self._model.started.acquire, timeout=WAIT_S)

    def send(self, name: int, length: int, *, rows: int = 1, **options: float) -> Pending:
        """Queue a request of `rows` rows, a second after the one before."""
        if self._clock is not None:
            self._clock.now += 1
        inputs = text(*[[name] * length] * rows)
        pending = self._made.submit(AwaitingCaller(), inputs, rows, (length,), **options)  # type: ignore[arg-type]
        self.sent.append(pending)
        return pending

    async def batches(self) -> list[list[int]]:
        """Open the gate; the names in each batch, that of the first request left out."""
        self._model.gate.set()
        for pending in self.sent:
            await asyncio.wait_for(asyncio.gather(pending.caller.future, return_exceptions=True), WAIT_S)
        taken = [[int(name) for name in batch["tokens"][:, 0] if name] for batch in self._model.batches]
        return [names for names in taken if names]


async def test_only_requests_of_one_key_share_a_batch() -> None:
    """The oldest request's key goes first and takes all that fits of it; lengths of one bucket are one key."""
    model, clock = HeldModel(text_spec(), read_text, held=True), HeldClock()
    async with batcher(model, clock) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        for name, length in ((1, 8), (2, 3), (3, 6), (4, 16), (5, 4), (6, 5)):
            queue.send(name, length)
        assert await queue.batches() == [[1, 3, 6], [2, 5], [4]]
    assert [batch["tokens"].shape for batch in model.batches] == [(1, 4), (4, 8), (2, 4), (1, 16)]


async def test_most_urgent_request_decides_and_takes_less_urgent_ones_of_its_key_along() -> None:
    """Priority goes before age between keys and within one."""
    model, clock = HeldModel(text_spec(), read_text, held=True), HeldClock()
    async with batcher(model, clock) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        for name, length, priority in ((1, 4, 3), (2, 8, 2), (3, 16, 1), (4, 8, 1), (5, 16, 3), (6, 8, 2)):
            queue.send(name, length, priority=priority)
        assert await queue.batches() == [[3, 5], [4, 2, 6], [1]]


async def test_no_key_starves_another() -> None:
    """A key that always has more than a batch waiting gives way to an older request of another key."""
    model, clock = HeldModel(text_spec(max_batch_size=2), read_text, held=True), HeldClock()
    async with batcher(model, clock) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        for name in (1, 2, 3):
            queue.send(name, 4)
        queue.send(4, 8)
        for name in (5, 6, 7):
            queue.send(name, 4)
        queue.send(8, 16)
        queue.send(9, 8)
        assert await queue.batches() == [[1, 2], [3, 5], [4, 9], [6, 7], [8]]


async def test_request_that_does_not_fit_holds_back_its_own_key_only() -> None:
    """Within a key nothing overtakes a request that waits for room; other keys have their turn by age."""
    model, clock = HeldModel(text_spec(), read_text, held=True), HeldClock()
    async with batcher(model, clock) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        queue.send(1, 4, rows=3)
        queue.send(2, 4, rows=2)
        queue.send(3, 8)
        queue.send(4, 4)
        assert await queue.batches() == [[1, 1, 1], [2, 2, 4], [3]]


async def test_delay_counts_for_each_key_and_a_full_batch_does_not_wait_for_another_key() -> None:
    """A full key starts at once; the other waits on for company, and goes when its own time is over."""
    model, clock = HeldModel(text_spec(max_batch_size=2), read_text), HeldClock()
    async with batcher(model, clock, max_queue_delay_us=3_600_000_000) as made:
        lonely = made.submit(AwaitingCaller(), text([1]), 1, (1,))
        full = [made.submit(AwaitingCaller(), text([name] * 8), 1, (8,)) for name in (2, 3)]
        for pending in full:
            await asyncio.wait_for(pending.caller.future, WAIT_S)
        assert (made.depth, lonely.caller.future.done()) == (1, False)
        company = made.submit(AwaitingCaller(), text([4]), 1, (1,))
        await asyncio.wait_for(company.caller.future, WAIT_S)
        assert lonely.caller.future.done()
    assert [batch["tokens"][:, 0].tolist() for batch in model.batches] == [[2, 3], [1, 4]]


async def test_delay_of_each_key_ends() -> None:
    """Requests of several keys are all computed once they have waited long enough."""
    model = HeldModel(text_spec(), read_text)
    async with batcher(model, max_queue_delay_us=2000) as made:
        pending = [made.submit(AwaitingCaller(), text([1] * length), 1, (length,)) for length in (3, 7, 12)]
        for each in pending:
            await asyncio.wait_for(each.caller.future, WAIT_S)
    assert sorted(batch["tokens"].shape for batch in model.batches) == [(1, 4), (1, 8), (1, 16)]


async def test_overdue_and_cancelled_requests_of_any_key_leave_the_queue() -> None:
    """Deadlines and cancellations reach every key, and count for the bounds of the queue."""
    model, clock = HeldModel(text_spec(), read_text, held=True), HeldClock()
    async with batcher(model, clock, max_queue_requests=4) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        gone, late = queue.send(1, 8), queue.send(2, 16, deadline=clock.now + 5)
        queue.send(3, 16)
        gone.caller.future.cancel()
        made.discard(gone)
        assert made.depth == 2
        clock.now += 60
        assert await queue.batches() == [[3]]
        with pytest.raises(DeadlineExceeded):
            late.caller.future.result()
        assert made.depth == 0


async def test_default_priority_is_what_priority_0_means() -> None:
    """With a default of 3, requests that say nothing wait behind those of priority 2."""
    model, clock = HeldModel(text_spec(max_batch_size=1), read_text, held=True), HeldClock()
    async with batcher(model, clock, default_priority=3) as made:
        queue = Queue(made, model, clock)
        await queue.hold()
        for name, priority in ((1, 0), (2, 2), (3, 3), (4, 1)):
            queue.send(name, 4, priority=priority)
        assert await queue.batches() == [[4], [2], [1], [3]]


async def test_answers_of_keys_have_the_sizes_of_their_requests() -> None:
    """Every caller gets its own rows, as long as it sent them."""
    model = HeldModel(text_spec(), read_text, held=True)
    async with batcher(model) as made:
        queue = Queue(made, model)
        await queue.hold()
        for name in range(1, 17):
            queue.send(name, name)
        await queue.batches()
    for pending in queue.sent:
        np.testing.assert_array_equal(pending.caller.future.result()["doubled"], read_text(pending.inputs)["doubled"])
