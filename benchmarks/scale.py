"""A day of a large fleet on a virtual clock: 10,000 jobs on 50 machines, 200 models under requests that come and go.

Plays the day against the real scheduler (`scale_jobs`), measures what its calls cost on the real Redis scripts
(`scale_redis`), and plays the requests against the real registry with `max_loaded_bytes` (`scale_models`). Prints how
long jobs waited, how busy the machines were, what was evicted and loaded again, and what would give way first.

    python benchmarks/scale.py [--jobs 10000] [--requests 6000] [--seed 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report  # noqa: E402
from benchmarks.scale_jobs import DAY_S, Fleet, Outcome, Plan  # noqa: E402
from benchmarks.scale_models import Result, Traffic, play  # noqa: E402
from benchmarks.scale_redis import measure  # noqa: E402
from service.core.types import Priority  # noqa: E402
from service.worker.protocol import progress_every_s  # noqa: E402

SHARED_MEMORY = Path("/dev/shm")
"""Where the store lies, where there is such a thing: many small files."""
SHARES = (0.4, 0.6, 0.8)
BEATS_PER_S = 1 / 5.0
LOOKS_PER_S = 1.0
MEMORY_BYTES = 1024**3
"""What the Helm chart gives Redis."""
_BLOCKS = " ▁▂▃▄▅▆▇█"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def spelled(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def chart(quarters: Sequence[float], most: float) -> str:
    """A line of blocks, one for half an hour, of values for quarters that are at most `most`."""
    halves = [a + b for a, b in zip(quarters[::2], quarters[1::2], strict=True)]
    return "".join(_BLOCKS[min(round(value / max(most, 1e-9) * 4), 8)] for value in halves)


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_jobs(outcome: Outcome, report: Report) -> None:
    """Waits and utilisation."""
    say("\nwait from submission to the first attempt" + " " * 11 + "jobs      p50      p95      p99      most")
    for (tag, level), waits in sorted(outcome.waits_s.items()):
        shown = [quantile(waits, share) for share in (0.5, 0.95, 0.99)] + [max(waits)]
        say(f"  {tag:8} {level:10} {len(waits):31} " + " ".join(f"{spelled(each):>8}" for each in shown))
        for name, value in zip(("p50_s", "p95_s", "p99_s"), shown, strict=False):
            report.add(f"wait {tag} {level}", "queue", name, value)
    say(f"\nslots that train, over the day{' ' * 20}0 h{' ' * 20}12 h{' ' * 20}24 h")
    for tag, busy in outcome.busy_s.items():
        slots = outcome.slots[tag]
        used = sum(busy) / (slots * DAY_S)
        say(f"  {tag:8} {slots:3} slots, {used:4.0%} of the day used        |{chart(busy, slots * 900)}|")
        report.add(f"slots {tag}", "fleet", "used_share", used)
    ends = ", ".join(f"{count} {what}" for what, count in outcome.ends.most_common())
    share = outcome.done_again_s / outcome.run_s
    say(f"\nended: {ends}; attempts {outcome.calls['start']}; done again after crashes and lost machines: {share:.2%}")


def depth(outcome: Outcome) -> Counter[str]:
    """Calls per second in the busiest minute, by what they are."""
    return Counter(
        {what: max(minute[what] for minute in outcome.calls_of_minute.values()) / 60 for what in outcome.calls}
    )


@dataclass
class Load:
    """What the server of the queue has to do in the busiest minute."""

    calls_per_s: dict[str, float]
    costs_us: dict[str, float]

    @property
    def busy(self) -> float:
        """Share of a core."""
        return sum(self.calls_per_s[what] * self.costs_us[what] for what in self.calls_per_s) / 1e6


def server_load(outcome: Outcome, costs_us: dict[str, float]) -> Load:
    """In the busiest minute; what workers do by the clock alone is counted for all of them."""
    slots = sum(outcome.slots.values())
    peak = depth(outcome)
    calls = {"submit": peak["submit"], "claim": peak["start"], "settle": peak["settle"], "renew": peak["renew"]}
    calls |= {"take": peak["take"] + slots * LOOKS_PER_S, "append": slots / progress_every_s(0.0)}
    calls |= {"beat": slots * BEATS_PER_S}
    return Load(calls, costs_us)


def events_of(trained_s: float) -> int:
    """Progress events of a job that trains for so long."""
    count, at = 0, 0.0
    while at < trained_s:
        at += progress_every_s(at)
        count += 1
    return count


def show_server(outcome: Outcome, costs: dict[str, float], sizes: dict[str, float], report: Report) -> list[str]:
    """The queue's server; returns what would give way."""
    load = server_load(outcome, costs)
    say("\nthe queue's server in the busiest minute        " + "  ".join(load.calls_per_s))
    say("  calls per second, all slots training          " + _row(load.calls_per_s, list(load.calls_per_s)))
    say("  its CPU per call, us (real scripts)           " + _row(costs, list(load.calls_per_s)))
    slots = sum(outcome.slots.values())
    say(f"  together {load.busy:.1%} of one core for {slots} slots: full at about {slots / load.busy:,.0f} slots")
    jobs, trained_s = outcome.calls["jobs"], outcome.run_s / outcome.calls["start"]
    each = sizes["job"] + events_of(trained_s) * sizes["event"]
    need, days = jobs * each, MEMORY_BYTES / (jobs * each)
    events = f"{events_of(trained_s)} events of {sizes['event']:.0f} bytes in {spelled(trained_s)}"
    say(f"  {each / 1024:.0f} KiB a job ({events}):")
    say(f"  {need / 2**20:,.0f} MiB for {jobs} ended jobs (AXON_MAX_KEPT_JOBS), {1 / days:.0%} of the chart's 1 GiB")
    report.add("server", "redis", "core_share", load.busy)
    report.add("server", "redis", "bytes_per_job", each)
    woken = outcome.woken / outcome.calls["submit"]
    say(f"  a submission wakes {woken:.1f} waiting workers on average; one of them gets the job")
    found = []
    if need > MEMORY_BYTES:
        found.append(f"the queue's memory: ended jobs need {need / 2**30:.1f} GiB, the chart gives 1 GiB")
    if load.busy > 0.5:
        found.append(f"the queue's server: {load.busy:.0%} of its one core at the peak")
    return found


