"""How a fuzzer plays, and what it counts and finds: the same for every wire."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.hostile.server import Footprint, Target

GROWTH_BYTES = 192 * 2**20
"""More than allocators keep after the largest requests that are let in."""
SETTLE_S = 15.0


@dataclass
class Findings:
    """Counts by family and by answer; `bad` is what must not happen, with its seed."""

    cases: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def report(self) -> str:
        """For a person."""
        cases = ", ".join(f"{name} {count}" for name, count in sorted(self.cases.items()))
        answers = ", ".join(f"{name} {count}" for name, count in sorted(self.answers.items()))
        lines = [f"{self.cases.total()} cases: {cases}", f"answers: {answers}", f"{len(self.bad)} findings"]
        return "\n".join([*lines, *self.bad])


def check_after(target: Target, before: Footprint, findings: Findings, settled: Callable[[Footprint], bool]) -> None:
    """The server lives, answers rightly, has its descriptors back and took no more memory than it may."""
    if not target.alive():
        findings.bad.append(f"the server ended with {target.process.poll()}")
        return
    if not target.right():
        findings.bad.append("a known request got a wrong answer")
    deadline = time.monotonic() + SETTLE_S
    while not settled(now := target.footprint()) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not settled(now):
        findings.bad.append(f"descriptors: expected them back at about {before.descriptors}, got {now.descriptors}")
    if now.rss_bytes - before.rss_bytes > GROWTH_BYTES:
        findings.bad.append(f"memory grew from {before.rss_bytes} to {now.rss_bytes} bytes")
    findings.bad += target.tracebacks()[:5]


Play = Callable[[int, Findings], Awaitable[None]]
"""Plays the script of a seed, and notes what must not happen."""


def fuzz(
    target: Target, play: Play, seconds: float, seed: int, *, at_once: int, look_every: int, spare: int
) -> Findings:
    """Play the scripts of `seed` and on, `at_once` together, until the time is over.

    After every `look_every` of them the server has to answer a known request. At most `spare` descriptors may be left.
    """
    findings = Findings()
    target.right()
    before = target.footprint()
    end = time.monotonic() + seconds
    seeds = iter(range(seed, 2**62))

    async def player() -> None:
        for number in seeds:
            if time.monotonic() > end or not target.alive():
                return
            await play(number, findings)
            if number % look_every == look_every - 1 and not await asyncio.to_thread(target.right):
                findings.bad.append(f"seed {number}: a known request got a wrong answer afterwards")

    async def players() -> None:
        await asyncio.gather(*(player() for _ in range(at_once)))

    asyncio.run(players())
    check_after(target, before, findings, lambda now: now.descriptors <= before.descriptors + spare)
    return findings
