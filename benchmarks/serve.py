"""Serving speed: a 784-128-10 MLP over HTTP binary, HTTP JSON and gRPC, next to the limits of this machine.

    python benchmarks/serve.py [--rounds 3] [--concurrency 1 16 64] [--wires http-binary http-json grpc] [--json FILE]

The limits, in the same run: `jax.jit` in one process (batch 1 and 64), a bare ASGI echo of the same bytes, a bare
`grpc.aio` echo. Load comes from processes made in C, so that the load maker is not the limit: `wrk` and `h2load`
(Debian and Ubuntu: `apt-get install wrk nghttp2-client`; macOS: `brew install wrk nghttp2`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))

from benchmarks.report import Report  # noqa: E402

WORK = "mlp 784-128-10"
SIZES = (784, 128, 10)
WIRES = ("http-binary", "http-json", "grpc")
ASGI_ECHO, GRPC_ECHO = "bare ASGI echo", "bare grpc.aio echo"
RPC = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Figures:
    """What a load maker measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Target:
    """A server under load."""

    http: str
    grpc: str


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A server's process, ended with the block."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()


@contextmanager
def echo_server(kind: str) -> Iterator[int]:
    """One of `echoes.py` on a port of its own."""
    port = free_port()
    with running([sys.executable, str(HERE / "echoes.py"), kind, str(port)], {}) as child:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise SystemExit(f"the {kind} echo ended with {child.wait()} before it was ready")
        yield port


@contextmanager
def product(folder: Path, bundle: Path) -> Iterator[Target]:
    """`axon serve` on a fresh data folder with the model `mlp` loaded: the one place that knows how to start it."""
    import httpx

    ready = folder / "ready.json"
    command = [sys.executable, "-m", "service", "serve", "--data-dir", str(folder / "data"), "--http-port", "0"]
    command += ["--grpc-port", "0", "--ready-file", str(ready)]
    # Jobs are not measured: the queue's URL leads nowhere.
    with running(command, {"AXON_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}) as child:
        while not ready.exists():
            if child.poll() is not None:
                raise SystemExit(f"axon serve ended with {child.returncode}")
            time.sleep(0.05)
        report = json.loads(ready.read_text())
        url = f"{report['http']}/v1/models/mlp/versions"
        headers = {"Content-Type": "application/octet-stream"}
        httpx.post(url, content=bundle.read_bytes(), headers=headers, timeout=120).raise_for_status()
        yield Target(report["http"], report["grpc"])


def parameters() -> list[np.ndarray]:
    """Kernels and biases, the same in every run."""
    generator = np.random.default_rng(7)
    return [
        array
        for rows, columns in itertools.pairwise(SIZES)
        for array in (
            generator.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows)),
            np.zeros(columns, np.float32),
        )
    ]


def write_bundle(path: Path) -> None:
    """The model as a bundle."""
    from service.adapters.engine_runtime import EngineRuntime

    nodes: list[dict[str, Any]] = [
        {"name": "image", "op": "input", "options": {"shape": [None, SIZES[0]], "dtype": "f32"}},
        {"name": "hidden", "op": "dense", "inputs": ["image"], "options": {"units": SIZES[1]}},
        {"name": "relu", "op": "relu", "inputs": ["hidden"]},
        {"name": "logits", "op": "dense", "inputs": ["relu"], "options": {"units": SIZES[2]}},
        {"name": "softmax", "op": "softmax", "inputs": ["logits"]},
    ]
    graph = json.dumps({"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "softmax"}).encode()
    EngineRuntime().write_bundle(path, graph, None, seed=7, lineage={})


def in_process(report: Report, seconds: int) -> None:
    """Calls of `jax.jit` from host arrays to host arrays: what no server on top of it can exceed."""
    import jax

    @jax.jit
    def predict(parameters: list[jax.Array], x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ parameters[0] + parameters[1])
        return jax.nn.softmax(hidden @ parameters[2] + parameters[3])

    held = jax.device_put(parameters())
    for batch in (1, 64):
        x = np.zeros((batch, SIZES[0]), np.float32)
        np.asarray(predict(held, x))
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            for _ in range(100):
                np.asarray(predict(held, x))
            calls += 100
        report.add(WORK, "in-process jit", f"batch {batch}: calls/s", calls / elapsed)
        report.add(WORK, "in-process jit", f"batch {batch}: rows/s", calls * batch / elapsed)


def http_bodies(folder: Path, image: np.ndarray) -> dict[str, tuple[Path, list[str]]]:
    """Per HTTP wire: the file with the request's body, and its headers as `post.lua` takes them."""
    tensor: dict[str, Any] = {"name": "image", "shape": [1, SIZES[0]], "datatype": "FP32"}
    header = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}],
            "outputs": [{"name": "softmax", "parameters": {"binary_data": True}}],
        }
    ).encode()
    binary, text = folder / "binary", folder / "json"
    binary.write_bytes(header + image.tobytes())
    text.write_text(json.dumps({"inputs": [{**tensor, "data": [float(str(value)) for value in image[0]]}]}))
    return {
        "http-binary": (
            binary,
            [f"Inference-Header-Content-Length={len(header)}", "Content-Type=application/octet-stream"],
        ),
        "http-json": (text, ["Content-Type=application/json"]),
    }


