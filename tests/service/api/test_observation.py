"""What is made of requests on both wires: spans under the caller's trace, ids in the logs, lines of the access log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import orjson
import pytest
from structlog.contextvars import get_contextvars

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.server import build_server
from service.api.observation import GONE, Observer, current
from service.api.repository import ModelRepository
from service.api.rest import v2
from service.api.rest.app import Application
from service.api.rest.dispatch import Dispatcher
from service.api.rest.errors import install
from service.core.inference import InferenceService
from service.core.limits import Limits
from service.core.tracing import Span, TraceContext
from tests.service.api.asgi import call
from tests.service.api.grpc.listening import started
from tests.service.api.rest.dispatching import INFER, X, request
from tests.service.core.served import WAIT_S, FakeRegistry, HeldClock, HeldModel, RealClock, serve, spec
from tests.service.fake_tracer import FakeTracer

PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True, "rojo=1")
STAGES = ["decode", "queue", "assemble", "compute", "split", "hop", "encode"]


class Served:
    """One model on both wires, observed; `spans` are those made so far."""

    def __init__(self, *, access_log: bool = False) -> None:
        self.tracer = FakeTracer()
        self.observer = Observer(RealClock(), tracer=self.tracer, access_log=access_log)
        self.contexts: list[dict[str, Any]] = []
        self.model = HeldModel(spec(max_batch_size=4))
        self.served = serve(self.model, version=3)
        registry = FakeRegistry(self.served, loading=("slow",))
        inference = InferenceService(registry, "axon", "1", RealClock())
        app = Application(title="t", version="1", description="", redirect_slashes=False)
        app.include_router(v2.router(inference))

        @app.get("/context/{anything}")
        async def context(anything: str) -> dict[str, Any]:
            self.contexts.append(get_contextvars())
            assert current() is not None
            return {}

        install(app)
        self.app = Dispatcher(app, inference, max_body_bytes=100_000, observer=self.observer)
        repository = ModelRepository(registry, Limits())
        self.grpc = build_server(inference, repository, max_message_bytes=100_000, observer=self.observer)

    async def start(self) -> None:
        port = await started(self.grpc)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)

    async def stop(self) -> None:
        self.model.gate.set()
        await self.channel.close()
        await self.grpc.stop(0)
        assert await self.served.close(WAIT_S)

    async def post(self, body: Any = None, headers: Mapping[str, str] | None = None, path: str = INFER) -> int:
        content = orjson.dumps(request() if body is None else body, option=orjson.OPT_SERIALIZE_NUMPY)
        reply = await asyncio.wait_for(call(self.app, "POST", path, content, headers), WAIT_S)
        assert reply is not None
        return reply.status

    @property
    def spans(self) -> list[Span]:
        self.observer.work_off()
        return self.tracer.spans


@pytest.fixture
async def observed() -> AsyncIterator[Served]:
    """Both wires, with a tracer and without an access log."""
    made = Served()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def logged() -> AsyncIterator[Served]:
    """Both wires, with an access log too."""
    made = Served(access_log=True)
    await made.start()
    yield made
    await made.stop()


def message(**fields: Any) -> pb.ModelInferRequest:
    """A request of X over gRPC."""
    item = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=X.shape)
    return pb.ModelInferRequest(
        **{"model_name": "fake", "inputs": [item], "raw_input_contents": [X.tobytes()], **fields}
    )


def _check_stages(spans: Sequence[Span]) -> None:
    server, *stages = spans
    assert [span.name for span in stages] == STAGES
    assert {span.parent for span in stages} == {server.context}
    moments = [server.start_ns, *(span.end_ns for span in stages)]
    assert moments == sorted(moments)
    assert [span.start_ns for span in stages] == moments[:-1]
    assert stages[-1].end_ns == server.end_ns
    assert stages[3].attributes == {"axon.batch.rows": 2, "axon.batch.requests": 1}


async def test_http_request_is_a_span_of_its_callers_trace(observed):
    """One server span under the caller's, and one below for each stage, end to end without a gap."""
    headers = {"traceparent": PARENT.traceparent, "tracestate": "rojo=1", "x-request-id": "abc"}
    assert await observed.post(headers=headers) == 200
    server = observed.spans[0]
    assert server.parent == PARENT
    assert server.context.trace_id == PARENT.trace_id
    assert server.context.state == "rojo=1"
    assert (server.name, server.kind, server.failed) == ("POST /v2/models/{name}/infer", "server", False)
    sizes = {key: server.attributes[key] for key in server.attributes if key.endswith("size")}
    assert all(size > 0 for size in sizes.values())
    assert server.attributes == sizes | {
        "http.request.method": "POST",
        "http.route": "/v2/models/{name}/infer",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "axon.request.id": "abc",
        "axon.model.name": "fake",
        "axon.model.version": "3",
    }
    _check_stages(observed.spans)


