"""Whether this process can take traffic, and why not: checks of what it stands on, asked every second.

A check that hangs (a network file system that went away) is itself an answer: it blocks nothing, and counts as failed
once it has been silent for `limit_s`. What is slow is asked beside requests; `reasons` only looks things up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from service.core.errors import NotReady, ServiceError
from service.core.ports import Clock

SLOWER = 4.0
"""How much longer than those before one execution may take before it counts as hung; others may use the cores too."""

Ask = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the service stands on: `ask` returns when it is well, and raises when it is not.

    The server is ready only while every `required` one is well; the others are only told.
    """

    part: str
    ask: Ask
    required: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of a part now; `reason` is empty while it is well, `for_s` how long it has been as it is."""

    part: str
    required: bool
    reason: str
    for_s: float


class Health(Protocol):
    """What the inference service asks before it says that it is ready."""

    def parts(self) -> list[Part]:
        """Every part as it is now; never blocks."""


class Computing(Protocol):
    """A served version, as far as it can hang."""

    label: str

    @property
    def computing_s(self) -> float:
        """How long its oldest execution has been running, 0 while it is idle, in seconds."""

    @property
    def longest_s(self) -> float:
        """How long the longest of its last executions took, in seconds."""


class _State:
    """The answers of one check."""

    def __init__(self, check: Check, now: float) -> None:
        self.check = check
        self.asked: float | None = None
        self.reason = ""
        self.since = now

    def reason_now(self, now: float, limit_s: float) -> str:
        if self.asked is not None and now - self.asked > limit_s:
            return f"it has not answered for {now - self.asked:.0f} s"
        return self.reason

    def since_now(self, now: float, limit_s: float) -> float:
        if self.asked is not None and now - self.asked > limit_s and not self.reason:
            return self.asked
        return self.since


@final
class HealthMonitor:
    """Asks `checks` every `poll_s` seconds while it runs; belongs to one event loop.

    A required check that has not answered for `limit_s` counts as failed, so what breaks is told within
    `poll_s + limit_s`. `served` gives the versions that serve: one whose execution lasts longer than `stalled_s`, and
    than `SLOWER` times the longest of its last ones, hangs, for XLA does not stop what it has begun. Timeouts do not
    count: a version's own may be shorter than one healthy execution.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        clock: Clock,
        *,
        served: Callable[[], Sequence[Computing]] = list,
        stalled_s: float = 3.0,
        poll_s: float = 1.0,
        limit_s: float = 2.0,
    ) -> None:
        self._clock = clock
        self._served = served
        self._stalled_s = stalled_s
        self._poll_s = poll_s
        self._limit_s = limit_s
        self._states = [_State(check, clock.monotonic()) for check in checks]

    def parts(self) -> list[Part]:
        """Every part as it is now."""
        now = self._clock.monotonic()
        found = [self._runtime()]
        for state in self._states:
            reason = state.reason_now(now, self._limit_s)
            for_s = now - state.since_now(now, self._limit_s)
            found.append(Part(state.check.part, state.check.required, reason, for_s))
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop`; a check that hangs holds up nobody, its end neither."""
        asking = [asyncio.create_task(self._follow(state)) for state in self._states]
        try:
            await stop.wait()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _follow(self, state: _State) -> None:
        while True:
            await self._look(state)
            await asyncio.sleep(self._poll_s)

    async def _look(self, state: _State) -> None:
        state.asked = began = self._clock.monotonic()
        reason = ""
        try:
            await state.check.ask()
        except ServiceError as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except Exception as error:
            _log.exception("the check of %s failed", state.check.part)
            reason = type(error).__name__
        finally:
            state.asked = None
        if bool(reason) != bool(state.reason):
            state.since = began
            _log.log(
                logging.WARNING if reason else logging.INFO, "%s: %s", state.check.part, reason or "it is well again"
            )
        state.reason = reason

    def _runtime(self) -> Part:
        over_s, computing_s, label = 0.0, 0.0, ""
        for each in self._served():
            lasted_s = each.computing_s
            beyond_s = lasted_s - max(self._stalled_s, SLOWER * each.longest_s) if lasted_s else 0.0
            if beyond_s > over_s:
                over_s, computing_s, label = beyond_s, lasted_s, each.label
        if not over_s:
            return Part("runtime", True, "", 0.0)
        reason = f"{label} has been computing one batch for {computing_s:.0f} s; it seems to hang"
        return Part("runtime", True, reason, over_s)


def in_thread(check: Callable[[], None]) -> Ask:
    """`check`, which may block for ever, in a thread of its own each time; the process can end while one hangs."""

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not answer.done():
                answer.set_result(error)

        def run() -> None:
            found: Exception | None = None
            try:
                check()
            except Exception as error:
                found = error
            # A loop that has been closed meanwhile wants no answer.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=run, name="health", daemon=True).start()
        error = await answer
        if error is not None:
            raise error

    return ask


def free_space(free_bytes: Callable[[], int], *, floor_bytes: int) -> Callable[[], None]:
    """A check that raises `NotReady` while less than `floor_bytes` are free."""

    def check() -> None:
        free = free_bytes()
        if free < floor_bytes:
            raise NotReady(f"expected at least {floor_bytes} bytes free, got {free}")

    return check
