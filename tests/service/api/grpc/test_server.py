"""The Open Inference Protocol over a real gRPC channel: typed and raw contents, statuses, health, reflection."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.api.grpc.errors import MAX_DETAILS
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.server import HealthServicer, build_server
from service.api.repository import ModelRepository
from service.core.errors import InvalidRequest
from service.core.inference import InferenceService
from service.core.limits import Limits
from service.core.types import ModelSpec, TensorSpec
from tests.service.api.grpc.listening import started
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
MAX_MESSAGE = 100_000
TYPED = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64", "BYTES")


class Server:
    """A server over fakes, and a channel to it."""

    def __init__(self) -> None:
        self.model = HeldModel(spec(max_batch_size=4))
        self.served = [serve(self.model, version=3)]
        for name in (*TYPED, "FP16", "BF16"):
            tensors = [(TensorSpec(tensor, name, (-1,)),) for tensor in "xy"]
            echo = HeldModel(ModelSpec(*tensors, 0, ()), lambda inputs: {"y": inputs["x"]})
            self.served.append(serve(echo, name=name))
        self.registry = FakeRegistry(*self.served, loading=("slow",))
        self.inference = InferenceService(self.registry, "axon", "0.1", RealClock())

    async def start(self) -> None:
        self.server = build_server(
            self.inference, ModelRepository(self.registry, Limits()), max_message_bytes=MAX_MESSAGE
        )
        self.port = await started(self.server)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)

    async def stop(self) -> None:
        self.model.gate.set()
        await self.channel.close()
        await self.server.stop(0)
        for served in self.served:
            assert await served.close(WAIT_S)

    async def infer(self, request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
        return await asyncio.wait_for(self.stub.ModelInfer(request, **options), WAIT_S)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    await made.start()
    yield made
    await made.stop()


def raw(array: np.ndarray = X, datatype: str = "FP32", **fields: Any) -> pb.ModelInferRequest:
    """A request with `array` as raw bytes."""
    item = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=array.shape)
    return pb.ModelInferRequest(
        **{"model_name": "fake", "inputs": [item], "raw_input_contents": [array.tobytes()], **fields}
    )


def typed(datatype: str, shape: tuple[int, ...], **contents: Any) -> pb.ModelInferRequest:
    """A request with typed contents for the echo model of `datatype`."""
    item = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    if contents:
        item.contents.CopyFrom(pb.InferTensorContents(**contents))
    return pb.ModelInferRequest(model_name=datatype, inputs=[item])


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Code and details of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(call, WAIT_S)
    return raised.value.code(), raised.value.details() or ""


async def test_raw_contents_in_raw_contents_out(server: Server) -> None:
    """Outputs in the model's order, values as bytes, id and resolved version."""
    response = await server.infer(raw(id="a-1"))
    assert (response.model_name, response.model_version, response.id) == ("fake", "3", "a-1")
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        ("doubled", "FP32", [2, 3]),
        ("total", "FP64", [2]),
    ]
    assert not any(output.HasField("contents") for output in response.outputs)
    assert list(response.raw_output_contents) == [(X * 2).tobytes(), np.array([6.0, 15.0]).tobytes()]


async def test_outputs_in_the_order_asked_for(server: Server) -> None:
    """And only those."""
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("total", "doubled")]
    response = await server.infer(raw(outputs=wanted, model_version="3"))
    assert [output.name for output in response.outputs] == ["total", "doubled"]


VALUES: dict[str, tuple[str, list[Any], bytes]] = {
    "BOOL": ("bool_contents", [True, False], b"\1\0"),
    "INT8": ("int_contents", [-128, 127], struct.pack("<2b", -128, 127)),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1], struct.pack("<2h", -(2**15), 2**15 - 1)),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1], struct.pack("<2i", -(2**31), 2**31 - 1)),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1], struct.pack("<2q", -(2**63), 2**63 - 1)),
    "UINT8": ("uint_contents", [0, 255], struct.pack("<2B", 0, 255)),
    "UINT16": ("uint_contents", [0, 2**16 - 1], struct.pack("<2H", 0, 2**16 - 1)),
    "UINT32": ("uint_contents", [0, 2**32 - 1], struct.pack("<2I", 0, 2**32 - 1)),
    "UINT64": ("uint64_contents", [0, 2**64 - 1], struct.pack("<2Q", 0, 2**64 - 1)),
    "FP32": ("fp32_contents", [0.1, float("-inf")], struct.pack("<2f", 0.1, float("-inf"))),
    "FP64": ("fp64_contents", [0.1, 1e300], struct.pack("<2d", 0.1, 1e300)),
    "BYTES": ("bytes_contents", [b"\xff\0", b""], struct.pack("<I2sI", 2, b"\xff\0", 0)),
}


