"""perf_analyzer against the server: whether it runs, never how fast; it takes a core itself."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from harness import Cases, NotRun, Server, contains, same

NAME = "perf_analyzer"
RUN_S = 50
BINARY = Path(sys.executable).with_name(NAME)
MODEL = "mlp"
WINDOW = ("--measurement-mode", "count_windows", "--measurement-request-count", "20", "--measurement-interval", "200")
BRIEFLY = (*WINDOW, "--max-trials", "10", "--stability-percentage", "999")
"""A window of requests ends on a busy machine too; one of time may see none."""
cases = Cases()


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Server]:
    """No connection: every case is a process."""
    yield server


def environment() -> dict[str, str]:
    """With the CUDA runtime's library, which the binary wants even where there is no GPU."""
    found = importlib.util.find_spec("nvidia")
    packages = list(found.submodule_search_locations or ()) if found is not None else []
    folders = [str(Path(package) / "cuda_runtime" / "lib") for package in packages]
    given = os.environ.get("LD_LIBRARY_PATH")
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join([*folders, *([given] if given else [])])}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the binary."""
    command = [str(BINARY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, env=environment())


@functools.cache
def unable() -> str:
    """Why the binary cannot run here; empty when it can."""
    try:
        tried = call("--version")
    except OSError as error:
        return str(error)
    if tried.returncode == 0:
        return ""
    hint = "; Debian has it as libb64-0d" if "libb64" in tried.stderr else ""
    return f"{' '.join(tried.stderr.split())[-300:]}{hint}"


def measure(server: Server, protocol: str, *arguments: str, levels: Sequence[int] = (2,)) -> str:
    """A short measurement at each of the concurrency `levels`; returns what was printed."""
    if reason := unable():
        raise NotRun(reason)
    url = server.http if protocol == "http" else server.grpc
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "profile.json"
        chosen = ("--concurrency-range", "2") if levels == (2,) else ()
        command = ("-m", MODEL, "-i", protocol, "-u", url, *BRIEFLY, *chosen, *arguments)
        done = call(*command, "--profile-export-file", str(export))
        said = f"{done.stdout}\n{done.stderr}"
        if done.returncode != 0:
            raise AssertionError(f"expected perf_analyzer to end with 0, got {done.returncode}: {said[-500:]}")
        contains(said, "Throughput:")
        experiments = json.loads(export.read_text())["experiments"]
    same([each["experiment"]["value"] for each in experiments], list(levels), "concurrency levels")
    same([each["experiment"]["value"] for each in experiments if not each["requests"]], [], "levels without an answer")
    return said


RUNS: dict[str, tuple[str, ...]] = {
    "http": ("http",),
    "http, asynchronous, batches of 8": ("http", "--async", "-b", "8"),
    "http, JSON tensors": ("http", "--input-tensor-format", "json", "--output-tensor-format", "json"),
    "grpc": ("grpc",),
    "grpc, asynchronous, streaming": ("grpc", "--async", "--streaming"),
}

for _name, _run in RUNS.items():

    @cases.case(_name, NAME)
    def _(server: Server, arguments: tuple[str, ...] = _run) -> None:
        measure(server, *arguments)


@cases.case("concurrency 1, 5, 9, 13", NAME)
def _(server: Server) -> None:
    measure(server, "http", "--concurrency-range", "1:16:4", levels=(1, 5, 9, 13))


@cases.case("server's statistics", NAME)
def _(server: Server) -> None:
    contains(measure(server, "http"), "Server:", "Inference count:", "Avg request latency:", "compute infer")


@cases.case("metrics collected", NAME)
def _(server: Server) -> None:
    url = f"http://{server.http}/metrics"
    measure(server, "http", "--collect-metrics", "--metrics-url", url, "--metrics-interval", "100")


if __name__ == "__main__":
    cases.main({NAME: connect})
