"""Instances: several threads of one model share its queue, each with a partition and buffers of its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.core.batching import Batcher
from service.core.callers import AwaitingCaller
from service.core.errors import DeadlineExceeded, ExecutionFailed, NotReady
from service.core.fair_gate import FairGate, Turn
from service.core.ports import Processing
from service.core.request_queue import Pending
from service.core.statistics import Statistics
from service.core.types import ModelSpec, ServingConfig
from tests.service.core.open_models import read_text, text, text_spec
from tests.service.core.served import WAIT_S, HeldClock, RealClock
from tests.service.waiting import wait_until


class ManyModel:
    """A `LoadedModel` on several devices: each run whose first token is in `gates` waits for that gate."""

    def __init__(self, spec: ModelSpec, *, partitions: int = 1) -> None:
        self.spec = spec
        self.partitions = partitions
        self.warm_up_s = 0.0
        self.processing: Processing | None = None
        self.gates: dict[int, threading.Event] = {}
        self.running: set[int] = set()
        self.partitions_of: dict[int, int] = {}
        self.threads: set[int] = set()
        self.addresses: dict[int, int] = {}
        self.sizes: list[int] = []
        self.closed = 0
        self._lock = threading.Lock()

    def hold(self, *names: int) -> None:
        """Let runs of these names wait until `release`."""
        self.gates.update({name: threading.Event() for name in names})

    def release(self) -> None:
        """Let all runs go on."""
        for gate in self.gates.values():
            gate.set()

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        name = int(inputs["tokens"][0, 0])
        with self._lock:
            assert not self.closed, "run after close"
            self.running.add(name)
            self.partitions_of[name] = partition
            self.threads.add(threading.get_ident())
            self.addresses[name] = inputs["tokens"].ctypes.data
            self.sizes.append(int((inputs["tokens"][:, 0] != 0).sum()))
        if name in self.gates:
            assert self.gates[name].wait(WAIT_S), "the test never opened the gate"
        answer = read_text({key: array.copy() for key, array in inputs.items()})
        with self._lock:
            self.running.remove(name)
        if (inputs["tokens"] == 13).any():
            raise ExecutionFailed("thirteen")
        return answer

    def close(self) -> None:
        assert not self.running, "closed while computing"
        self.closed += 1


@asynccontextmanager
async def batcher(
    model: ManyModel, clock: RealClock | HeldClock | None = None, **config: int
) -> AsyncIterator[tuple[Batcher, Statistics]]:
    """A batcher around `model`, closed at the end."""
    statistics = Statistics()
    made = Batcher(model, ServingConfig(**config), clock or RealClock(), label="model", statistics=statistics)
    try:
        yield made, statistics
    finally:
        model.release()
        assert await asyncio.to_thread(made.close, WAIT_S)
        assert model.closed == 1


async def answer(made: Batcher, name: int, length: int = 4, **options: float) -> dict[str, np.ndarray]:
    """The answer to one request of one row."""
    pending = made.submit(AwaitingCaller(), text([name] * length), 1, (length,), **options)  # type: ignore[arg-type]
    return await asyncio.wait_for(pending.caller.future, WAIT_S)


async def test_each_partition_has_its_instances_and_each_instance_its_buffers() -> None:
    """2 instances on 2 partitions compute 4 batches at the same time, 2 on each, at 4 different addresses."""
    model = ManyModel(text_spec(max_batch_size=1), partitions=2)
    model.hold(1, 2, 3, 4)
    async with batcher(model, instances=2) as (made, _):
        waiting = [asyncio.create_task(answer(made, name)) for name in (1, 2, 3, 4, 5)]
        await wait_until(lambda: len(model.running) == 4)
        assert (made.running, made.depth) == (4, 1)
        model.release()
        for name, each in enumerate(waiting, start=1):
            assert (await each)["doubled"].tolist() == read_text(text([name] * 4))["doubled"].tolist()
        await wait_until(lambda: made.running == 0)
    partitions = [model.partitions_of[name] for name in (1, 2, 3, 4)]
    assert sorted(partitions) == [0, 0, 1, 1]
    assert len({model.addresses[name] for name in (1, 2, 3, 4)}) == 4
    assert len(model.threads) == 4


async def test_idle_instance_takes_what_waits_while_another_hangs() -> None:
    """One batch that hangs holds up nobody but its own callers."""
    model = ManyModel(text_spec())
    model.hold(1)
    async with batcher(model, instances=2) as (made, statistics):
        hanging = asyncio.create_task(answer(made, 1))
        await wait_until(lambda: 1 in model.running)
        for name in range(20, 40):
            await answer(made, name)
        assert not hanging.done()
        model.release()
        await hanging
    assert (statistics.success.count, statistics.executions, statistics.failure.count) == (21, 21, 0)


async def test_instances_take_different_keys_at_the_same_time() -> None:
    """What one instance leaves because its key differs, another takes without waiting."""
    model = ManyModel(text_spec())
    model.hold(1, 2, 3)
    async with batcher(model, instances=3) as (made, _):
        waiting = [asyncio.create_task(answer(made, name, length)) for name, length in ((1, 4), (2, 8), (3, 16))]
        await wait_until(lambda: model.running == {1, 2, 3})
        model.release()
        await asyncio.gather(*waiting)


async def test_delay_holds_with_several_idle_instances() -> None:
    """Company is waited for once, by one instance, and a full batch is computed whole."""
    model = ManyModel(text_spec(max_batch_size=4))
    async with batcher(model, HeldClock(), instances=3, max_queue_delay_us=3_600_000_000) as (made, _):
        for first in (1, 5, 9):
            batch = [asyncio.create_task(answer(made, name)) for name in range(first, first + 4)]
            await asyncio.gather(*batch)
    assert model.sizes == [4, 4, 4]


async def test_delay_ends_with_several_idle_instances() -> None:
    """Lone requests of several keys are computed when their delay is over, though nothing else comes."""
    model = ManyModel(text_spec())
    async with batcher(model, instances=2, max_queue_delay_us=2000) as (made, statistics):
        await asyncio.gather(*(answer(made, length, length) for length in (3, 7, 12)))
        await answer(made, 5)
    assert statistics.queue.ns >= 4 * 2_000_000


async def test_delay_of_a_key_is_watched_while_the_instance_that_watched_computes() -> None:
    """Who takes one key's batch leaves the watch over the other key to an idle instance."""
    model, clock = ManyModel(text_spec()), RealClock()
    model.hold(1)
    async with batcher(model, clock, instances=2, max_queue_delay_us=20_000) as (made, _):
        began = clock.monotonic()
        hanging = asyncio.create_task(answer(made, 1))
        await wait_until(lambda: clock.monotonic() > began + 0.005, every_s=0.001)
        await answer(made, 2, 16)
        assert model.running == {1}
        model.release()
        await hanging


