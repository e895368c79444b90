"""Batching: work-conserving, bounded, and every caller gets exactly its own rows or its own error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service.core.batch_buffers import ALIGNMENT, aligned_zeros
from service.core.batching import Batcher
from service.core.callers import AwaitingCaller
from service.core.errors import (
    DeadlineExceeded,
    ExecutionFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    TooLarge,
)
from service.core.request_queue import Pending
from service.core.statistics import Statistics
from service.core.types import ServingConfig
from tests.service.core.served import WAIT_S, HeldClock, HeldModel, RealClock, double, serve, spec


def rows(*firsts: float) -> dict[str, np.ndarray]:
    """A request with one row per number: `[first, first + 0.25, first + 0.5]`."""
    return {"x": np.array([[first, first + 0.25, first + 0.5] for first in firsts], np.float32).reshape(-1, 3)}


@asynccontextmanager
async def batcher(
    model: HeldModel, clock: RealClock | HeldClock | None = None, **config: int
) -> AsyncIterator[tuple[Batcher, Statistics]]:
    """A batcher around `model`, closed at the end."""
    statistics = Statistics()
    made = Batcher(model, ServingConfig(**config), clock or RealClock(), label="model 'fake'", statistics=statistics)
    try:
        yield made, statistics
    finally:
        model.gate.set()
        assert await asyncio.to_thread(made.close, WAIT_S)
        assert model.closed.is_set()


async def started(model: HeldModel) -> None:
    """Wait until one more run has begun."""
    assert await asyncio.to_thread(model.started.acquire, timeout=WAIT_S)


async def answer(pending: Pending) -> dict[str, np.ndarray]:
    """What a caller gets."""
    return await asyncio.wait_for(pending.caller.future, WAIT_S)


def submit(made: Batcher, inputs: Mapping[str, np.ndarray], **options: float) -> Pending:
    """Submit with the row count of `inputs`."""
    return made.submit(AwaitingCaller(), inputs, inputs["x"].shape[0], **options)  # type: ignore[arg-type]


async def test_idle_model_runs_a_request_at_once() -> None:
    """One request on an idle model is one batch of its own, in the smallest bucket that holds it."""
    model = HeldModel(spec(max_batch_size=8))
    async with batcher(model) as (made, _):
        result = await answer(submit(made, rows(1, 2, 3)))
    np.testing.assert_array_equal(result["doubled"], rows(1, 2, 3)["x"] * 2)
    assert [batch["x"].shape for batch in model.batches] == [(4, 3)]
    np.testing.assert_array_equal(model.batches[0]["x"][3], np.zeros(3))


async def test_requests_of_one_turn_of_the_event_loop_are_one_batch() -> None:
    """An idle model waits for the end of the turn, not for more."""
    model = HeldModel(spec(max_batch_size=8))
    async with batcher(model) as (made, _):
        for pending in [submit(made, rows(number)) for number in range(5)]:
            await answer(pending)
    assert [batch["x"][:, 0].tolist() for batch in model.batches] == [[0, 1, 2, 3, 4, 0, 0, 0]]


class Raising:
    """A caller that cannot take an answer; `error` is what it is told then."""

    error: Exception | None = None

    def answered(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Fail."""
        raise RuntimeError("no")

    def failed(self, error: Exception) -> None:
        """Keep it."""
        self.error = error


async def test_caller_that_cannot_take_its_answer_is_told_of_a_failure_and_alone(caplog) -> None:
    """What its neighbours get is theirs."""
    model = HeldModel(spec(max_batch_size=8))
    caller = Raising()
    async with batcher(model) as (made, statistics):
        made.submit(caller, rows(1), 1)
        np.testing.assert_array_equal((await answer(submit(made, rows(2))))["doubled"], rows(2)["x"] * 2)
    assert isinstance(caller.error, ExecutionFailed)
    assert (statistics.success.count, statistics.failures) == (1, {"execution": 1})
    assert "could not take its answer" in caplog.text


