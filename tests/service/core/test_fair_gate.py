"""Turns on a device, in held time: at most so many at once, and whoever had least goes next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from service.core.fair_gate import RECENT_S, FairGate, Share, Turn
from tests.service.core.served import HeldClock


def test_no_more_than_the_slots_at_once_and_the_first_to_come_first():
    """The third waits until one leaves; equals go in order of arrival."""
    gate = FairGate(2, HeldClock())
    turns = [Turn(gate.join()) for _ in range(4)]
    assert [gate.enter(turn) for turn in turns] == [True, True, False, False]
    gate.leave(turns[1])
    assert [turn.held for turn in turns] == [True, False, True, False]
    assert turns[2].wake.get_nowait() is None
    assert turns[3].wake.empty()


def test_who_had_least_time_goes_first():
    """Of those that wait, by attained time and not by arrival."""
    clock = HeldClock()
    gate = FairGate(1, clock)
    heavy, light, holder = (gate.join() for _ in range(3))
    for share, seconds in ((heavy, 3.0), (light, 1.0)):
        turn = Turn(share)
        assert gate.enter(turn)
        clock.now += seconds
        gate.leave(turn)
    assert (heavy.attained_s, light.attained_s) == (3, 1)
    first = Turn(holder)
    assert gate.enter(first)
    waiting = Turn(heavy), Turn(light)
    assert [gate.enter(turn) for turn in waiting] == [False, False]
    gate.leave(first)
    assert [turn.held for turn in waiting] == [False, True]


def test_one_that_was_idle_has_saved_little_up():
    """However long it was away: it goes next, for a quarter of a second, then they take turns."""
    clock = HeldClock()
    gate = FairGate(1, clock)
    busy, idle = gate.join(), gate.join()
    for _ in range(100):
        turn = Turn(busy)
        assert gate.enter(turn)
        clock.now += 1
        gate.leave(turn)
    assert order(gate, clock, [busy] * 4 + [idle] * 8, seconds=0.1).startswith("biiiibibi")


def order(gate: FairGate, clock: HeldClock, shares: Sequence[Share], *, seconds: float) -> str:
    """Who computes in turn when all want to at once: the first share is b, others i."""
    turns = [Turn(share) for share in shares]
    for turn in turns:
        gate.enter(turn)
    told = ""
    while held := [turn for turn in turns if turn.held]:
        (turn,) = held
        told += "b" if turn.share is shares[0] else "i"
        clock.now += seconds
        gate.leave(turn)
    return told


def test_one_that_was_alone_for_long_is_not_made_to_wait_as_long():
    """Batch after batch without company owes nobody anything: who comes then is at most a quarter of a second ahead."""
    clock = HeldClock()
    gate = FairGate(1, clock)
    first, second = Turn(gate.join()), Turn(gate.join())
    assert gate.enter(first)
    for _ in range(1000):
        clock.now += 0.1
        assert gate.again(first)
    assert not gate.enter(second)
    told = ""
    for _ in range(12):
        turn = first if first.held else second
        told += "f" if turn is first else "s"
        clock.now += 0.1
        gate.again(turn)
    assert told.startswith("fsss")
    assert abs(told.count("f") - told.count("s")) <= 3


def test_last_free_slot_is_left_to_others_while_they_are_active():
    """A version with many instances does not take the whole device, unless it has been alone for a while."""
    clock = HeldClock()
    gate = FairGate(2, clock)
    heavy, light = gate.join(), gate.join()
    first, second, other = Turn(heavy), Turn(heavy), Turn(light)
    assert gate.enter(other)
    gate.leave(other)
    assert [gate.enter(first), gate.enter(second)] == [True, False]
    assert gate.enter(other), "the slot was kept"
    gate.leave(other)
    clock.now += RECENT_S
    gate.leave(first)
    assert second.held
    assert gate.enter(first), "nobody else has been here"


def test_version_that_parted_is_not_waited_for():
    """Its slot is free for the others."""
    gate = FairGate(2, HeldClock())
    stays, goes = gate.join(), gate.join()
    turn = Turn(goes)
    assert gate.enter(turn)
    gate.leave(turn)
    gate.part(goes)
    assert [gate.enter(Turn(stays)) for _ in range(3)] == [True, True, False]


@dataclass
class Load:
    """A version with `instances` that compute for `batch_s`, and want to again `pause_s` later."""

    batch_s: float
    pause_s: float = 0.0
    instances: int = 1
    weight: float = 1.0


def simulate(loads: Sequence[Load], *, slots: int, seconds: float, fair: bool = True) -> list[list[float]]:
    """How long each execution of each load took, waiting included.

    Without `fair` all are one version: first come, first served, as in a device's own queue.
    """
    clock, count = HeldClock(), itertools.count()
    gate = FairGate(slots, clock)
    alike = gate.join()
    owners: dict[Turn, int] = {}
    for number, load in enumerate(loads):
        share = gate.join(load.weight) if fair else alike
        owners.update({Turn(share): number for _ in range(load.instances)})
    took: list[list[float]] = [[] for _ in loads]
    came: dict[Turn, float] = {}
    running: set[Turn] = set()
    events = [(clock.now, next(count), turn) for turn in owners]
    end = clock.now + seconds
    while clock.now < end:
        clock.now, _, turn = heapq.heappop(events)
        load = loads[owners[turn]]
        if turn in running:
            running.remove(turn)
            took[owners[turn]].append(clock.now - came[turn])
            if load.pause_s:
                gate.leave(turn)
                heapq.heappush(events, (clock.now + load.pause_s, next(count), turn))
            else:
                came[turn] = clock.now
                gate.again(turn)
        else:
            came[turn] = clock.now
            gate.enter(turn)
        for each in owners:
            if each.held and each not in running:
                running.add(each)
                heapq.heappush(events, (clock.now + loads[owners[each]].batch_s, next(count), each))
    return took


@pytest.mark.parametrize("slots", [1, 2])
def test_light_version_beside_a_flooded_heavy_one_waits_for_one_batch_at_most(slots: int):
    """8 instances of 50 ms that never pause: without turns the light one waits for all of them, with them for one.

    With two slots one is left to it, so it waits for nobody.
    """
    heavy, light = Load(0.05, instances=8), Load(0.001, pause_s=0.01)
    (_, unfair), (_, fair) = (simulate([heavy, light], slots=slots, seconds=60, fair=fair) for fair in (False, True))
    bound_s = 0.05 + 0.001 if slots == 1 else 0.001
    assert np.quantile(fair, 0.99) <= bound_s + 1e-6
    assert np.quantile(unfair, 0.99) >= 7 * 0.05 / slots


def test_flooded_versions_share_the_time_by_weight():
    """Twice the weight, twice the time, however long the batches and however many the instances."""
    loads = [Load(0.05, instances=8), Load(0.002), Load(0.01, instances=2, weight=2.0)]
    times = [len(took) * load.batch_s for took, load in zip(simulate(loads, slots=1, seconds=100), loads, strict=True)]
    assert times == pytest.approx([25, 25, 50], rel=0.05)


def test_device_does_not_idle_while_anybody_waits():
    """Alone, a version gets all slots; two single-threaded ones get one each."""
    (alone,) = simulate([Load(0.01, instances=4)], slots=2, seconds=100)
    assert len(alone) * 0.01 == pytest.approx(200, rel=0.02)
    both = simulate([Load(0.01), Load(0.01)], slots=2, seconds=10)
    assert [len(took) * 0.01 for took in both] == pytest.approx([10, 10], rel=0.02)