@pytest.mark.parametrize("datatype", TYPED)
async def test_typed_contents_are_exact(server: Server, datatype: str) -> None:
    """The limits of every datatype, checked against their bytes."""
    field, values, expected = VALUES[datatype]
    response = await server.infer(typed(datatype, (2,), **{field: values}))
    assert response.raw_output_contents[0] == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
async def test_16_bit_floats_travel_raw(server: Server, dtype: type) -> None:
    """They have no typed field."""
    name = {np.float16: "FP16"}.get(dtype, "BF16")
    array = np.array([1.5, -2.0, np.inf], dtype)
    response = await server.infer(raw(array, name, model_name=name))
    assert response.raw_output_contents[0] == array.tobytes()
    code, details = await status_of(server.infer(typed(name, (1,), fp32_contents=[1.0])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in details


def _both() -> pb.ModelInferRequest:
    request = raw()
    request.inputs[0].contents.fp32_contents.extend(X.ravel())
    return request


def _parameter(key: str, **value: Any) -> pb.ModelInferRequest:
    return raw(parameters={key: pb.InferParameter(**value)})


WRONG = [
    (pb.ModelInferRequest(model_name="fake"), "at least one input"),
    (raw(raw_input_contents=[X.tobytes()] * 2), "one entry per input, 1, got 2"),
    (_both(), "got both"),
    (raw(raw_input_contents=[X.tobytes()[:-1]]), "expected 24 bytes"),
    (raw(X[:, :2]), r"expected shape [-1, 3], got [2, 2]"),
    (raw(datatype="FLOAT"), "expected one of BOOL"),
    (raw(X.astype(np.float64), "FP64"), "expected datatype FP32, got FP64"),
    (raw(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="nope")]), "got 'nope'"),
    (typed("INT8", (1,), int_contents=[128]), "expected values of INT8, got 128"),
    (typed("UINT16", (2,), uint_contents=[1, 65536]), "expected values of UINT16, got 65536"),
    (typed("FP32", (2,), fp32_contents=[1.0]), "expected 2 values"),
    (typed("FP32", (1,), fp64_contents=[1.0]), "expected FP32 in fp32_contents, got fp64_contents"),
    (typed("FP32", (-1,), fp32_contents=[1.0]), "integers >= 0"),
    (typed("FP32", (2**62, 2**62)), "fewer than 2**60"),
    (raw(np.empty((0, 2**60), np.int8), "FP64"), "fewer than 2**60"),
    (_parameter("triton_x", bool_param=True), "reserved"),
    (_parameter("timeout", string_param="1"), "parameters.timeout"),
    (_parameter("priority", int64_param=-1), "parameters.priority"),
]