def grpc_body(folder: Path, image: np.ndarray) -> Path:
    """One gRPC frame: a flag, the length, and the message."""
    from service.api.grpc.generated import inference_pb2 as pb

    item = pb.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=image.shape)
    message = pb.ModelInferRequest(model_name="mlp", inputs=[item], raw_input_contents=[image.tobytes()])
    content = message.SerializeToString()
    path = folder / "grpc"
    path.write_bytes(struct.pack(">BI", 0, len(content)) + content)
    return path


def wrk(url: str, body: Path, headers: list[str], concurrency: int, seconds: int) -> Figures:
    """Load over HTTP/1.1, one connection per request in flight."""
    command = [need("wrk"), "-t1", f"-c{concurrency}", f"-d{seconds}s", "-s", str(HERE / "post.lua"), url]
    run = subprocess.run([*command, "--", str(body), *headers], capture_output=True, text=True, check=True)
    found = re.search(r"^figures (.*)$", run.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"wrk said nothing of use:\n{run.stdout}{run.stderr}")
    figures = json.loads(found[1])
    if figures["failed"] or not figures["requests"]:
        raise SystemExit(f"{url}: {figures['failed']} of {figures['requests']} requests failed")
    return Figures(figures["requests"] / figures["seconds"], figures["p50_ms"], figures["p99_ms"])


def h2load(address: str, body: Path, concurrency: int, seconds: int) -> Figures:
    """Load over HTTP/2: up to 8 connections that share the requests in flight, as gRPC's channels do."""
    connections = min(concurrency, 8)
    streams = concurrency // connections
    with tempfile.NamedTemporaryFile() as log:
        command = [need("h2load"), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", f"-d{body}"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log.name}"]
        run = subprocess.run([*command, f"http://{address}{RPC}"], capture_output=True, text=True, check=True)
        lines = [line.split() for line in Path(log.name).read_text().splitlines()]
    failed = sum(status != "200" for _, status, _ in lines)
    if failed or not lines:
        raise SystemExit(f"{address}: {failed} of {len(lines)} requests failed\n{run.stdout}")
    microseconds = np.array([int(taken) for _, _, taken in lines])
    p50, p99 = np.percentile(microseconds, [50, 99]) / 1e3
    return Figures(len(lines) / seconds, float(p50), float(p99))


def need(program: str) -> str:
    """The path of a load maker."""
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} is not on PATH: apt-get install wrk nghttp2-client, or brew install wrk nghttp2")
    return path


def check_answers(target: Target, bodies: dict[str, tuple[Path, list[str]]], framed: Path, image: np.ndarray) -> None:
    """Each wire must give the same numbers as the others before its speed counts."""
    import grpc
    import httpx

    from service.api.grpc.generated import inference_pb2 as pb

    url = f"{target.http}/v2/models/mlp/infer"
    answers = []
    for body, headers in bodies.values():
        named = dict(header.split("=", 1) for header in headers)
        reply = httpx.post(url, content=body.read_bytes(), headers=named).raise_for_status()
        length = reply.headers.get("inference-header-content-length")
        answers.append(
            np.array(reply.json()["outputs"][0]["data"], np.float32)
            if length is None
            else np.frombuffer(reply.content[int(length) :], np.float32)
        )
    with grpc.insecure_channel(target.grpc) as channel:
        call = channel.unary_unary(RPC, response_deserializer=pb.ModelInferResponse.FromString)
        answers.append(np.frombuffer(call(framed.read_bytes()[5:]).raw_output_contents[0], np.float32))
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], atol=1e-6)
        np.testing.assert_allclose(answer.sum(), 1, atol=1e-5)


Load = Callable[[int, int], Figures]


def loads(target: Target, wires: list[str], bodies: dict[str, tuple[Path, list[str]]], framed: Path) -> dict[str, Load]:
    """What makes the load of each wire: a function of concurrency and seconds."""

    def http(wire: str) -> Load:
        body, headers = bodies[wire]
        url = f"{target.http}/v2/models/mlp/infer"
        return lambda concurrency, seconds: wrk(url, body, headers, concurrency, seconds)

    chosen: dict[str, Load] = {wire: http(wire) for wire in wires if wire in bodies}
    if "grpc" in wires:
        chosen["grpc"] = lambda concurrency, seconds: h2load(target.grpc, framed, concurrency, seconds)
    return chosen