async def test_grpc_request_is_a_span_of_its_callers_trace(observed):
    """The same over gRPC, whose metadata carries the context."""
    metadata = (("traceparent", PARENT.traceparent), ("tracestate", "rojo=1"), ("x-request-id", "abc"))
    await observed.stub.ModelInfer(message(), metadata=metadata, timeout=WAIT_S)
    server = observed.spans[0]
    assert server.parent == PARENT
    assert (server.name, server.kind) == ("inference.GRPCInferenceService/ModelInfer", "server")
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert server.attributes["axon.request.id"] == "abc"
    assert server.attributes["axon.model.version"] == "3"
    _check_stages(observed.spans)


async def test_each_request_of_a_stream_is_a_span(observed):
    """A stream may last for hours: its requests are told of one by one."""

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(3):
            yield message(id=str(number))

    async for _ in observed.stub.ModelStreamInfer(requests(), timeout=WAIT_S):
        pass
    servers = [span for span in observed.spans if span.kind == "server"]
    assert {span.name for span in servers} == {"inference.GRPCInferenceService/ModelStreamInfer"}
    assert {span.attributes["axon.request.id"] for span in servers} == {"0", "1", "2"}
    assert len({span.context.trace_id for span in servers}) == 3


async def test_requests_of_a_batch_link_to_one_another(observed):
    """Computed together, in traces of their own: the others' compute spans link to the first one's."""
    observed.model.gate.clear()
    first = asyncio.create_task(observed.post())
    assert await asyncio.to_thread(observed.model.started.acquire, timeout=WAIT_S)
    others = [asyncio.create_task(observed.post()) for _ in range(2)]
    while observed.served.queue_depth < 2:
        await asyncio.sleep(0.001)
    observed.model.gate.set()
    await asyncio.gather(first, *others)
    computed = [span for span in observed.spans if span.name == "compute"]
    assert [span.attributes["axon.batch.requests"] for span in computed] == [1, 2, 2]
    assert [list(span.links) for span in computed] == [[], [], [computed[1].context]]
    assert computed[1].context.trace_id != computed[2].context.trace_id


async def test_body_id_goes_before_that_of_the_headers(observed):
    """The protocol's own id names a request, then `x-request-id`."""
    await observed.post(request(id="from-the-body"), {"x-request-id": "from-the-headers"})
    assert observed.spans[0].attributes["axon.request.id"] == "from-the-body"


@pytest.mark.parametrize("given", ["", "two words", "new\\nline", "\u00fc", "x" * 129])
async def test_ids_that_could_deceive_a_log_are_replaced(observed, given):
    """Ids are 1 to 128 printable characters; for others there is one of ours, and the answer has the client's."""
    await observed.post(request(id=given.replace("\\n", "\n")))
    assert len(observed.spans[0].attributes["axon.request.id"]) == 16


async def test_malformed_context_starts_a_new_trace(observed):
    """A bad header changes no answer and no trace but the request's own."""
    assert await observed.post(headers={"traceparent": "00-nonsense", "tracestate": "=,="}) == 200
    assert observed.spans[0].parent is None


async def test_unsampled_request_makes_no_span(observed):
    """The caller's decision holds."""
    assert await observed.post(headers={"traceparent": PARENT.traceparent[:-2] + "00"}) == 200
    assert observed.spans == []


async def test_failures_are_spans_with_their_reason(observed):
    """A client's error is none of the server's, as the conventions have it; ours are."""
    assert await observed.post({"inputs": []}) == 400
    assert await observed.post(path="/v2/models/slow/infer") == 503
    assert await observed.post(path="/v2/models/absent/infer") == 404
    with pytest.raises(grpc.aio.AioRpcError):
        await observed.stub.ModelInfer(message(model_name="slow"), timeout=WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError):
        await observed.stub.ModelInfer(message(model_name="absent"), timeout=WAIT_S)
    told = [(span.failed, span.error, span.attributes.get("error.type")) for span in observed.spans]
    assert told == [
        (False, "InvalidRequest", None),
        (True, "NotReady", "NotReady"),
        (False, "NotFound", None),
        (True, "NotReady", "NotReady"),
        (False, "NotFound", None),
    ]


