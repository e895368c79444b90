"""`python -m tests.fuzz [SECONDS] [SEED]`: changed bundles against the reader; ends with 1 when the reader loses.

An exception that is no `BundleError` is a finding. Workers read in one process, as the process that tries strangers'
bundles does. When one dies, hangs or takes too much memory, the same bundle is read again as a stranger's is: there it
must become an error, else that is a finding too.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

HANG_S = 30.0
START_S = 120.0
ONCE_S = 240.0


@dataclass
class Findings:
    """What happened, and the seeds of what must not."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def main() -> int:
    """Fuzz for a while; print counts; 1 when something was found."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    findings = fuzz(seconds, seed)
    print(", ".join(f"{count} {name}" for name, count in findings.counts.most_common()))
    for line in findings.bad:
        print(line)
    return 1 if findings.bad or not findings.counts["refused"] else 0


def fuzz(seconds: float, seed: int) -> Findings:
    """Run workers one after the other until the time is over."""
    findings = Findings()
    end = None
    while end is None or time.monotonic() < end:
        worker = _Worker([str(seed), "1"])
        try:
            if worker.line(START_S) is None:
                findings.bad.append("a worker did not start")
                return findings
            end = end or time.monotonic() + seconds
            seed = _follow(worker, findings, end, seed)
        finally:
            worker.stop()
    return findings


def _follow(worker: _Worker, findings: Findings, end: float, seed: int) -> int:
    """Read what a worker says until it is in trouble or the time is over; returns the next seed."""
    while time.monotonic() < end:
        line = worker.line(HANG_S)
        if line is not None and line[0] == "begin":
            seed = int(line[1])
            continue
        if line is not None and line[2] != "memory":
            findings.counts[line[2]] += 1
            if line[2] == "escaped":
                findings.bad.append(f"seed {line[1]}: {' '.join(line[3:])}")
            continue
        trouble = "too much memory" if line is not None else worker.trouble()
        contained = _as_a_stranger(seed)
        findings.counts[f"contained ({trouble})" if contained else trouble] += 1
        if not contained:
            findings.bad.append(f"seed {seed}: {trouble}, also in the way of strangers' bundles")
        return seed + 1
    return seed


def _as_a_stranger(seed: int) -> bool:
    """Whether the bundle of a seed is refused or accepted, without trouble, when it is read as a stranger's."""
    worker = _Worker([str(seed), "1", "once"])
    try:
        lines = [worker.line(START_S), worker.line(START_S), worker.line(ONCE_S)]
        return lines[2] is not None and lines[2][0] == "end" and lines[2][2] != "memory"
    finally:
        worker.stop()


class _Worker:
    """A process of `tests.fuzz.worker`."""

    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self._received = b""

    def line(self, within_s: float) -> list[str] | None:
        """The words of the next line; None when it ended or said nothing for too long."""
        end = time.monotonic() + within_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._output], [], [], max(end - time.monotonic(), 0))
            data = os.read(self._output, 65_536) if ready else b""
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode().split()

    def trouble(self) -> str:
        """How it ended, if it has."""
        try:
            return f"crash, status {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "hang"

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
