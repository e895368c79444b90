"""The gRPC server: inference, whatever else is served, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection

from service.api.grpc.errors import Context, TolerantServer, guarded, tolerant
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc
from service.api.grpc.inference import SERVICE_NAME, InferenceServicer
from service.api.grpc.observing import ObservedCalls
from service.api.observation import Observer
from service.api.repository import ModelRepository
from service.core.errors import NotFound
from service.core.inference import InferenceService

SECOND_REPOSITORY = "inference.model_repository.ModelRepositoryService"

_HEALTH_POLL_S = 1.0

_APART = frozenset({"ModelStreamInfer"})
"""Whose every message is observed, not the call."""

_BOUNDS = (
    # Beyond 1000 calls that wait to be taken up, gRPC cancels any of them at random: one client that opens and resets
    # streams in a row would have the calls of all others cancelled.
    ("grpc.server.max_pending_requests", 16_384),
    ("grpc.server.max_pending_requests_hard_limit", 32_768),
    # Each connection's share of those: a call that is reset counts until it is gone, at about 60 KiB.
    ("grpc.max_concurrent_streams", 256),
    # A client that vanished without a word is found and its connection closed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Servicer:
    """A further service: its generated `add_..._to_server`, the servicer, and its full name for health, reflection."""

    add: Callable[[Any, Any], None]
    servicer: Any
    name: str


def build_server(
    inference: InferenceService,
    repository: ModelRepository,
    *,
    extra_servicers: Sequence[Servicer] = (),
    max_message_bytes: int,
    observer: Observer | None = None,
) -> grpc.aio.Server:
    """A server without a port, to be built and started on the event loop of `inference`.

    Serves `inference.GRPCInferenceService`, `extra_servicers` (whose methods may raise the core's errors),
    `grpc.health.v1.Health` and reflection. Messages over `max_message_bytes` are refused with RESOURCE_EXHAUSTED.
    `observer` is told of all calls but those of health and reflection.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            *_BOUNDS,
        )
    )
    protocol = InferenceServicer(inference, repository, observer)
    servicers = [
        Servicer(inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, protocol, SERVICE_NAME),
        *extra_servicers,
    ]
    names = [servicer.name for servicer in servicers]
    health = HealthServicer(inference, frozenset(("", *names)), poll_s=_HEALTH_POLL_S)
    servicers.append(Servicer(health_pb2_grpc.add_HealthServicer_to_server, health, HEALTH_NAME))
    for each in servicers:
        observed = None
        if observer is not None and each.servicer is not health:
            observed = ObservedCalls(observer, each.name, _APART)
        each.add(guarded(each.servicer, observed), TolerantServer(server))
    _add_second_repository(server, protocol)
    reflection.enable_server_reflection((*names, HEALTH_NAME, reflection.SERVICE_NAME), server)
    return server


def _add_second_repository(server: grpc.aio.Server, protocol: InferenceServicer) -> None:
    """Serve the model repository under the name that MLServer's clients call too; the messages are the same."""
    calls: dict[str, tuple[Any, Any]] = {
        "RepositoryIndex": (protocol.RepositoryIndex, pb.RepositoryIndexRequest),
        "RepositoryModelLoad": (protocol.RepositoryModelLoad, pb.RepositoryModelLoadRequest),
        "RepositoryModelUnload": (protocol.RepositoryModelUnload, pb.RepositoryModelUnloadRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=tolerant(kind.FromString), response_serializer=_serialized
        )
        for name, (call, kind) in calls.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SECOND_REPOSITORY, handlers),))


def _serialized(reply: Any) -> bytes:
    return bytes(reply.SerializeToString())


@final
class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # published without types
    """gRPC's own health protocol: every service is as ready as `inference` is.

    `Watch` looks every `poll_s` seconds and sends changes.
    """

    def __init__(self, inference: InferenceService, names: frozenset[str], *, poll_s: float) -> None:
        self._inference = inference
        self._names = names
        self._poll_s = poll_s

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """SERVING or NOT_SERVING; raises `NotFound` for a service that is not here."""
        if request.service not in self._names:
            raise NotFound(f"health: expected one of {sorted(self._names)}, got {request.service[:200]!r}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes; SERVICE_UNKNOWN for a service that is not here."""
        sent: int | None = None
        while True:
            status = self._status(request.service)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await asyncio.sleep(self._poll_s)

    def _status(self, name: str) -> Any:
        statuses = health_pb2.HealthCheckResponse
        if name not in self._names:
            return statuses.SERVICE_UNKNOWN
        return statuses.SERVING if self._inference.ready() else statuses.NOT_SERVING