@pytest.mark.parametrize(("request_", "text"), WRONG)
async def test_wrong_request_is_explained(server: Server, request_: pb.ModelInferRequest, text: str) -> None:
    """INVALID_ARGUMENT with what was expected, and the server answers on."""
    code, details = await status_of(server.infer(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in details
    assert (await server.infer(raw())).outputs


async def test_statuses_of_other_failures(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, not ready, too large, unsupported, unplanned."""
    assert (await status_of(server.infer(raw(model_name="none"))))[0] is grpc.StatusCode.NOT_FOUND
    assert (await status_of(server.infer(raw(model_version="9"))))[0] is grpc.StatusCode.NOT_FOUND
    assert (await status_of(server.infer(raw(model_name="slow"))))[0] is grpc.StatusCode.UNAVAILABLE
    huge = np.zeros((MAX_MESSAGE // 12 + 1, 3), np.float32)
    assert (await status_of(server.infer(raw(huge))))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    shared = raw()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert (await status_of(server.infer(shared)))[0] is grpc.StatusCode.UNIMPLEMENTED

    def broken(*_: object, **__: object) -> None:
        raise KeyError("/secret")

    monkeypatch.setattr(server.served[0].__class__, "start", broken)
    code, details = await status_of(server.infer(raw()))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


async def test_long_message_fits_into_a_header(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client must not lose the status because the text is longer than it accepts."""

    def wordy(*_: object, **__: object) -> None:
        raise InvalidRequest("x" * 100_000)

    monkeypatch.setattr(server.served[0].__class__, "start", wordy)
    code, details = await status_of(server.infer(raw()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "x" * MAX_DETAILS


async def test_timeout_parameter_is_enforced(server: Server) -> None:
    """Microseconds, in either integer field."""
    server.model.gate.clear()
    for value in ({"int64_param": 20_000}, {"uint64_param": 20_000}):
        request = raw(parameters={"timeout": pb.InferParameter(**value)})
        assert (await status_of(server.infer(request)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_deadline_and_cancellation_free_the_queue(server: Server) -> None:
    """An RPC that expires or is cancelled leaves the queue."""
    server.model.gate.clear()
    running = server.stub.ModelInfer(raw())
    assert await asyncio.to_thread(server.model.started.acquire, timeout=WAIT_S)
    waiting, expiring = server.stub.ModelInfer(raw()), server.stub.ModelInfer(raw(), timeout=0.2)
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth < 2:
            await asyncio.sleep(0.001)
    waiting.cancel()
    assert (await status_of(expiring))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth:
            await asyncio.sleep(0.001)
    server.model.gate.set()
    assert (await running).outputs
    assert len(server.model.batches) == 1


async def test_health_and_metadata(server: Server) -> None:
    """The protocol's own health and metadata calls."""
    stub = server.stub
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="fake", version="3"))).ready
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="slow"))).ready
    assert (await status_of(stub.ModelReady(pb.ModelReadyRequest(name="none"))))[0] is grpc.StatusCode.NOT_FOUND
    described = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (described.name, described.version) == ("axon", "0.1")
    model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
    assert (model.name, list(model.versions), model.platform) == ("fake", ["3"], "jax_graph")
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [("x", "FP32", [-1, 3])]


async def test_stream_answers_in_order_and_survives_failures(server: Server) -> None:
    """A failed request is answered with its message and id; the next ones are served."""

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(200):
            yield raw(X + number, id=str(number), model_name="none" if number == 7 else "fake")

    responses = []
    async with asyncio.timeout(WAIT_S):
        async for response in server.stub.ModelStreamInfer(requests()):
            responses.append(response)
    assert [response.infer_response.id for response in responses] == [str(number) for number in range(200)]
    assert "none" in responses[7].error_message
    for number in (0, 6, 8, 199):
        assert responses[number].infer_response.raw_output_contents[0] == ((X + number) * 2).tobytes()


async def test_strict_stream_ends_with_the_status(server: Server) -> None:
    """With `triton_grpc_error: true` the first failure ends the stream."""

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield raw(model_name="none")

    async def drain() -> None:
        async for _ in server.stub.ModelStreamInfer(requests(), metadata=(("triton_grpc_error", "true"),)):
            pass

    assert (await status_of(drain()))[0] is grpc.StatusCode.NOT_FOUND


async def test_grpc_health_follows_readiness(server: Server) -> None:
    """Check by name; Watch sends what changes."""
    stub = health_pb2_grpc.HealthStub(server.channel)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", "inference.GRPCInferenceService"):
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
    unknown = health_pb2.HealthCheckRequest(service="unknown")
    assert (await status_of(stub.Check(unknown)))[0] is grpc.StatusCode.NOT_FOUND
    watch = HealthServicer(server.inference, frozenset(("",)), poll_s=0.001, stopping=lambda: False).Watch(
        health_pb2.HealthCheckRequest(), None
    )
    assert (await anext(watch)).status == serving
    server.registry.is_ready = False
    assert (await asyncio.wait_for(anext(watch), WAIT_S)).status == not_serving
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == not_serving
    first = await asyncio.wait_for(stub.Watch(unknown).read(), WAIT_S)
    assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_reflection_lists_and_describes(server: Server) -> None:
    """What grpcurl asks for."""
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    ask = reflection_pb2.ServerReflectionRequest
    call = stub.ServerReflectionInfo()
    await call.write(ask(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= listed
    await call.write(ask(file_containing_symbol="inference.GRPCInferenceService"))
    files = (await call.read()).file_descriptor_response.file_descriptor_proto
    assert any(FileDescriptorProto.FromString(each).package == "inference" for each in files)
    await call.done_writing()
