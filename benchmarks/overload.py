"""Offered load against goodput and latency: what becomes of a server that is asked for more than it can do.

    python benchmarks/overload.py [--wires http-binary grpc] [--rounds 1] [--seconds 5] [--svg FILE] [--json FILE]
    python benchmarks/overload.py --quick

The product serves the wide MLP (784-2048-2048-10) with its default limits. Load is open-loop (Poisson arrivals from a
process of its own, `open_loop.py`): latency counts from when a request was to leave, not from when it could. First the
sustainable load is sought: the highest at which 99 % of all requests are answered within the deadline. Then every
factor of it is offered. Goodput is what was answered with success within the deadline, each second; p50 and p99 are
those of what was answered with success at all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.open_loop import Plan, Tally  # noqa: E402
from benchmarks.overload_picture import draw  # noqa: E402
from benchmarks.peers.catalogue import PROTOCOL  # noqa: E402
from benchmarks.serve_loads import RPC  # noqa: E402
from benchmarks.serve_requests import BINARY, GRPC, Request, requests  # noqa: E402
from benchmarks.serve_sides import Side, check_answers, product  # noqa: E402
from benchmarks.serve_stages import read_in_flight  # noqa: E402
from benchmarks.serve_works import TITLES, WORKS, prepare  # noqa: E402

FACTORS = (0.2, 0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
FIRST_PER_S, STEPS, SUSTAINED, REST_S = 250.0, 4, 0.99, 60
P99_BOUND, GOODPUT_BOUND = 3.0, 0.9
console = Console(width=160)


@dataclass(frozen=True)
class Point:
    """What came of one offered load; `factor` is its share of the sustainable one."""

    factor: float
    tally: Tally


@dataclass
class Curve:
    """One wire's points, and the two ratios that are to hold at twice the sustainable load."""

    wire: str
    sustainable_per_s: float
    points: list[Point] = field(default_factory=list)

    def at(self, factor: float) -> Tally | None:
        """The point of a factor."""
        return next((point.tally for point in self.points if point.factor == factor), None)

    def p99_ratio(self) -> float | None:
        """p99 at 2x over p99 at 0.8x."""
        most, some = self.at(2.0), self.at(0.8)
        if most is None or some is None or most.p99_ms is None or some.p99_ms is None:
            return None
        return most.p99_ms / some.p99_ms

    def goodput_share(self) -> float | None:
        """Goodput at 2x over the best of all."""
        most, peak = self.at(2.0), max((point.tally.good_per_s for point in self.points), default=0.0)
        return most.good_per_s / peak if most is not None and peak else None


class Offering:
    """Offers loads to a side on one wire."""

    def __init__(self, side: Side, wire: str, work: str, request: Request, options: argparse.Namespace) -> None:
        self._side, self._wire, self._work, self._request, self._options = side, wire, work, request, options
        self._runs = 0

    def at(self, rate: float) -> Tally:
        """One run of the load maker, against a server that has come to rest."""
        self._runs += 1
        self._rest()
        http = self._wire == BINARY
        plan = Plan(
            wire=self._wire,
            address=self._side.http.removeprefix("http://") if http else self._side.grpc,
            path=self._side.path.format(work=self._work) if http else RPC,
            body=str(self._request.body),
            headers=list(self._request.headers),
            rate=rate,
            seconds=self._options.seconds,
            settle_s=1.0,
            deadline_s=self._options.deadline_ms / 1e3,
            seed=self._runs,
        )
        command = [sys.executable, str(ROOT / "benchmarks" / "open_loop.py"), json.dumps(asdict(plan))]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"the load maker ended with {run.returncode}:\n{run.stderr[-2000:]}")
        return Tally(**json.loads(run.stdout))

    def _rest(self) -> None:
        """Until nothing is left of the last run: raises `SystemExit` when that does not happen."""
        deadline = time.monotonic() + REST_S
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if read_in_flight(self._side.http, self._work) == 0:
                    return
            time.sleep(0.1)
        raise SystemExit(f"{self._side.name}: still busy {REST_S} s after the last request")

    def sustainable(self) -> float:
        """By doubling until it is too much, then by halving what lies between."""
        high = FIRST_PER_S
        while self._sustained(high):
            high *= 2
        low = high / 2
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._sustained(middle) else (low, middle)
        return low

    def _sustained(self, rate: float) -> bool:
        tally = self.at(rate)
        return tally.good_per_s >= SUSTAINED * tally.offered_per_s


