"""Starts a gRPC server on a free port."""

from __future__ import annotations

import socket

from service.api.grpc.transport.server import GrpcServer


async def started(server: GrpcServer) -> int:
    """Start `server`; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    return int(listener.getsockname()[1])