async def test_close_waits_for_every_instance_and_frees_the_model_once() -> None:
    """What waits is drained by whoever is free; the model is closed after the last batch, not before."""
    model = ManyModel(text_spec(max_batch_size=1))
    model.hold(1, 2)
    async with batcher(model, instances=3) as (made, _):
        tasks = [asyncio.create_task(answer(made, name)) for name in (1, 2, 3, 4, 5)]
        await wait_until(lambda: model.running == {1, 2} and made.depth == 0)
        assert not await asyncio.to_thread(made.close, 0.01)
        await asyncio.gather(*tasks[2:])
        with pytest.raises(NotReady):
            made.submit(AwaitingCaller(), text([9]), 1, (1,))
        model.gates[1].set()
        await tasks[0]
        assert not model.closed
        model.release()
        await tasks[1]


async def test_idle_instances_close_at_once() -> None:
    """Nothing was ever asked of it: all threads end."""
    model = ManyModel(text_spec(), partitions=2)
    async with batcher(model, instances=2):
        pass


async def test_computing_time_is_that_of_the_oldest_batch() -> None:
    """0 while idle; then as long as the batch that began first, and 0 again."""
    model, clock = ManyModel(text_spec()), HeldClock()
    model.hold(1, 2)
    async with batcher(model, clock, instances=2) as (made, _):
        assert made.computing_s == 0
        first = asyncio.create_task(answer(made, 1))
        await wait_until(lambda: 1 in model.running)
        clock.now += 5
        second = asyncio.create_task(answer(made, 2))
        await wait_until(lambda: 2 in model.running)
        clock.now += 2
        assert made.computing_s == 7
        model.gates[1].set()
        await first
        await wait_until(lambda: made.computing_s == 2)
        model.gates[2].set()
        await second
        await wait_until(lambda: made.computing_s == 0)


