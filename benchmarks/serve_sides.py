"""The servers that are measured: ours, the echoes that bound it, and whichever peers are installed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.catalogue import PEERS, PROTOCOL, Peer
from benchmarks.peers.environments import installed
from benchmarks.serve_loads import Figures, h2load, stream, wrk
from benchmarks.serve_requests import BINARY, GRPC, STREAM, WIRES, Request, ask_grpc, ask_http
from benchmarks.serve_works import Work, answer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PRODUCT, ASGI_ECHO, GRPC_ECHO = "axon", "bare ASGI echo", "bare grpc.aio echo"
START_S, STOP_S = 180, 20
_TOLERANCE = 1e-5


class NotRunning(Exception):
    """A server that does not start or does not answer rightly, and why."""


@dataclass(frozen=True)
class Side:
    """A running server: its first process, its addresses, and its form of a request on each wire."""

    name: str
    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    forms: Mapping[str, str]
    path: str
    python: bool = True
    peer: bool = False

    def url(self, work: str) -> str:
        """Where a model is asked over HTTP."""
        return self.http + self.path.format(work=work)

    def load(self, wire: str, work: str, request: Request, concurrency: int, seconds: int) -> Figures:
        """Load on one wire; raises `LoadFailed`."""
        if wire == GRPC:
            return h2load(self.grpc, request.body, concurrency, seconds)
        if wire == STREAM:
            return stream(self.grpc, request.body, concurrency, seconds)
        return wrk(self.url(work), request.body, request.headers, concurrency, seconds)

    def cpu_s(self) -> float:
        """What its processes have computed so far; 0 where there is no /proc."""
        return sum(_family(self.process.pid).values()) / os.sysconf("SC_CLK_TCK")


def _family(first: int) -> dict[int, int]:
    """A process and those it started, directly or not: CPU time in clock ticks by process."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    found = {first} & ticks.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: ticks[pid] for pid in found}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A session of its own, ended with the block; what it says goes to `log`."""
    variables = os.environ | environment
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=variables, start_new_session=True
        )
    try:
        yield child
    finally:
        family = _family(child.pid)
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for pid in family.keys() - {child.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()


@contextmanager
def product(folder: Path, works: Sequence[Work], environment: Mapping[str, str]) -> Iterator[Side]:
    """`axon serve` on a fresh data folder with the models loaded: the one place that knows how to start it."""
    import httpx

    ready = folder / "ready.json"
    command = [sys.executable, "-m", "service", "serve", "--data-dir", str(folder / "data"), "--http-port", "0"]
    command += ["--grpc-port", "0", "--ready-file", str(ready)]
    # Jobs are not measured: the queue's URL leads nowhere.
    queue = {"AXON_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    with running(command, folder / "axon.log", queue | environment) as child:
        _await(child, ready.exists, folder / "axon.log")
        report = json.loads(ready.read_text())
        headers = {"Content-Type": "application/octet-stream"}
        for work in works:
            url = f"{report['http']}/v1/models/{work.name}/versions"
            content = (folder / f"{work.name}.axon").read_bytes()
            httpx.post(url, content=content, headers=headers, timeout=120).raise_for_status()
        forms = dict.fromkeys(WIRES, PROTOCOL)
        yield Side(PRODUCT, child, report["http"], report["grpc"], forms, "/v2/models/{work}/infer")


@contextmanager
def echo(folder: Path, kind: str) -> Iterator[Side]:
    """One of `echoes.py`."""
    port, log = free_port(), folder / f"echo-{kind}.log"
    with running([sys.executable, str(HERE / "echoes.py"), kind, str(port)], log, {}) as child:
        _await(child, lambda: "ready" in log.read_text(), log)
        address = f"127.0.0.1:{port}"
        name, wire = (ASGI_ECHO, BINARY) if kind == "asgi" else (GRPC_ECHO, GRPC)
        yield Side(name, child, f"http://{address}", address, {wire: PROTOCOL}, "/")


@contextmanager
def _peer(folder: Path, peer: Peer) -> Iterator[Side]:
    """A peer's process; whether it answers is another question."""
    python = installed(peer.environment)
    http_port, grpc_port = free_port(), free_port()
    command = [str(python), str(HERE / "peers" / f"{peer.environment}_server.py"), str(folder)]
    command += [str(http_port), str(grpc_port), *peer.arguments]
    with running(command, log_of(folder, peer.name), {}) as child:
        base, address = f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
        yield Side(peer.name, child, base, address, peer.forms, peer.path, peer.python, peer=True)


def log_of(folder: Path, name: str) -> Path:
    """Where a peer's words go."""
    return folder / f"peer-{name.replace(' ', '-')}.log"


def start_peers(stack: ExitStack, folder: Path, names: Sequence[str]) -> tuple[list[Side], dict[str, str]]:
    """Those that are installed, started together on `stack`; and of the others, why they are not here."""
    sides, absent = [], {}
    for peer in PEERS:
        if peer.environment not in names:
            continue
        if installed(peer.environment) is None:
            absent[peer.name] = f"not installed: python -m benchmarks.peers install {peer.environment}"
        else:
            sides.append(stack.enter_context(_peer(folder, peer)))
    return sides, absent


def check_answers(side: Side, works: Sequence[Work], requests: Mapping[str, Mapping[tuple[str, str], Request]]) -> None:
    """Every model on every wire must give the right numbers before its speed counts: raises `NotRunning`."""
    deadline = time.monotonic() + START_S
    for work in works:
        expected = answer(work, work.image()).ravel()
        for wire, form in side.forms.items():
            got = _first_answer(side, work.name, wire, requests[work.name][wire, form], form, deadline)
            if got.shape != expected.shape or np.abs(got - expected).max() > _TOLERANCE:
                raise NotRunning(f"{work.name} over {wire}: expected {expected}, got {got}")


def _first_answer(side: Side, work: str, wire: str, request: Request, form: str, deadline: float) -> np.ndarray:
    import grpc
    import httpx

    while True:
        try:
            if wire in (GRPC, STREAM):
                return ask_grpc(side.grpc, request, wire)
            return ask_http(side.url(work), request, form)
        except (httpx.HTTPError, grpc.RpcError, RuntimeError) as error:
            if side.process.poll() is not None:
                raise NotRunning(f"ended with {side.process.returncode}") from None
            if time.monotonic() > deadline:
                raise NotRunning(f"{work} over {wire} within {START_S} s: {error}") from None
            time.sleep(0.25)


def _await(child: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    """Until `ready()`; raises `SystemExit` with the last words of a process that ended first."""
    while not ready():
        if child.poll() is not None:
            raise SystemExit(f"{log.stem} ended with {child.returncode}:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