async def test_client_that_goes_away_is_told_of(logged, caplog):
    """A request that nobody waits for ends with HTTP's unofficial 499."""
    caplog.set_level(logging.INFO, "service.access")
    logged.model.gate.clear()
    gone = asyncio.Event()
    body = orjson.dumps(request(), option=orjson.OPT_SERIALIZE_NUMPY)
    task = asyncio.create_task(call(logged.app, "POST", INFER, body, disconnect=gone))
    assert await asyncio.to_thread(logged.model.started.acquire, timeout=WAIT_S)
    gone.set()
    assert await asyncio.wait_for(task, WAIT_S) is None
    server, decode, queue = logged.spans
    assert server.attributes["http.response.status_code"] == GONE
    assert (decode.name, queue.name) == ("decode", "queue")


async def test_other_routes_are_spans_by_their_template(observed):
    """What a client put into a path is in no span's name; unknown paths and methods are all one."""
    for method, path in (("GET", "/v2/models/fake/config"), ("GET", "/no/such/path"), ("BREW", "/v2/models")):
        await call(observed.app, method, path)
    assert [span.name for span in observed.spans] == ["GET /v2/models/{name}/config", "GET", "_OTHER /v2/models"]


async def test_probes_are_not_observed(observed):
    """Health is asked for every few seconds."""
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert await call(observed.app, "GET", path) is not None
    assert observed.spans == []


async def test_lines_of_a_request_carry_its_ids(observed):
    """What is logged while a request is handled has its id and its trace's; afterwards nothing is left of them."""
    await call(observed.app, "GET", "/context/a", headers={"x-request-id": "abc", "traceparent": PARENT.traceparent})
    assert observed.contexts == [{"request_id": "abc", "trace_id": PARENT.trace_id}]
    assert get_contextvars() == {}
    assert current() is None


async def test_access_log_has_a_line_per_request(logged, caplog):
    """Who asked what, what came of it and how long it took; nothing of the tensors."""
    lines: list[dict[str, Any]] = []
    caplog.set_level(logging.INFO, "service.access")

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(get_contextvars())

    handler = Keep()
    logging.getLogger("service.access").addHandler(handler)
    try:
        await logged.post(headers={"x-request-id": "abc"})
        await logged.stub.ModelInfer(message(id="def"), timeout=WAIT_S)
        logged.observer.work_off()
    finally:
        logging.getLogger("service.access").removeHandler(handler)
    http, rpc = lines
    assert {key: http[key] for key in ("request_id", "wire", "method", "route", "model", "version", "status")} == {
        "request_id": "abc",
        "wire": "http",
        "method": "POST",
        "route": "/v2/models/{name}/infer",
        "model": "fake",
        "version": "3",
        "status": 200,
    }
    assert (rpc["request_id"], rpc["wire"], rpc["method"], rpc["status"]) == ("def", "grpc", "ModelInfer", 0)
    assert all(line["duration_ms"] >= line["queue_ms"] + line["compute_ms"] for line in lines)
    assert all(isinstance(value, str | int | float) for line in lines for value in line.values())


def test_an_exchange_may_be_entered_while_it_is_entered():
    """A wire that fails while it reads enters it for the failure too; afterwards nothing is left of it."""
    exchange = Observer(HeldClock(), tracer=None, access_log=True).begin("http", "GET", "/", {b"x-request-id": b"a"})
    with exchange:
        exchange.asked("model", None, "b")
        with exchange:
            pass
        assert (current(), get_contextvars()["request_id"]) == (exchange, "b")
    assert (current(), get_contextvars()) == (None, {})


async def test_a_servers_fault_is_logged_under_the_requests_id(observed, caplog):
    """The answer and the log name the same id, which is the client's own."""
    body = orjson.dumps(request(), option=orjson.OPT_SERIALIZE_NUMPY)
    reply = await call(observed.app, "POST", "/v2/models/slow/infer", body, {"x-request-id": "mine"})
    assert reply is not None
    assert (reply.status, reply.json["request_id"]) == (503, "mine")
    assert "request mine: NotReady: " in caplog.text


def test_what_cannot_be_worked_off_is_dropped_and_counted():
    """A flood of requests costs lines and spans, not memory."""
    observer = Observer(HeldClock(), tracer=None, access_log=True)
    for _ in range(16_384 + 5):
        observer.begin("http", "GET", "/", {}).end(200)
    assert observer.dropped == 5


def test_closing_works_off_what_is_left():
    """Spans of the last requests are not lost."""
    tracer = FakeTracer()
    observer = Observer(RealClock(), tracer=tracer, access_log=False)
    observer.start()
    observer.begin("http", "GET", "/x", {}, received=1.0).end(200)
    observer.close(WAIT_S)
    assert [span.name for span in tracer.spans] == ["GET /x"]
