"""The monitor with a held clock: what is told of checks that fail, hang and come back, and of a hung execution."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from service.core.errors import NotReady
from service.core.health import Check, HealthMonitor, Part, free_space, in_thread
from service.core.inference import InferenceService
from tests.service.core.served import FakeRegistry, HeldClock, RealClock
from tests.service.waiting import wait_until


class Switch:
    """A check that fails while `error` is set and hangs while `gate` is closed."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Version:
    """A served version that computes."""

    computing_s: float
    longest_s: float = 0.0
    label: str = "model 'm' version 1"


@contextlib.asynccontextmanager
async def running(monitor: HealthMonitor) -> AsyncIterator[None]:
    """The monitor at work until the block ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(monitor.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 5)


def reason(parts: Sequence[Part], name: str) -> str:
    """Of one part."""
    return next(part.reason for part in parts if part.part == name)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotReady("the store is not there"), "the store is not there"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("secret"), "ValueError"),
    ],
)
async def test_failed_check_is_told_and_comes_back(error: Exception, told: str):
    """Whatever a check raises is a reason; when it is well again there is none."""
    switch, clock = Switch(), HeldClock()
    monitor = HealthMonitor([Check("store", switch)], clock, poll_s=0.001)
    async with running(monitor):
        await wait_until(lambda: switch.asked > 1)
        assert reason(monitor.parts(), "store") == ""
        switch.error = error
        await wait_until(lambda: reason(monitor.parts(), "store") == told)
        clock.now += 7
        assert monitor.parts()[-1].for_s == 7
        switch.error = None
        await wait_until(lambda: reason(monitor.parts(), "store") == "")
        assert monitor.parts()[-1].for_s == 0


async def test_hanging_check_is_told_after_its_limit():
    """A check that does not answer blocks nothing and counts as failed from its limit on, until it answers."""
    switch, clock = Switch(), HeldClock()
    other = Switch()
    monitor = HealthMonitor([Check("store", switch), Check("disk", other)], clock, poll_s=0.001, limit_s=2)
    async with running(monitor):
        switch.gate.clear()
        asked = switch.asked
        await wait_until(lambda: switch.asked > asked)
        clock.now += 2
        assert reason(monitor.parts(), "store") == ""
        clock.now += 1
        assert reason(monitor.parts(), "store") == "it has not answered for 3 s"
        seen = other.asked
        await wait_until(lambda: other.asked > seen)
        switch.gate.set()
        await wait_until(lambda: reason(monitor.parts(), "store") == "")


async def test_check_in_a_thread_may_hang_for_ever():
    """The event loop goes on beside it, and the monitor's end does not wait for it."""
    gate, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        gate.wait(30)
        raise NotReady("too late")

    clock = HeldClock()
    monitor = HealthMonitor([Check("store", in_thread(hang))], clock, limit_s=2)
    async with running(monitor):
        await wait_until(began.is_set)
        clock.now += 3
        assert reason(monitor.parts(), "store") == "it has not answered for 3 s"
    gate.set()


@pytest.mark.parametrize(("computing_s", "told"), [(39.9, False), (40.1, True)])
def test_execution_that_does_not_end_is_told(computing_s: float, told: bool):
    """After `stalled_s` it hangs, whatever the other versions do; what a bundle says of its timeout changes nothing."""
    versions = [Version(0.0), Version(computing_s), Version(35.0)]
    monitor = HealthMonitor([], HeldClock(), served=lambda: versions, stalled_s=40)
    found = reason(monitor.parts(), "runtime")
    assert ("model 'm' version 1 has been computing one batch for 40 s" in found) == told
    versions[1].computing_s = 0
    assert reason(monitor.parts(), "runtime") == ""


def test_model_known_to_be_slow_may_take_longer():
    """Four times as long as before, and not for another version's sake."""
    slow, quick = Version(39.9, longest_s=10.0, label="slow"), Version(0.0, longest_s=0.001, label="quick")
    monitor = HealthMonitor([], HeldClock(), served=lambda: [slow, quick], stalled_s=4)
    assert reason(monitor.parts(), "runtime") == ""
    slow.computing_s = 40.5
    assert reason(monitor.parts(), "runtime").startswith("slow has been")
    slow.computing_s, quick.computing_s = 39.9, 4.1
    assert reason(monitor.parts(), "runtime") == "quick has been computing one batch for 4 s; it seems to hang"
    assert monitor.parts()[0].for_s == pytest.approx(0.1)


def test_free_space_below_the_floor():
    """A full disk is a reason with both numbers."""
    free = 1000
    check = free_space(lambda: free, floor_bytes=500)
    check()
    free = 499
    with pytest.raises(NotReady, match="expected at least 500 bytes free, got 499"):
        check()


async def test_only_required_parts_decide():
    """The queue away is told, and the server is ready; the store away, and it is not."""
    queue, store, registry = Switch(), Switch(), FakeRegistry()
    queue.error = NotReady("Redis is away")
    monitor = HealthMonitor([Check("queue", queue, required=False), Check("store", store)], RealClock(), poll_s=0.001)
    inference = InferenceService(registry, "axon", "1", RealClock(), monitor)
    async with running(monitor):
        await wait_until(lambda: reason(inference.parts(), "queue") == "Redis is away")
        assert inference.ready()
        store.error = NotReady("gone")
        await wait_until(lambda: not inference.ready())
        assert inference.live()
        assert inference.unready() == ["store: gone"]
        store.error = None
        await wait_until(inference.ready)
        registry.is_ready = False
        assert inference.unready() == ["models are loading, or it is draining"]
