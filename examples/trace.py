"""One prediction over each wire as a trace: who called, and where its time went.

Starts `axon up` with tracing on and a small collector in this process, predicts over REST and over gRPC with a
caller's own W3C trace context, prints both traces, and leaves nothing running. Run: `python -m examples.trace`. Needs
the extra `otel`.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from examples.demo import GRAPH, cluster
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.client import Client

WAIT_S = 60.0
CALLERS = {
    "REST": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "gRPC": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


@dataclass(frozen=True)
class Received:
    """A span as a collector got it; times in nanoseconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]


class Collector:
    """Takes spans by OTLP over HTTP at `url`; `spans` are those that have come."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                spans.extend(_read(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def trace(self, trace_id: str, least: int = 1) -> list[Received]:
        """The spans of one trace in the order of time, as soon as there are so many."""
        deadline = time.monotonic() + WAIT_S
        while len(found := [span for span in self.spans if span.trace_id == trace_id]) < least:
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {least} spans of trace {trace_id}, got {len(found)}")
            time.sleep(0.05)
        return sorted(found, key=lambda span: (span.start_ns, -span.end_ns))

    def close(self) -> None:
        """Take no more."""
        self._server.shutdown()
        self._server.server_close()


def _read(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    {each.key: _value(each.value) for each in span.attributes},
                    tuple(link.span_id.hex() for link in span.links),
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextmanager
def observed(folder: Path) -> Iterator[tuple[dict[str, Any], Collector]]:
    """`axon up` with its data in `folder`, and the collector that gets its spans."""
    collector = Collector()
    wanted = {
        "AXON_TRACING": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "AXON_ACCESS_LOG": "1",
        "AXON_LOG_FORMAT": "json",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with cluster(folder) as ready:
            yield ready, collector
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        collector.close()


def predict_rest(ready: dict[str, Any], image: np.ndarray, traceparent: str) -> None:
    """One prediction as JSON."""
    body = {"inputs": [{"name": "image", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}]}
    url = f"http://127.0.0.1:{ready['http_port']}/v2/models/digits/infer"
    httpx.post(url, json=body, headers={"traceparent": traceparent}).raise_for_status()


def predict_grpc(ready: dict[str, Any], image: np.ndarray, traceparent: str) -> None:
    """One prediction as raw bytes."""
    item = pb.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=image.shape)
    message = pb.ModelInferRequest(model_name="digits", inputs=[item], raw_input_contents=[image.tobytes()])
    with grpc.insecure_channel(f"127.0.0.1:{ready['grpc_port']}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(message, metadata=(("traceparent", traceparent),), timeout=WAIT_S)


def as_text(spans: list[Received]) -> str:
    """A trace as a tree: start and length of each span in milliseconds, and its attributes."""
    begin = spans[0].start_ns
    known = {span.span_id for span in spans}
    lines = [f"trace {spans[0].trace_id}"]
    for span in spans:
        indent = "  " if span.parent_id in known else ""
        start, length = (span.start_ns - begin) / 1e6, (span.end_ns - span.start_ns) / 1e6
        lines.append(f"{start:8.3f} ms {length:8.3f} ms  {indent}{span.name}")
        if not indent:
            lines.append(f"{'':26}parent {span.parent_id}, the caller's")
        lines += [f"{'':26}{indent}{key} = {value}" for key, value in sorted(span.attributes.items())]
    return "\n".join(lines)


def main() -> None:
    """Start, predict, print."""
    image = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    with tempfile.TemporaryDirectory() as folder, observed(Path(folder)) as (ready, collector):
        with Client(f"http://127.0.0.1:{ready['http_port']}") as client:
            client.submit("digits", graph=GRAPH)
            client.infer("digits", {"image": image})  # the first one meets cold caches
        for wire, predict in (("REST", predict_rest), ("gRPC", predict_grpc)):
            predict(ready, image, CALLERS[wire])
            print(f"{wire}: {as_text(collector.trace(CALLERS[wire].split('-')[1], least=8))}\n")


if __name__ == "__main__":
    main()
