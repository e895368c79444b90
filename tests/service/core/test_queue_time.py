"""The queue's bound in time: what is expected to wait how long, who is refused for it, and when to come again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from service.core.errors import Overloaded
from service.core.request_queue import CALM_S, Pending, RequestQueue
from service.core.types import ServingConfig
from tests.service.core.queue_simulation import LIMIT, Nobody, simulate
from tests.service.core.served import HeldClock

BATCH_S = 0.04
"""Of 4 rows: 10 ms for each row ahead."""


class Waiting:
    """A queue of batches of up to 4 rows, of which one has been measured; time passes only when told."""

    def __init__(self, *, measured: bool = True, instances: int = 1, **config: int) -> None:
        self.clock = HeldClock()
        bounds = {"max_queue_wait_us": 105_000, "overload_wait_us": 55_000} | config
        self.queue = RequestQueue(ServingConfig(**bounds), 4, self.clock, "model 'm'", instances=instances)
        if measured:
            self.queue.computed(BATCH_S)

    def add(self, count: int = 1, *, rows: int = 1, level: int = 1, deadline: float = math.inf) -> None:
        """So many requests that come now."""
        for _ in range(count):
            inputs = {"x": np.zeros((rows, 1))}
            now = self.clock.now
            self.queue.add(Pending(Nobody(), inputs, rows, (), (), level, now, deadline, now))

    def take(self) -> int:
        """How many requests the next batch has."""
        lane, _ = self.queue.due(0.0)
        assert lane is not None
        return len(self.queue.take(lane)[0])


def test_nothing_is_refused_for_time_before_a_full_batch_was_measured():
    """Without a measured rate only numbers bound the queue, and the retry is a guess."""
    waiting = Waiting(measured=False, max_queue_requests=50)
    waiting.add(50)
    with pytest.raises(Overloaded, match="50 requests") as refused:
        waiting.add()
    assert refused.value.retry_after_s == 1.0
    assert waiting.queue.rows_per_s == 0


def test_request_is_refused_when_those_ahead_take_too_long_and_told_how_long():
    """105 ms at 10 ms a row: the one behind 11 rows is refused, and comes again when they are done."""
    waiting = Waiting()
    assert waiting.queue.rows_per_s == pytest.approx(100)
    waiting.add(11)
    with pytest.raises(Overloaded, match=r"at most 0\.105 s of waiting, 11 rows ahead take 0\.11 s") as refused:
        waiting.add()
    assert refused.value.retry_after_s == pytest.approx(0.11)
    assert waiting.queue.rows == waiting.queue.requests == 11


def test_overloaded_version_lets_less_wait_until_it_has_refused_nobody_for_a_second():
    """From the first refusal on the shorter bound holds, and each further refusal prolongs it."""
    waiting = Waiting()
    waiting.add(11)
    assert not waiting.queue.overloaded(waiting.clock.now)
    for _ in range(2):
        with pytest.raises(Overloaded):
            waiting.add()
        assert waiting.queue.overloaded(waiting.clock.now)
        waiting.clock.now += 0.75 * CALM_S
    assert (waiting.take(), waiting.take()) == (4, 4)
    waiting.add(3)
    with pytest.raises(Overloaded, match=r"at most 0\.055 s of waiting, 6 rows"):
        waiting.add()
    waiting.clock.now += CALM_S
    assert not waiting.queue.overloaded(waiting.clock.now)
    waiting.add(5)


def test_model_slower_than_the_bounds_may_always_have_its_next_batch_waiting():
    """Two batches of each instance wait, one while it is overloaded, however long they take: else it would idle."""
    waiting = Waiting(instances=2)
    for _ in range(50):
        waiting.queue.computed(100.0)
    waiting.add(16)
    with pytest.raises(Overloaded):
        waiting.add()
    assert [waiting.take() for _ in range(3)] == [4, 4, 4]
    waiting.add(4)
    with pytest.raises(Overloaded):
        waiting.add()


def test_urgent_request_waits_for_urgent_ones_only():
    """A flood of others does not have it refused; its own kind does."""
    waiting = Waiting()
    waiting.add(11)
    with pytest.raises(Overloaded):
        waiting.add()
    waiting.add(6, level=0)
    with pytest.raises(Overloaded, match="6 rows ahead"):
        waiting.add(level=0)


def test_request_that_cannot_be_in_time_is_refused_at_once():
    """No time is spent on an answer that nobody waits for any longer; that is not yet an overload."""
    waiting = Waiting()
    waiting.add(5)
    now = waiting.clock.now
    waiting.add(deadline=now + 0.051)
    with pytest.raises(Overloaded, match="the request's time is over before") as refused:
        waiting.add(deadline=now + 0.051)
    assert refused.value.retry_after_s == pytest.approx(0.06)
    assert not waiting.queue.overloaded(now)


def test_measured_rate_follows_what_full_batches_take():
    """Of two instances twice the rate; one outlier moves it by an eighth, a lasting change altogether."""
    waiting = Waiting(instances=2)
    assert waiting.queue.rows_per_s == pytest.approx(200)
    waiting.queue.computed(BATCH_S * 9)
    assert waiting.queue.rows_per_s == pytest.approx(100)
    for _ in range(100):
        waiting.queue.computed(BATCH_S / 2)
    assert waiting.queue.rows_per_s == pytest.approx(400, rel=0.01)


def test_one_slow_batch_is_not_believed_for_ever_where_no_full_one_can_follow():
    """A hang of a minute: requests with little time are refused then, so that no batch fills; smaller ones tell too."""
    waiting = Waiting()
    waiting.queue.computed(60.0)
    waiting.add(deadline=1.0)
    with pytest.raises(Overloaded, match="time is over before"):
        waiting.add(deadline=1.0)
    for _ in range(100):
        waiting.queue.computed_partly(BATCH_S / 2, 2)  # linear: a full one takes twice as long
    assert waiting.queue.rows_per_s == pytest.approx(100, rel=0.1)
    for _ in range(100):
        waiting.queue.computed_partly(BATCH_S, 1)  # a small one says little of a full one
    assert waiting.queue.rows_per_s == pytest.approx(100, rel=0.1)


COSTS: dict[str, Callable[[int], float]] = {
    "rows cost": lambda rows: 1e-4 + 5e-5 * rows,
    "calls cost": lambda rows: 4e-3 + 2e-5 * rows,
    "slow": lambda rows: 2e-2 + 1e-3 * rows,
}


@pytest.mark.parametrize("overload", [1.2, 2.0, 4.0])
@pytest.mark.parametrize("cost", COSTS)
def test_answers_stay_quick_and_as_many_under_overload(cost: str, overload: float):
    """Twice the load and more: p99 within 3 x that at 0.8 x the load, goodput 90 % of the most, in simulated time."""
    batch_s = COSTS[cost]
    most_per_s = LIMIT / batch_s(LIMIT)
    seconds = 5000 / most_per_s
    calm = simulate(batch_s, 0.8 * most_per_s, seconds=seconds)
    assert calm.refused == 0
    loaded = simulate(batch_s, overload * most_per_s, seconds=seconds)
    assert loaded.p99_s <= 3 * calm.p99_s
    assert len(loaded.latencies_s) >= 0.9 * most_per_s * seconds


def test_burst_that_fits_is_answered_whole():
    """What 100 ms can compute may come at once: 1900 rows at 19,000 a second, none of them refused."""
    waiting = Waiting(measured=False, max_queue_wait_us=100_000)
    waiting.queue.computed(4 / 19_394)
    waiting.add(1900)
    assert waiting.queue.requests == 1900