async def test_busy_model_gathers_what_comes_into_one_batch() -> None:
    """Requests that come during a run form the next batch together, up to `max_batch_size` rows, in order."""
    model = HeldModel(spec(max_batch_size=4), held=True)
    async with batcher(model) as (made, statistics):
        first = submit(made, rows(1))
        await started(model)
        waiting = [submit(made, rows(10 + i)) for i in range(5)]
        assert made.depth == 5
        model.gate.set()
        results = [await answer(pending) for pending in (first, *waiting)]
    assert [batch["x"][:, 0].tolist() for batch in model.batches] == [[1], [10, 11, 12, 13], [14]]
    assert [float(result["doubled"][0, 0]) for result in results] == [2, 20, 22, 24, 26, 28]
    assert (statistics.inferences, statistics.executions, statistics.success.count) == (6, 3, 6)


async def test_request_that_does_not_fit_waits_for_the_next_batch() -> None:
    """A batch never exceeds `max_batch_size`, and no later request overtakes one that did not fit."""
    model = HeldModel(spec(max_batch_size=4), held=True)
    async with batcher(model) as (made, _):
        first = submit(made, rows(0))
        await started(model)
        waiting = [submit(made, rows(1, 2, 3)), submit(made, rows(4, 5)), submit(made, rows(6))]
        model.gate.set()
        for pending in (first, *waiting):
            await answer(pending)
    assert [batch["x"][:, 0].tolist() for batch in model.batches] == [[0], [1, 2, 3, 0], [4, 5, 6, 0]]


async def test_padding_is_zero_after_a_larger_batch() -> None:
    """Rows of an earlier, larger batch never reach a later one through the reused buffer."""
    model = HeldModel(spec(max_batch_size=8))
    async with batcher(model) as (made, statistics):
        await answer(submit(made, rows(*range(1, 8))))
        await answer(submit(made, rows(9, 9, 9, 9, 9)))
    np.testing.assert_array_equal(model.batches[1]["x"][5:], np.zeros((3, 3)))
    assert statistics.padding == 4


async def test_buffers_are_aligned_and_reused() -> None:
    """Every batch lies at the same address, a multiple of 64."""
    model = HeldModel(spec(max_batch_size=8))
    async with batcher(model) as (made, _):
        for count in (1, 5, 8, 2):
            await answer(submit(made, rows(*range(count))))
    assert len(set(model.addresses)) == 1
    assert model.addresses[0] % ALIGNMENT == 0


async def test_answer_survives_the_next_batch_when_the_model_returns_its_input() -> None:
    """An output that is the input buffer itself is copied before the buffer is filled again."""
    model = HeldModel(spec(), lambda inputs: {"same": inputs["x"]})
    async with batcher(model) as (made, _):
        first = await answer(submit(made, rows(1)))
        await answer(submit(made, rows(2)))
    np.testing.assert_array_equal(first["same"], rows(1)["x"])


async def test_empty_request_gets_an_empty_answer() -> None:
    """A request without rows is legal and answered with none."""
    model = HeldModel(spec())
    async with batcher(model) as (made, _):
        result = await answer(submit(made, rows()))
    assert result["doubled"].shape == (0, 3)


async def test_poisoned_request_fails_alone() -> None:
    """When a batch fails, its requests are run one by one and only the culprit gets the error."""

    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (inputs["x"] == 13).any():
            raise ExecutionFailed("thirteen")
        return double(inputs)

    model = HeldModel(spec(), compute, held=True)
    async with batcher(model) as (made, statistics):
        first = submit(made, rows(1))
        await started(model)
        good, bad, also_good = submit(made, rows(2)), submit(made, rows(13, 3)), submit(made, rows(4))
        model.gate.set()
        await answer(first)
        assert (await answer(good))["doubled"][0, 0] == 4
        assert (await answer(also_good))["doubled"][0, 0] == 8
        with pytest.raises(ExecutionFailed, match="thirteen"):
            await answer(bad)
    assert statistics.failures == {"execution": 1}
    assert statistics.success.count == 3


