"""Servers that send back what they get: the ceilings that `benchmarks/serve.py` holds the service against.

    python benchmarks/echoes.py asgi PORT
    python benchmarks/echoes.py grpc PORT

Each prints `ready` once it listens and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from service.api.rest.server import build_server  # noqa: E402


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI application can do with a body."""
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def reply(request: bytes, context: Any) -> bytes:
    """A unary method without protobuf."""
    return request


async def run(kind: str, port: int) -> None:
    """Serve on `port` until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if kind == "asgi":
        http = build_server(echo, backlog=2048, drain_s=1)
        serving = asyncio.create_task(http.serve(sockets=[socket.create_server(("127.0.0.1", port), backlog=2048)]))
        print("ready", flush=True)
        await stop.wait()
        http.should_exit = True
        await serving
    elif kind == "grpc":
        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(reply)}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        print("ready", flush=True)
        await stop.wait()
        await server.stop(1)
    else:
        raise SystemExit(f"expected asgi or grpc, got {kind}")


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2])))
