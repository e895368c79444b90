"""What makes load and measures it: processes in C, so that the load maker is not the limit.

`wrk` for HTTP/1.1, `h2load` for unary gRPC (Debian and Ubuntu: `apt-get install wrk nghttp2-client`; macOS:
`brew install wrk nghttp2`). Neither can wait for an answer within a stream: `stream_load.py` can, in Python.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RPC = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8
_WHOLE = 0.995
"""Share of the data that must have come: what is in flight at the end counts on one side only."""


class LoadFailed(Exception):
    """A server did not answer every request rightly."""


@dataclass(frozen=True)
class Figures:
    """What a load maker measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def median_of(figures: Sequence[Figures]) -> Figures:
    """Each figure's median."""
    return Figures(*map(statistics.median, zip(*map(astuple, figures), strict=True)))


def need(program: str) -> str:
    """The path of a load maker."""
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} is not on PATH: apt-get install wrk nghttp2-client, or brew install wrk nghttp2")
    return path


def _said(command: Sequence[str]) -> str:
    """What a load maker printed; raises `LoadFailed` when it gave up."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise LoadFailed(f"{Path(command[0]).name} ended with {run.returncode}: {(run.stdout + run.stderr)[-500:]}")
    return run.stdout


def wrk(url: str, body: Path, headers: Sequence[str], concurrency: int, seconds: int) -> Figures:
    """Load over HTTP/1.1, one connection per request in flight; `headers` as `name=value`."""
    command = [need("wrk"), "-t1", f"-c{concurrency}", f"-d{seconds}s", "-s", str(HERE / "post.lua"), url]
    run = _said([*command, "--", str(body), *headers])
    found = re.search(r"^figures (.*)$", run, re.MULTILINE)
    if found is None:
        raise LoadFailed(f"wrk said nothing of use:\n{run}")
    figures = json.loads(found[1])
    if figures["failed"] or not figures["requests"]:
        raise LoadFailed(f"{url}: {figures['failed']} of {figures['requests']} requests failed")
    return Figures(figures["requests"] / figures["seconds"], figures["p50_ms"], figures["p99_ms"])


def h2load(address: str, body: Path, concurrency: int, seconds: int) -> Figures:
    """Load over HTTP/2: up to 8 connections that share the requests in flight, as gRPC's channels do.

    It does not see gRPC's status; but an answer that is none has no data, so the amount of data tells.
    """
    connections = min(concurrency, CONNECTIONS)
    streams = concurrency // connections
    one = _data_bytes(_h2load(address, body, "-n1", "-c1")[0])
    said, lines = _h2load(address, body, f"-c{connections}", f"-m{streams}", f"-D{seconds}")
    failed = sum(status != "200" for _, status, _ in lines)
    if failed or not lines or not one or _data_bytes(said) < _WHOLE * one * len(lines):
        raise LoadFailed(f"{address}: {failed} of {len(lines)} requests failed\n{said}")
    microseconds = np.array([int(taken) for _, _, taken in lines])
    p50, p99 = np.percentile(microseconds, [50, 99]) / 1e3
    return Figures(len(lines) / seconds, float(p50), float(p99))


def _h2load(address: str, body: Path, *how: str) -> tuple[str, list[list[str]]]:
    """What it said, and for each request when it began, its status, and how long it took in us."""
    with tempfile.NamedTemporaryFile() as log:
        command = [need("h2load"), "-t1", *how, f"-d{body}", f"--log-file={log.name}"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{RPC}"]
        return _said(command), [line.split() for line in Path(log.name).read_text().splitlines()]


def _data_bytes(said: str) -> int:
    found = re.search(r"^traffic:.* \((\d+)\) data$", said, re.MULTILINE)
    if found is None:
        raise LoadFailed(f"h2load said nothing of use:\n{said}")
    return int(found[1])


def stream(address: str, body: Path, concurrency: int, seconds: int) -> Figures:
    """Load on streams, one message in flight on each; up to 8 connections share the streams."""
    command = [sys.executable, str(HERE / "stream_load.py"), address, str(body), str(concurrency), str(seconds)]
    figures = json.loads(_said(command))
    return Figures(figures["requests"] / figures["seconds"], figures["p50_ms"], figures["p99_ms"])