async def test_unplanned_failure_shows_no_details(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is none of ours becomes ExecutionFailed without its text, which is logged."""

    def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise ValueError("secret path")

    model = HeldModel(spec(), compute)
    async with batcher(model) as (made, _):
        with pytest.raises(ExecutionFailed) as raised:
            await answer(submit(made, rows(1)))
    assert "secret" not in str(raised.value)
    assert "secret path" in caplog.text


async def test_output_of_the_wrong_length_is_a_failure() -> None:
    """A model that returns another number of rows than it got must not shift answers between callers."""
    model = HeldModel(spec(), lambda inputs: {"doubled": np.zeros((1, 3))})
    async with batcher(model) as (made, _):
        with pytest.raises(ExecutionFailed, match="expected 2 rows"):
            await answer(submit(made, rows(1, 2)))


async def test_full_queue_refuses() -> None:
    """Beyond `max_queue_requests` waiting requests the next one is refused, until one has been taken."""
    model = HeldModel(spec(), held=True)
    async with batcher(model, max_queue_requests=2) as (made, _):
        running = submit(made, rows(0))
        await started(model)
        waiting = [submit(made, rows(1)), submit(made, rows(2))]
        with pytest.raises(Overloaded, match="2 requests"):
            submit(made, rows(3))
        model.gate.set()
        for pending in (running, *waiting):
            await answer(pending)
        await answer(submit(made, rows(4)))


async def test_queue_is_bounded_in_bytes() -> None:
    """Waiting inputs never exceed `max_queue_bytes`; one that alone exceeds it is too large."""
    model = HeldModel(spec(), held=True)
    async with batcher(model, max_queue_bytes=36) as (made, _):
        running = submit(made, rows(0))
        await started(model)
        waiting = submit(made, rows(1, 2))
        with pytest.raises(Overloaded, match="24 bytes"):
            submit(made, rows(3, 4))
        with pytest.raises(TooLarge, match="at most 36 bytes"):
            submit(made, rows(3, 4, 5, 6))
        model.gate.set()
        await answer(running)
        await answer(waiting)


async def test_deadline_is_honoured_before_compute() -> None:
    """A request whose time is over when its batch is taken is not computed."""
    clock = HeldClock()
    model = HeldModel(spec(), held=True)
    async with batcher(model, clock) as (made, statistics):
        running = submit(made, rows(0))
        await started(model)
        late = submit(made, rows(1), deadline=clock.now + 3600)
        in_time = submit(made, rows(2), deadline=clock.now + 7200)
        clock.now += 3601
        model.gate.set()
        await answer(running)
        with pytest.raises(DeadlineExceeded):
            await answer(late)
        await answer(in_time)
    assert [batch["x"][0, 0] for batch in model.batches] == [0, 2]
    assert statistics.failures == {"deadline": 1}


async def test_deadline_is_honoured_while_the_model_hangs() -> None:
    """Callers get DeadlineExceeded in time, waiting or being computed, although the model never returns."""
    model = HeldModel(spec(), held=True)
    clock = RealClock()
    async with batcher(model) as (made, _):
        running = submit(made, rows(0), deadline=clock.monotonic() + 0.02)
        await started(model)
        waiting = submit(made, rows(1), deadline=clock.monotonic() + 0.01)
        for pending in (waiting, running):
            with pytest.raises(DeadlineExceeded):
                await answer(pending)
        assert made.depth == 0
    assert len(model.batches) == 1


async def test_past_deadline_is_refused_at_once() -> None:
    """Nothing is queued for a request that comes too late."""
    model = HeldModel(spec())
    clock = HeldClock()
    async with batcher(model, clock) as (made, _):
        with pytest.raises(DeadlineExceeded):
            submit(made, rows(0), deadline=clock.now)
        assert made.depth == 0


async def test_cancelled_request_frees_its_place_and_is_not_computed() -> None:
    """A caller that goes away leaves the queue at once, so that another can have its place."""
    model = HeldModel(spec(), held=True)
    async with batcher(model, max_queue_requests=1) as (made, statistics):
        running = submit(made, rows(0))
        await started(model)
        gone = submit(made, rows(1))
        made.discard(gone)
        made.discard(gone)
        kept = submit(made, rows(2))
        model.gate.set()
        await answer(running)
        await answer(kept)
    assert [batch["x"][0, 0] for batch in model.batches] == [0, 2]
    assert statistics.failures == {"cancelled": 1}


async def test_higher_priority_is_served_first() -> None:
    """Priority 1 goes before the default, the default before the rest; equals keep their order."""
    model = HeldModel(spec(max_batch_size=1), held=True)
    async with batcher(model) as (made, _):
        pending = [submit(made, rows(0))]
        await started(model)
        pending += [submit(made, rows(number), priority=level) for number, level in ((1, 9), (2, 0), (3, 1), (4, 2))]
        model.gate.set()
        for each in pending:
            await answer(each)
    assert [batch["x"][0, 0] for batch in model.batches] == [0, 3, 2, 4, 1]


async def test_delay_waits_for_company_up_to_a_full_batch() -> None:
    """With `max_queue_delay_us` an idle model waits; a full batch ends the wait early."""
    model = HeldModel(spec(max_batch_size=2))
    async with batcher(model, HeldClock(), max_queue_delay_us=3_600_000_000) as (made, _):
        pending = [submit(made, rows(1)), submit(made, rows(2))]
        for each in pending:
            await answer(each)
    assert [batch["x"][:, 0].tolist() for batch in model.batches] == [[1, 2]]


async def test_delay_ends_when_the_oldest_has_waited_long_enough() -> None:
    """A lone request is computed once its delay is over."""
    model = HeldModel(spec(max_batch_size=8))
    async with batcher(model, max_queue_delay_us=2000) as (made, statistics):
        await answer(submit(made, rows(1)))
    assert statistics.queue.ns >= 2_000_000


async def test_unbatched_model_runs_requests_alone_and_in_order() -> None:
    """With `max_batch_size` 0 each request is a run of its own with its own shape."""
    model = HeldModel(spec(max_batch_size=0), held=True)
    async with batcher(model) as (made, _):
        pending = [made.submit(AwaitingCaller(), rows(*range(count)), 1) for count in (1, 3, 2)]
        model.gate.set()
        shapes = [(await answer(each))["doubled"].shape for each in pending]
    assert shapes == [(1, 3), (3, 3), (2, 3)]
    assert [batch["x"].shape for batch in model.batches] == [(1, 3), (3, 3), (2, 3)]


async def test_close_drains_then_refuses() -> None:
    """Waiting requests are computed before the model is closed; later ones are refused."""
    model = HeldModel(spec(max_batch_size=1), held=True)
    async with batcher(model) as (made, _):
        pending = [submit(made, rows(0)), submit(made, rows(1))]
        closing = asyncio.create_task(asyncio.to_thread(made.close, WAIT_S))
        await started(model)
        model.gate.set()
        for each in pending:
            await answer(each)
        assert await closing
        with pytest.raises(NotReady):
            submit(made, rows(2))


async def test_close_fails_the_rest_when_time_is_over() -> None:
    """What is still waiting after `drain_s` gets NotReady; the running batch ends and only then the model closes."""
    model = HeldModel(spec(max_batch_size=1), held=True)
    async with batcher(model) as (made, statistics):
        running = submit(made, rows(0))
        await started(model)
        waiting = submit(made, rows(1))
        assert not await asyncio.to_thread(made.close, 0.01)
        with pytest.raises(NotReady):
            await answer(waiting)
        assert not model.closed.is_set()
        model.gate.set()
        await answer(running)
    assert statistics.failures == {"not_ready": 1}


async def test_futures_of_a_batch_resolve_in_one_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call across threads per batch, however many callers it has."""
    model = HeldModel(spec(max_batch_size=8), held=True)
    async with batcher(model) as (made, _):
        loop = asyncio.get_running_loop()
        real, calls = loop.call_soon_threadsafe, []
        first = submit(made, rows(0))
        await started(model)
        waiting = [submit(made, rows(number)) for number in range(8)]

        def counted(callback, *arguments, **options):  # type: ignore[no-untyped-def]
            if getattr(callback, "__self__", None) is made:
                calls.append(callback)
            return real(callback, *arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        model.gate.set()
        for pending in (first, *waiting):
            await answer(pending)
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64, np.bool_])
def test_aligned_zeros_have_shape_dtype_and_alignment(dtype: type) -> None:
    """Zeros of the shape asked for, at a multiple of 64 bytes."""
    made = aligned_zeros((3, 5), np.dtype(dtype))
    assert made.shape == (3, 5)
    assert made.dtype == dtype
    assert made.ctypes.data % ALIGNMENT == 0
    assert not made.any()


