"""`python -m tests.soak [SECONDS] [SEED]`: steady clients among crashing and half-sending ones; ends with 1 on a leak.

Prints the server's memory, descriptors and threads as they go. Steady clients know their answers, reload a version now
and then, and may not fail once.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from service.client import Client
from tests.hostile import grpc_cases, grpc_fuzzer, http_cases, http_fuzzer
from tests.hostile.findings import SETTLE_S, Findings
from tests.hostile.server import MODEL, SPARE, WIDTH, Footprint, Target, queue, serving

STEADY = 2
HOSTILE = 4
PAUSE_S = 0.02
LOOKS = 20
GROWTH_BYTES = 64 * 2**20
"""What the second half may add: allocators have kept what they keep by then."""
SPARE_DESCRIPTORS = 8


@dataclass
class Steady:
    """What well-behaved clients saw."""

    answered: int = 0
    reloads: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Press the server, watch it, judge."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1200.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with queue() as settings, serving(settings) as target:
        curve, steady, findings = press(target, seconds, seed)
    print(f"steady clients: {steady.answered} answers, {steady.reloads} reloads, {len(steady.failures)} failures")
    print(findings.report())
    problems = [*steady.failures[:5], *findings.bad[:5], *leaks(curve)]
    for problem in problems:
        print(problem)
    return int(bool(problems))


def press(target: Target, seconds: float, seed: int) -> tuple[list[Footprint], Steady, Findings]:
    """The footprints over the time, the first before any load and the last when all have gone."""
    steady, findings, stop = Steady(), Findings(), threading.Event()
    curve = [target.footprint()]
    workers = [threading.Thread(target=_steady, args=(target, steady, stop, number)) for number in range(STEADY)]
    workers.append(threading.Thread(target=lambda: asyncio.run(_hostile(target, findings, stop, seed))))
    for worker in workers:
        worker.start()
    began = time.monotonic()
    try:
        for look in range(1, LOOKS + 1):
            stop.wait(max(0.0, began + seconds * look / LOOKS - time.monotonic()))
            curve.append(target.footprint())
            _show(time.monotonic() - began, curve[-1], steady, findings)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    curve.append(_settled(target, curve[0]))
    _show(time.monotonic() - began, curve[-1], steady, findings)
    findings.bad += target.tracebacks()[:5]
    return curve, steady, findings


def leaks(curve: list[Footprint]) -> list[str]:
    """What is wrong with how the server grew."""
    first, middle, last = curve[0], curve[len(curve) // 2], curve[-1]
    found = []
    if last.rss_bytes - middle.rss_bytes > GROWTH_BYTES:
        found.append(
            f"memory: expected the second half to add little, got {middle.rss_bytes} to {last.rss_bytes} bytes"
        )
    if last.descriptors > first.descriptors + SPARE_DESCRIPTORS:
        found.append(f"descriptors: expected about {first.descriptors}, got {last.descriptors}")
    return found


def _settled(target: Target, first: Footprint) -> Footprint:
    """When the last connections are closed."""
    deadline = time.monotonic() + SETTLE_S
    while (now := target.footprint()).descriptors > first.descriptors + SPARE_DESCRIPTORS:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return now


def _show(at_s: float, now: Footprint, steady: Steady, findings: Findings) -> None:
    print(
        f"{at_s:7.0f} s  {now.rss_bytes / 2**20:7.1f} MiB  {now.descriptors:4d} descriptors  {now.threads:3d} threads  "
        f"{steady.answered} answers  {steady.reloads} reloads  {findings.cases.total()} hostile",
        flush=True,
    )


def _steady(target: Target, steady: Steady, stop: threading.Event, number: int) -> None:
    """Requests with known answers; the first client reloads a version between them."""
    x = np.arange(3 * WIDTH, dtype=np.int64).reshape(3, WIDTH) + number
    with Client(f"http://{target.host}:{target.http_port}") as client:
        for index in itertools.count():
            if stop.wait(PAUSE_S):
                return
            try:
                if not (client.infer(MODEL, {"x": x})["total"] == x + x).all():
                    steady.failures.append(f"request {index}: a wrong answer")
                steady.answered += 1
                if number == 0 and index % 200 == 199:
                    client.unload(SPARE, 1)
                    client.load(SPARE, 1)
                    steady.reloads += 1
            except Exception as error:
                steady.failures.append(f"request {index}: {type(error).__name__}: {error}"[:300])


async def _hostile(target: Target, findings: Findings, stop: threading.Event, seed: int) -> None:
    """Both fuzzers' scripts, without haste."""
    seeds = itertools.count(seed)

    async def client() -> None:
        while not stop.is_set():
            number = next(seeds)
            if number % 2:
                await http_fuzzer.play(target, http_cases.script(number // 2), findings, number)
            else:
                await grpc_fuzzer.play(target, grpc_cases.script(number // 2), findings, number)
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client() for _ in range(HOSTILE)))


if __name__ == "__main__":
    sys.exit(main())
