"""Calls in threads, and turns by urgency."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.core.threads import Turns, held_by, in_own_thread
from tests.service.waiting import WAIT_S


async def test_result_and_error_of_a_thread_come_back():
    """The thread is another one and keeps no process alive."""

    def who() -> tuple[int, bool]:
        return threading.get_ident(), threading.current_thread().daemon

    ident, daemon = await in_own_thread(who)
    assert ident != threading.get_ident()
    assert daemon
    with pytest.raises(KeyError, match="lost"):
        await in_own_thread(lambda: {}["lost"])


async def test_call_that_is_given_up_ends_by_itself():
    """Its late answer disturbs nobody."""
    gate, ended = threading.Event(), threading.Event()

    def late() -> None:
        gate.wait(10)
        ended.set()

    call = asyncio.create_task(in_own_thread(late))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()
    assert await asyncio.to_thread(ended.wait, 10)
    await asyncio.sleep(0.01)


async def test_least_key_has_the_next_turn():
    """Who asks in the same moment is compared; who asks later waits for whoever has the turn; one at a time."""
    turns, order, inside = Turns(), [], 0

    async def take(key: tuple[float, ...], name: str) -> None:
        nonlocal inside
        async with turns.turn(key):
            inside += 1
            assert inside == 1
            order.append(name)
            await asyncio.sleep(0.001)
            inside -= 1

    asked = [asyncio.create_task(take(key, name)) for key, name in (((1, -5), "c"), ((0, -1), "b"), ((0, -9), "a"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = asyncio.create_task(take((-1,), "late"))
    await asyncio.gather(*asked, late)
    assert order == ["a", "late", "b", "c"]


async def test_turn_of_one_that_fails_or_gives_up_passes_on():
    """Whether it has the turn already or still waits."""
    turns, order = Turns(), []

    async def take(name: str) -> None:
        async with turns.turn((0,)):
            order.append(name)
            if name == "first":
                raise ValueError(name)
            await asyncio.sleep(60 if name == "second" else 0)

    tasks = [asyncio.create_task(take(name)) for name in ("first", "second", "third", "fourth")]
    with pytest.raises(ValueError, match="first"):
        await tasks[0]
    while len(order) < 2:
        await asyncio.sleep(0)
    tasks[2].cancel()
    tasks[1].cancel()
    async with asyncio.timeout(5):
        await tasks[3]
    assert order == ["first", "second", "fourth"]


async def test_what_a_cancelled_caller_would_hold_is_let_go():
    """However late it is taken; one that is not cancelled keeps it."""
    may_take, gone = threading.Event(), threading.Event()
    let_go: list[str] = []

    def take() -> str:
        assert may_take.wait(WAIT_S)
        return "lock"

    def give_back(taken: str) -> None:
        let_go.append(taken)
        gone.set()

    taking = asyncio.create_task(held_by(take, give_back))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    may_take.set()
    assert await asyncio.to_thread(gone.wait, WAIT_S)
    assert await held_by(take, give_back) == "lock"
    assert let_go == ["lock"]
