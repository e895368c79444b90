"""What a fuzzer counts and finds, the same for every wire."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
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
