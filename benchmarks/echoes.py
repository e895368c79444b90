"""Servers that send back what they get: the ceilings that `benchmarks/serve.py` holds the service against.

    python benchmarks/echoes.py asgi PORT
    python benchmarks/echoes.py grpc PORT

Each prints `ready` once it listens and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
import uvicorn
import uvloop


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
    if kind == "asgi":
        config = uvicorn.Config(
            echo, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn sets a flag, no event
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await serving
    elif kind == "grpc":
        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(reply)}
        rpc = grpc.aio.server()
        rpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        rpc.add_insecure_port(f"127.0.0.1:{port}")
        await rpc.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        await stop.wait()
        await rpc.stop(1)
    else:
        raise SystemExit(f"expected asgi or grpc, got {kind}")


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2])))
