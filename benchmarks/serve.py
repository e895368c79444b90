"""Serving speed next to other servers and to the limits of this machine, in one run, in turns.

    python -m benchmarks.peers install                  # once; optional: the other servers, in .venv-peers/
    python benchmarks/serve.py [--rounds 3] [--seconds 1] [--json FILE]
    python benchmarks/serve.py --quick                  # one round, 1 and 64 in flight: a first look
    python benchmarks/serve.py --peers --works mlp --wires grpc grpc-stream

Every model (`--works`: `mlp` 784-128-10, `wide` 784-2048-2048-10, a small `cnn`) is asked over HTTP binary, HTTP JSON,
gRPC and gRPC streams with 64 requests in flight, `mlp` also with the others of `--concurrency`. Limits: `jax.jit`
in one process (batch 1 and 64), a bare ASGI echo of the same bytes, a bare `grpc.aio` echo. Peers have the same weights
and must give the same answers. It ends with our stages, as the server itself counts them, and the targets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from benchmarks import serve_tables  # noqa: E402
from benchmarks.peers.catalogue import ENVIRONMENTS, RESTLESS  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.serve_loads import Figures, LoadFailed, median_of  # noqa: E402
from benchmarks.serve_requests import BINARY, GRPC, WIRES, Request, requests  # noqa: E402
from benchmarks.serve_sides import PRODUCT, NotRunning, Side, check_answers, echo, product, start_peers  # noqa: E402
from benchmarks.serve_stages import Reading, read  # noqa: E402
from benchmarks.serve_targets import MANY, Key, targets  # noqa: E402
from benchmarks.serve_works import TITLES, WORKS, Work, in_process, in_process_onnx, prepare  # noqa: E402

Asked = Mapping[str, Mapping[tuple[str, str], Request]]
"""Requests by model, then by wire and form."""


@dataclass
class Results:
    """What a run found; `failed` says why a side has no figure."""

    speeds: dict[Key, Figures] = field(default_factory=dict)
    cpu_us: dict[Key, float] = field(default_factory=dict)
    stages: dict[Key, Reading] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(
    results: Results, work: Work, entries: Sequence[tuple[str, Side]], asked: Asked, options: argparse.Namespace
) -> None:
    """The median of several rounds for each wire and side; they take turns, so that all see the same machine."""
    concurrencies = options.concurrency if work.name == "mlp" else [max(options.concurrency)]
    for concurrency in concurrencies:
        rounds: dict[Key, list[Figures]] = {}
        spent: dict[Key, float] = {}
        for round_ in range(-1, options.rounds):
            for wire, side in entries:
                key = Key(work.name, wire, side.name, concurrency)
                if round_ < 0 and concurrency != concurrencies[0]:
                    continue
                request = asked[work.name][wire, side.forms[wire]]
                figures, cpu_s = _one(results, key, side, request, options.seconds)
                if figures is not None and round_ >= 0:
                    rounds.setdefault(key, []).append(figures)
                    spent[key] = spent.get(key, 0.0) + cpu_s
        for key, figures_of in rounds.items():
            results.speeds[key] = median_of(figures_of)
            total = sum(figures.requests_per_s for figures in figures_of) * options.seconds
            results.cpu_us[key] = spent[key] / total * 1e6


def _one(results: Results, key: Key, side: Side, request: Request, seconds: int) -> tuple[Figures | None, float]:
    """One load, with the CPU that its server spent; None when it failed."""
    ours = side.name == PRODUCT
    try:
        before, cpu_s = read(side.http, key.work) if ours else Reading(), side.cpu_s()
        figures = side.load(key.wire, key.work, request, key.concurrency, seconds)
        cpu_s = side.cpu_s() - cpu_s
        if ours:
            results.stages.setdefault(key, Reading()).add_difference(before, read(side.http, key.work))
    except (LoadFailed, httpx.HTTPError) as error:
        ended = side.process.poll()
        reason = str(error) if ended is None else f"its process ended with {ended}"
        results.failed[f"{side.name}, {key.work} over {key.wire} at {key.concurrency}"] = reason
        return None, 0.0
    return figures, cpu_s


def start(stack: ExitStack, folder: Path, works: Sequence[Work], asked: Asked, options: argparse.Namespace) -> tuple:
    """The sides that answer rightly, ours first, and why the others do not."""
    ours = stack.enter_context(product(folder, works, {}))
    check_answers(ours, works, asked)
    sides = {ours.name: ours}
    if not options.no_limits:
        for kind in ("asgi", "grpc"):
            bare = stack.enter_context(echo(folder, kind))
            sides[bare.name] = bare
    peers, absent = start_peers(stack, folder, options.peers)
    for peer in peers:
        try:
            check_answers(peer, works, asked)
            sides[peer.name] = peer
        except NotRunning as error:
            absent[peer.name] = f"does not run here: {error}"
    return sides, absent


def entries_of(sides: Mapping[str, Side], work: Work, wires: Sequence[str]) -> list[tuple[str, Side]]:
    """Wires and sides to be measured; the echoes with one model only, whose bytes are those of all."""
    return [
        (wire, side)
        for wire in wires
        for side in sides.values()
        if wire in side.forms and (work.name == "mlp" or side.peer or side.name == PRODUCT)
    ]


def write_rows(report: Report, results: Results) -> None:
    """Everything measured, as rows."""
    for key, figures in results.speeds.items():
        side, count = f"{key.side}: {key.wire}", f"c={key.concurrency}"
        report.add(TITLES[key.work], side, f"{count}: requests/s", figures.requests_per_s)
        report.add(TITLES[key.work], side, f"{count}: p50 ms", figures.p50_ms)
        report.add(TITLES[key.work], side, f"{count}: p99 ms", figures.p99_ms)
        report.add(TITLES[key.work], side, f"{count}: server's CPU us", results.cpu_us[key])
    for key, reading in results.stages.items():
        for stage, seconds in reading.stages_s.items():
            metric = f"c={key.concurrency}: {stage} us"
            report.add(TITLES[key.work], f"{key.side}: {key.wire}", metric, seconds / max(reading.requests, 1) * 1e6)


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1, help="per round and figure")
    parser.add_argument("--rounds", type=int, default=3, help="whose median is taken, after one that is not counted")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, MANY])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--wires", nargs="+", choices=WIRES, default=list(WIRES))
    quiet = [name for name in ENVIRONMENTS if name not in RESTLESS]
    text = f"none without names; unless given, all but {' '.join(RESTLESS)}"
    parser.add_argument("--peers", nargs="*", choices=ENVIRONMENTS, default=quiet, help=text)
    parser.add_argument("--no-limits", action="store_true", help="no echoes, no in-process figures")
    parser.add_argument("--quick", action="store_true", help="one round of a second; other models over two wires")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.concurrency = 1, 1, [1, MANY]
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    report, results = Report("Serving"), Results()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        works = prepare(folder, options.works)
        asked = {work.name: requests(folder, work) for work in works}
        if not options.no_limits:
            for work in works:
                in_process(report, work, options.seconds)
                in_process_onnx(report, work, folder, options.seconds)
        sides, absent = start(stack, folder, works, asked, options)
        for work in works:
            brief = options.quick and work.name != "mlp"
            wires = [wire for wire in options.wires if not brief or wire in (BINARY, GRPC)]
            measure(results, work, entries_of(sides, work, wires), asked, options)
    if report.rows:
        report.print()
    for work in works:
        serve_tables.speeds(work.name, results.speeds, results.cpu_us)
    serve_tables.stages(results.stages)
    serve_tables.absences(absent | results.failed)
    peers = [side.name for side in sides.values() if side.peer]
    serve_tables.verdicts(targets(results.speeds, sides), peers)
    write_rows(report, results)
    report.write(options.json)


if __name__ == "__main__":
    main()
