"""Starts a gRPC server on a free port."""

from __future__ import annotations

import socket
import ssl

from service.api.grpc.transport.server import GrpcServer


async def started(server: GrpcServer, tls: ssl.SSLContext | None = None) -> int:
    """Start `server`; returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener, tls)
    return int(listener.getsockname()[1])