def _row(values: dict[str, float], names: Sequence[str]) -> str:
    return "  ".join(f"{values[name]:>{len(name)}.0f}" for name in names)


def show_models(results: Sequence[Result], traffic: Traffic, report: Report) -> list[str]:
    """Evictions and cold starts; returns what would give way."""
    held = f"{traffic.held} of them held by an alias"
    say(f"\n{traffic.models} models, {held}, {traffic.requests} requests; where one is not loaded the client says load")
    hours = f"loads{' ' * 18}12 h{' ' * 20}24 h"
    say(f"  room   held   loads  evicted  requests that waited      p50      p99  refused  {hours}")
    most = max(max(result.cold) for result in results)
    for result in results:
        waited, waits = result.waited / traffic.requests, result.waits_s
        p50, p99 = spelled(quantile(waits, 0.5)), spelled(quantile(waits, 0.99))
        numbers = f"{sum(result.cold):6} {result.evicted:8} {waited:21.1%} {p50:>8} {p99:>8} {result.refused:8}"
        say(f"  {result.share:4.0%} {result.held_share:6.0%}  {numbers}   |{chart(result.cold, most)}|")
        report.add(f"models, room for {result.share:.0%}", "registry", "waited_share", waited)
    cpu_ms = max(result.load_cpu_ms for result in results)
    say(f"  the registry's own CPU per load, beside the engine's: {cpu_ms:.0f} ms; it looks at all models each time")
    return []


def bottlenecks(outcome: Outcome, calm: Outcome) -> list[str]:
    """What of the fleet gives way: first who waits behind one owner, then slots that are full."""
    found = []
    behind, without = (quantile(each.behind_heap_s, 0.5) for each in (outcome, calm))
    if behind > 2 * without + 60:
        found.append(
            f"order: {Plan.heap} jobs of one owner at 10:00, at the level normal: what comes in the hour after waits "
            f"{spelled(behind)} (p50); {spelled(without)} where that owner asks for low"
        )
    for tag, busy in outcome.busy_s.items():
        full = sum(each > 0.98 * 900 * outcome.slots[tag] for each in busy) / 4
        if full >= 1:
            found.append(f"slots: those of {tag} are all busy for {full:.1f} h of the day")
    return found


def main() -> int:
    """Run everything; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    asked = parser.parse_args()
    began, report = time.monotonic(), Report("scale")
    plan = Plan(jobs=asked.jobs)
    machines = sum(count * each for count, _, each in plan.pools)
    sweeps = f"{plan.sweeps} sweeps of {plan.children}"
    say(f"a day: {plan.jobs} jobs on {machines} machines, {sweeps} among them; seed {asked.seed}")
    outcome = asyncio.run(Fleet(plan, asked.seed).play())
    calm = asyncio.run(Fleet(replace(plan, heap_priority=Priority.LOW), asked.seed).play())
    show_jobs(outcome, report)
    costs, sizes = asyncio.run(measure(max(outcome.depth)))
    found = bottlenecks(outcome, calm) + show_server(outcome, costs, sizes, report)
    traffic = Traffic(requests=asked.requests)
    results = []
    for share in SHARES:
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
            results.append(asyncio.run(play(traffic, share, asked.seed, Path(folder))))
    found += show_models(results, traffic, report)
    say("\nwhat gives way, the first first" if found else "\nnothing gives way")
    for number, each in enumerate(found, 1):
        say(f"  {number}. {each}")
    say(f"\n{time.monotonic() - began:.0f} s")
    report.write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
