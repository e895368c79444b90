"""What grpcurl and grpc_health_probe do, through gRPC's own packages: reflection, and the health protocol."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from harness import Cases, Server, same

REFLECTION, HEALTH = "grpc reflection", "grpc health"
INFERENCE = "inference.GRPCInferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
METHODS = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "LogSettings",
}
cases = Cases()
case = cases.case


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[grpc.Channel]:
    """A synchronous channel."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def ask(channel: grpc.Channel, method: str, **fields: Any) -> Any:
    """Call a method of the inference service with nothing but what reflection tells of it."""
    database = ProtoReflectionDescriptorDatabase(channel)
    found = DescriptorPool(database).FindServiceByName(INFERENCE).FindMethodByName(method)
    request, answer = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
    call = channel.unary_unary(f"/{INFERENCE}/{method}", request.SerializeToString, answer.FromString)
    return call(request(**fields), timeout=20)


@case("reflection lists the services", REFLECTION)
def _(channel: grpc.Channel) -> None:
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    same({INFERENCE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} - listed, set(), "missing")


@case("reflection describes every method", REFLECTION)
def _(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    service = DescriptorPool(database).FindServiceByName(INFERENCE)
    same(METHODS - {method.name for method in service.methods}, set(), "methods that are missing")


@case("server is live and ready", REFLECTION)
def _(channel: grpc.Channel) -> None:
    same(ask(channel, "ServerLive").live, True, "live")
    same(ask(channel, "ServerReady").ready, True, "ready")


@case("model metadata", REFLECTION)
def _(channel: grpc.Channel) -> None:
    metadata = ask(channel, "ModelMetadata", name="simple")
    given = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
    same(given, [("INPUT0", "INT32", [-1, 16]), ("INPUT1", "INT32", [-1, 16])], "inputs")


@case("infer raw in, raw out", REFLECTION)
def _(channel: grpc.Channel) -> None:
    raw = struct.pack("<4q", 2**63 - 1, -(2**63), 0, 1)
    given = [{"name": "x", "datatype": "INT64", "shape": [1, 4]}]
    answer = ask(channel, "ModelInfer", model_name="echo_int64", id="7", inputs=given, raw_input_contents=[raw])
    same((answer.id, list(answer.raw_output_contents)), ("7", [raw]), "answer")


@case("health check", HEALTH)
def _(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", INFERENCE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        same(answer.status, SERVING, f"status of {service!r}")
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="nowhere"), timeout=20)
    except grpc.RpcError as error:
        return same(error.code(), grpc.StatusCode.NOT_FOUND, "status of an unknown service")
    raise AssertionError("expected NOT_FOUND for an unknown service, got an answer")


@case("health watch", HEALTH)
def _(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service, expected in ((INFERENCE, SERVING), ("nowhere", health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
        same(next(iter(watch)).status, expected, f"status of {service!r}")
        watch.cancel()


if __name__ == "__main__":
    cases.main(dict.fromkeys((REFLECTION, HEALTH), connect))