def rows_per_batch(target: Target) -> Callable[[], tuple[float, float]]:
    """Reads rows and batches computed so far from the server's metrics."""
    import httpx

    def read() -> tuple[float, float]:
        text = httpx.get(f"{target.http}/metrics").raise_for_status().text
        names = ("axon_inference_rows_total", "axon_batches_total")
        rows, count = (re.search(rf'^{name}{{model="mlp".*}} (.*)$', text, re.MULTILINE) for name in names)
        return (float(rows[1]), float(count[1])) if rows and count else (0.0, 0.0)

    return read


def measure(
    report: Report, sides: dict[str, Load], options: argparse.Namespace, counted: Callable[[], tuple[float, float]]
) -> dict[tuple[str, int], Figures]:
    """The median of several rounds per side and concurrency; sides take turns, so that all see the same machine."""
    measured = {}
    for load in sides.values():
        load(max(options.concurrency), 1)
    for concurrency in options.concurrency:
        rounds: dict[str, list[Figures]] = {side: [] for side in sides}
        batches = dict.fromkeys(sides, (0.0, 0.0))
        for _ in range(options.rounds):
            for side, load in sides.items():
                before = counted()
                rounds[side].append(load(concurrency, options.seconds))
                rows, count = (now - then for now, then in zip(counted(), before, strict=True))
                batches[side] = (batches[side][0] + rows, batches[side][1] + count)
        for side, figures in rounds.items():
            median = measured[side, concurrency] = median_of(figures)
            report.add(WORK, side, f"c={concurrency}: requests/s", median.requests_per_s)
            report.add(WORK, side, f"c={concurrency}: p50 ms", median.p50_ms)
            report.add(WORK, side, f"c={concurrency}: p99 ms", median.p99_ms)
            if batches[side][1]:
                report.add(WORK, side, f"c={concurrency}: rows per batch", batches[side][0] / batches[side][1])
    return measured


def median_of(figures: list[Figures]) -> Figures:
    """Each figure's median."""
    columns = zip(*((each.requests_per_s, each.p50_ms, each.p99_ms) for each in figures), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


def targets(report: Report, measured: dict[tuple[str, int], Figures]) -> None:
    """The targets, as ratios within this run where they are ratios."""
    binary, text, echo = (measured.get((side, 64)) for side in ("http-binary", "http-json", ASGI_ECHO))
    if binary and echo:
        share = binary.requests_per_s / echo.requests_per_s
        report.add(WORK, "target", "HTTP binary / bare ASGI echo at 64 (>= 0.40)", share)
    if text:
        report.add(WORK, "target", "HTTP JSON requests/s at 64 (>= 7000)", text.requests_per_s)
    alone = measured.get(("http-binary", 1))
    if alone:
        report.add(WORK, "target", "HTTP binary p50 ms at 1 (<= 0.6)", alone.p50_ms)


def echo_loads(stack: ExitStack, wires: list[str], body: tuple[Path, list[str]], framed: Path) -> dict[str, Load]:
    """The echoes, started on `stack`, with the same bytes."""
    port = stack.enter_context(echo_server("asgi"))
    url = f"http://127.0.0.1:{port}/"
    chosen: dict[str, Load] = {ASGI_ECHO: lambda concurrency, seconds: wrk(url, *body, concurrency, seconds)}
    if "grpc" in wires:
        address = f"127.0.0.1:{stack.enter_context(echo_server('grpc'))}"
        chosen[GRPC_ECHO] = lambda concurrency, seconds: h2load(address, framed, concurrency, seconds)
    return chosen


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1, help="per round and figure")
    parser.add_argument("--rounds", type=int, default=3, help="whose median is taken")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--wires", nargs="+", choices=WIRES, default=list(WIRES))
    parser.add_argument("--no-limits", action="store_true", help="only the service")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    report = Report("Serving")
    image = np.random.default_rng(3).random((1, SIZES[0]), np.float32)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_bundle(folder / "mlp.axon")
        bodies, framed = http_bodies(folder, image), grpc_body(folder, image)
        sides: dict[str, Load] = {}
        if not options.no_limits:
            in_process(report, options.seconds)
            sides |= echo_loads(stack, options.wires, bodies["http-binary"], framed)
        target = stack.enter_context(product(folder, folder / "mlp.axon"))
        check_answers(target, bodies, framed, image)
        sides |= loads(target, options.wires, bodies, framed)
        measured = measure(report, sides, options, rows_per_batch(target))
    targets(report, measured)
    report.finish(options.json)


if __name__ == "__main__":
    main()