def curve(side: Side, wire: str, work: str, request: Request, options: argparse.Namespace) -> Curve:
    """All factors, in order."""
    offering = Offering(side, wire, work, request, options)
    found = Curve(wire, offering.sustainable())
    console.print(f"{wire}: sustainable {found.sustainable_per_s:,.0f} requests/s", highlight=False)
    rounds = [
        [offering.at(factor * found.sustainable_per_s) for factor in options.factors] for _ in range(options.rounds)
    ]
    for factor, tallies in zip(options.factors, zip(*rounds, strict=True), strict=True):
        tallies = sorted(tallies, key=lambda tally: tally.good_per_s)
        found.points.append(Point(factor, tallies[len(tallies) // 2]))
    return found


def show(found: Curve, deadline_ms: float) -> None:
    """The table and the verdicts."""
    table = Table(title=f"{found.wire}: goodput within {deadline_ms:g} ms; p50 and p99 of what was answered")
    for title in (
        "load",
        "offered/s",
        "goodput/s",
        "shed",
        "failed",
        "no answer",
        "p50 ms",
        "p99 ms",
        "sent late, p99 ms",
        "client",
    ):
        table.add_column(title, justify="right")
    for point in found.points:
        tally = point.tally
        total = tally.answered + tally.shed + tally.failed + tally.unanswered
        shares = [f"{count / max(total, 1):.1%}" for count in (tally.shed, tally.failed, tally.unanswered)]
        times = ["" if value is None else f"{value:.1f}" for value in (tally.p50_ms, tally.p99_ms)]
        speeds = [f"{tally.offered_per_s:,.0f}", f"{tally.good_per_s:,.0f}"]
        late, client = f"{tally.late_p99_ms:.1f}", f"{tally.client_cpu_share:.0%} of a core"
        table.add_row(f"{point.factor:g}x", *speeds, *shares, *times, late, client)
    console.print(table)
    for text, value, bound, at_least in (
        ("p99 of accepted at 2x / at 0.8x", found.p99_ratio(), P99_BOUND, False),
        ("goodput at 2x / peak", found.goodput_share(), GOODPUT_BOUND, True),
    ):
        if value is None:
            console.print(f"{found.wire}: {text}: not measured")
            continue
        met = value >= bound if at_least else value <= bound
        sign = ">=" if at_least else "<="
        console.print(f"{found.wire}: {text}: {value:.2f} ({sign} {bound:g}): {'met' if met else 'MISSED'}")


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="wide")
    parser.add_argument("--wires", nargs="+", choices=(BINARY, GRPC), default=[BINARY, GRPC])
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument(
        "--rounds", type=int, default=1, help="over all loads; of each, the one with the median goodput"
    )
    parser.add_argument("--seconds", type=float, default=5, help="that count, at each load")
    parser.add_argument("--deadline-ms", type=float, default=250)
    parser.add_argument("--quick", action="store_true", help="one second at each of 0.8, 1, 2 and 3 times")
    parser.add_argument("--svg", metavar="FILE", help="draw the curves there")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.factors, options.seconds = [0.8, 1.0, 2.0, 3.0], 1
    return options


def main() -> None:
    """Measure, print, draw."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (work,) = prepare(folder, [options.work])
        asked = {work.name: requests(folder, work)}
        with product(folder, [work], {}) as side:
            check_answers(side, [work], asked)
            curves = [curve(side, wire, work.name, asked[work.name][wire, PROTOCOL], options) for wire in options.wires]
    for found in curves:
        show(found, options.deadline_ms)
    if options.svg:
        draw(Path(options.svg), TITLES[work.name], curves)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(found) for found in curves], indent=1) + "\n")


if __name__ == "__main__":
    main()
