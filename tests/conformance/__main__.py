"""`python -m tests.conformance [--short] [--family NAME]`: a table of client x case; ends with 1 when one failed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.conformance.environments import NotOffered, make
from tests.conformance.server import running
from tests.servers import Server

HERE = Path(__file__).parent
FAMILY_S = 300
FAMILIES = {
    "tritonclient": ("tritonclient http", "tritonclient http aio", "tritonclient grpc", "tritonclient grpc aio"),
    "kserve": ("kserve rest", "kserve grpc"),
    "mlserver": ("mlserver infer", "mlserver grpc"),
    "perf_analyzer": ("perf_analyzer",),
    "grpc_tools": ("grpc reflection", "grpc health"),
}
"""Each family's clients, as its script names them."""
SHORT = ("tritonclient",)
console = Console(width=None if sys.stdout.isatty() else 200)


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `ok` is None where it was not run."""

    client: str
    case: str
    ok: bool | None
    reason: str = ""


def main() -> int:
    """Environments, server, cases, table."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--short", action="store_true", help="tritonclient only, whose environment is quickly made")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="repeat for several; all unless given")
    options = parser.parse_args()
    families = options.family or (SHORT if options.short else tuple(FAMILIES))
    outcomes: list[Outcome] = []
    pythons: dict[str, Path] = {}
    for family in families:
        started = time.monotonic()
        try:
            pythons[family] = make(family)
        except NotOffered as reason:
            outcomes.append(Outcome(FAMILIES[family][0], "the environment", None, str(reason)))
        except RuntimeError as error:
            outcomes.append(Outcome(FAMILIES[family][0], "the environment", False, str(error)))
        console.print(f"{family}: environment in {time.monotonic() - started:.1f} s", style="dim")
    if pythons:
        outcomes += ask(pythons)
    show(outcomes)
    return int(any(outcome.ok is False for outcome in outcomes))


def ask(pythons: dict[str, Path]) -> list[Outcome]:
    """What each family found, with one server for all."""
    outcomes: list[Outcome] = []
    with running([client for family in pythons for client in FAMILIES[family]]) as server:
        for family, python in pythons.items():
            started = time.monotonic()
            found = run(family, python, server)
            console.print(f"{family}: {len(found)} cases in {time.monotonic() - started:.1f} s", style="dim")
            outcomes += found
        outcomes.append(log_is_clean(server))
    return outcomes


def run(family: str, python: Path, server: Server) -> list[Outcome]:
    """The outcomes of a family's script, and a failure more when it did not end well."""
    command = [str(python), str(HERE / f"{family}_cases.py"), server.http, server.grpc]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment, start_new_session=True)
        try:
            problem = "" if process.wait(FAMILY_S) == 0 else f"its script ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"expected an end within {FAMILY_S} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        outcomes = [Outcome(**json.loads(line)) for line in output if line.startswith('{"client"')]
        if problem or not outcomes:
            reason = f"{problem or 'no case was run'}: {' '.join(errors.read().split())[-600:]}"
            outcomes.append(Outcome(FAMILIES[family][0], "the script", False, reason))
    return outcomes


def log_is_clean(server: Server) -> Outcome:
    """Whatever was asked, nothing in the server broke."""
    lines = server.log.read_text().splitlines()
    first = next((index for index, line in enumerate(lines) if line.startswith("Traceback")), None)
    reason = "" if first is None else " | ".join(lines[max(0, first - 1) : first + 40])[-600:]
    return Outcome("server", "no traceback in its log", first is None, reason)


def show(outcomes: list[Outcome]) -> None:
    """The table, then every reason."""
    clients = list(dict.fromkeys(outcome.client for outcome in outcomes))
    cells = {(outcome.case, outcome.client): outcome.ok for outcome in outcomes}
    table = Table(title="Open Inference Protocol: clients and cases", box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    for client in clients:
        table.add_column(client.replace(" ", "\n"), justify="center", no_wrap=True)
    marks = {True: "[green]ok[/]", False: "[bold red]FAILED[/]", None: "[yellow]not run[/]"}
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        table.add_row(case, *(marks[cells[case, client]] if (case, client) in cells else "" for client in clients))
    console.print(table)
    for ok, title in ((None, "not run"), (False, "failed")):
        reasons: dict[tuple[str, str], list[str]] = {}
        for outcome in outcomes:
            if outcome.ok is ok:
                reasons.setdefault((outcome.client, outcome.reason), []).append(outcome.case)
        for (client, reason), names in reasons.items():
            line = f"{title}: {client}: {', '.join(names)}: {reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    counts = {ok: sum(outcome.ok is ok for outcome in outcomes) for ok in marks}
    console.print(f"{len(outcomes)} cases: {counts[True]} passed, {counts[False]} failed, {counts[None]} not run")


if __name__ == "__main__":
    sys.exit(main())