async def test_deadline_is_honoured_while_one_instance_hangs() -> None:
    """A request in a hanging batch gets its error in time, and the other instance answers on."""
    model, clock = ManyModel(text_spec()), RealClock()
    model.hold(1)
    async with batcher(model, instances=2) as (made, statistics):
        with pytest.raises(DeadlineExceeded):
            await answer(made, 1, deadline=clock.monotonic() + 0.02)
        await answer(made, 2)
        assert made.computing_s > 0
    assert statistics.failures == {"deadline": 1}


@pytest.mark.parametrize("delay_us", [0, 300])
@pytest.mark.parametrize("instances", [2, 5])
async def test_many_requests_on_many_instances_all_get_their_own_answer(instances: int, delay_us: int) -> None:
    """Bursts of random sizes and keys, one poisoned: nobody waits for ever, every answer and count is right."""
    draw = random.Random(instances + delay_us)
    model = ManyModel(text_spec(), partitions=2)
    async with batcher(model, instances=instances, max_queue_delay_us=delay_us) as (made, statistics):
        for burst in range(1, 31):
            sent = [submit_at_random(made, draw, 100 * burst + number) for number in range(draw.randint(1, 12))]
            bad = made.submit(AwaitingCaller(), text([13, 13]), 1, (2,)) if burst % 6 == 0 else None
            for pending in sent:
                got = await asyncio.wait_for(pending.caller.future, WAIT_S)
                for output, expected in read_text(pending.inputs).items():
                    np.testing.assert_array_equal(got[output], expected)
            if bad is not None:
                with pytest.raises(ExecutionFailed, match="thirteen"):
                    await asyncio.wait_for(bad.caller.future, WAIT_S)
        assert (made.depth, statistics.failures) == (0, {"execution": 5})


def submit_at_random(made: Batcher, draw: random.Random, name: int) -> Pending:
    """A request of one to three rows and any length, whose tokens are its own."""
    rows, length = draw.randint(1, 3), draw.randint(1, 16)
    inputs = text(*[[name + row] * length for row in range(rows)])
    return made.submit(AwaitingCaller(), inputs, rows, (length,), priority=draw.randint(0, 3))


async def test_instances_take_turns_at_their_device_and_gather_company_meanwhile() -> None:
    """While another version computes there nothing is taken from the queue; then one batch has all that came."""
    gate, clock = FairGate(1, RealClock()), RealClock()
    other = Turn(gate.join())
    assert gate.enter(other)
    model = ManyModel(text_spec(max_batch_size=4))
    made = Batcher(model, ServingConfig(instances=2), clock, label="model", statistics=Statistics(), gates=[gate])
    callers = [AwaitingCaller() for _ in range(4)]
    for caller in callers:
        made.submit(caller, text([5] * 4), 1, (4,))
    await wait_until(lambda: gate.waiting)
    assert (made.depth, made.running, made.computing_s) == (4, 0, 0)
    gate.leave(other)
    await asyncio.gather(*[caller.future for caller in callers])
    assert model.sizes == [4]
    assert await asyncio.to_thread(made.close, WAIT_S)
    assert gate.enter(other), "the device is free again"
