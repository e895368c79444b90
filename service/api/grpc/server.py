"""The gRPC server: inference, whatever else is served, health and reflection."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from service.api.admission import Admission
from service.api.grpc.errors import call_status
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc
from service.api.grpc.inference import InferenceServicer
from service.api.grpc.inference_calls import SERVICE_NAME, InferenceCalls
from service.api.grpc.message_bounds import BoundedServer
from service.api.grpc.observing import observe
from service.api.grpc.transport.calls import Context
from service.api.grpc.transport.limits import TransportLimits
from service.api.grpc.transport.server import GrpcServer
from service.api.observation import Observer
from service.api.repository import ModelRepository
from service.core.errors import NotFound, NotReady
from service.core.inference import InferenceService

SECOND_REPOSITORY = "inference.model_repository.ModelRepositoryService"

_HEALTH_POLL_S = 1.0

_LEAST_ROOM_BYTES = 2**24
_UNREAD_MESSAGES = 4


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
    admission: Admission | None = None,
    patience_s: float = 60.0,
    observer: Observer | None = None,
) -> GrpcServer:
    """A server without a socket, to be started on the event loop of `inference`.

    Serves `inference.GRPCInferenceService`, `extra_servicers` (whose methods may raise the core's errors),
    `grpc.health.v1.Health` and reflection. Messages over `max_message_bytes` are refused with RESOURCE_EXHAUSTED.
    `admission` bounds what all clients hold together (None: nothing does), `patience_s` is how long one may leave a
    message unfinished or an answer unread. `observer` is told of all calls but those of health and reflection.
    """
    room = max(_LEAST_ROOM_BYTES, 2 * max_message_bytes)
    limits = TransportLimits(max_message_bytes, room, _UNREAD_MESSAGES * room, patience_s)
    unbounded = Admission(max_connections=sys.maxsize, max_bodies_bytes=sys.maxsize)
    server = GrpcServer(limits, admission or unbounded, call_status)
    InferenceCalls(inference, observer).add_to(server)
    protocol = InferenceServicer(inference, repository)
    servicers = [
        Servicer(inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, protocol, SERVICE_NAME),
        *extra_servicers,
    ]
    names = [servicer.name for servicer in servicers]
    health = HealthServicer(inference, frozenset(("", *names)), poll_s=_HEALTH_POLL_S, stopping=server.stopping)
    servicers.append(Servicer(health_pb2_grpc.add_HealthServicer_to_server, health, HEALTH_NAME))
    bounded = BoundedServer(server)
    for each in servicers:
        if observer is not None and each.servicer is not health:
            observe(each.servicer, each.name, observer)
        each.add(each.servicer, bounded)
    _add_second_repository(bounded, protocol)
    described = reflection.aio.ReflectionServicer((*names, HEALTH_NAME, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, bounded)
    return server


def _add_second_repository(server: BoundedServer, protocol: InferenceServicer) -> None:
    """Serve the model repository under the name that MLServer's clients call too; the messages are the same."""
    calls: dict[str, tuple[Any, Any]] = {
        "RepositoryIndex": (protocol.RepositoryIndex, pb.RepositoryIndexRequest),
        "RepositoryModelLoad": (protocol.RepositoryModelLoad, pb.RepositoryModelLoadRequest),
        "RepositoryModelUnload": (protocol.RepositoryModelUnload, pb.RepositoryModelUnloadRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=kind.FromString, response_serializer=_serialized
        )
        for name, (call, kind) in calls.items()
    }
    server.add_registered_method_handlers(SECOND_REPOSITORY, handlers)


def _serialized(reply: Any) -> bytes:
    return bytes(reply.SerializeToString())


@final
class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # published without types
    """gRPC's own health protocol: every service is as ready as `inference` is.

    `Watch` looks every `poll_s` seconds and sends changes, until the server is `stopping`: it would wait for it.
    """

    def __init__(
        self, inference: InferenceService, names: frozenset[str], *, poll_s: float, stopping: Callable[[], bool]
    ) -> None:
        self._inference = inference
        self._names = names
        self._poll_s = poll_s
        self._stopping = stopping

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
        while not self._stopping():
            status = self._status(request.service)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await asyncio.sleep(self._poll_s)
        raise NotReady("health: the server stops")

    def _status(self, name: str) -> Any:
        statuses = health_pb2.HealthCheckResponse
        if name not in self._names:
            return statuses.SERVICE_UNKNOWN
        return statuses.SERVING if self._inference.ready() else statuses.NOT_SERVING