def poisonous(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fails on negative numbers."""
    if (inputs["x"] < 0).any():
        raise ExecutionFailed("poisoned")
    return double(inputs)


def submit_at_random(
    made: Batcher, draw: random.Random, clock: HeldClock, most: int
) -> list[tuple[Pending, np.ndarray, type[BaseException] | None]]:
    """120 requests, one of them poisoned, with what each caller must get: None for its rows."""
    sent = []
    poisoned = draw.randrange(120)
    for number in range(120):
        count = draw.randint(0, most) if number != poisoned else 1
        inputs = rows(*(number * 100 + row for row in range(count)))
        expected: type[BaseException] | None = None
        if number == poisoned:
            inputs, expected = {"x": -1 - inputs["x"]}, ExecutionFailed
        elif draw.random() < 0.2:
            expected = draw.choice([asyncio.CancelledError, DeadlineExceeded])
        deadline = clock.now + (5.0 if expected is DeadlineExceeded else 5000.0)
        pending = submit(made, inputs, deadline=deadline, priority=draw.randint(0, 4))
        sent.append((pending, inputs["x"], expected))
    for pending, _, expected in sent:
        if expected is asyncio.CancelledError:
            pending.caller.future.cancel()
            made.discard(pending)
    return sent


@pytest.mark.parametrize("seed", range(8))
async def test_every_caller_gets_its_own_rows_or_its_own_error(seed: int) -> None:
    """Random sizes, cancellations, deadlines, priorities and one poisoned request: nobody gets another's answer."""
    draw, clock = random.Random(seed), HeldClock()
    model = HeldModel(spec(max_batch_size=draw.choice([1, 4, 7, 16])), poisonous, held=True)
    async with batcher(model, clock) as (made, statistics):
        blocker = submit(made, rows(0))
        await started(model)
        sent = submit_at_random(made, draw, clock, model.spec.max_batch_size)
        clock.now += 10
        model.gate.set()
        await answer(blocker)
        for pending, x, expected in sent:
            if expected is None:
                result = await answer(pending)
                np.testing.assert_array_equal(result["doubled"], x + x)
                np.testing.assert_allclose(result["total"], x.astype(np.float64).sum(axis=1))
            else:
                with pytest.raises(expected):
                    await answer(pending)
        assert made.depth == 0
    errors = [expected for _, _, expected in sent]
    assert statistics.success.count == errors.count(None) + 1
    assert statistics.failures.get("deadline", 0) == errors.count(DeadlineExceeded)


async def test_too_many_rows_is_for_the_caller_of_the_model() -> None:
    """The batcher's own contract: a request of more than `max_batch_size` rows is refused before it gets here."""
    served = serve(HeldModel(spec(max_batch_size=4)))
    with pytest.raises(InvalidRequest, match="at most 4 rows in one request, got 5"):
        await served.infer(rows(1, 2, 3, 4, 5))
    assert await served.close(WAIT_S)


async def test_longest_execution_is_remembered_for_a_while() -> None:
    """At first that of the warm-up; one that hung is forgotten after some more."""
    clock, model = HeldClock(), HeldModel(spec(max_batch_size=4), held=True, warm_up_s=3.0)
    async with batcher(model, clock) as (made, _):
        assert made.longest_s == 3
        hung = submit(made, rows(1))
        await started(model)
        clock.now += 20
        assert made.computing_s == 20
        model.gate.set()
        await answer(hung)
        assert made.longest_s == 20
        for _ in range(128):
            await answer(submit(made, rows(1)))
        assert made.longest_s == 0
