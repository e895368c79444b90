"""A real S3-compatible server for the tests, moto's, in a process of its own: `python -m tests.s3_server PORT`.

With a host and a bucket, `s3_server.py 9000 0.0.0.0 axon`, it is what compose's profile `s3` runs.

moto checks a conditional write and then carries it out; two writers at once could both pass. Here requests that change
something take turns, as S3's own conditional writes do. `POST /faults` says how the next requests fail.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_CHANGING = frozenset({"PUT", "POST", "DELETE"})
Environment = dict[str, Any]
Application = Callable[[Environment, Callable[..., Any]], Iterable[bytes]]


class Faults:
    """How requests fail: `{"kind", "count", "method", "path"}`, the last two as parts that must occur.

    Kinds: `error` (503, nothing done), `lost` (done, then the connection breaks), `hang` (no answer for a while),
    `refuse` (the connection breaks, nothing done), `cut` (half of the answer's body).
    """

    def __init__(self) -> None:
        self._left: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def set(self, said: list[dict[str, Any]]) -> None:
        """In the place of those before."""
        with self._lock:
            self._left = said

    def take(self, method: str, path: str) -> str:
        """How this request fails; '' for not at all."""
        with self._lock:
            for fault in self._left:
                if fault["count"] and fault.get("method", "") in method and fault.get("path", "") in path:
                    fault["count"] -= 1
                    return str(fault["kind"])
        return ""


class Server:
    """moto behind turns and faults."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._turn = threading.Lock()
        self._faults = Faults()

    def __call__(self, environment: Environment, start: Callable[..., Any]) -> Iterable[bytes]:
        """A WSGI application."""
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        if path == "/faults":
            self._faults.set(json.loads(body))
            start("204 No Content", [])
            return []
        environment["wsgi.input"] = io.BytesIO(body)
        kind = self._faults.take(method, path)
        if kind == "error":
            start("503 Slow Down", [("Content-Length", "0")])
            return []
        if kind == "refuse":
            return _broken(environment)
        if kind == "hang":
            time.sleep(60.0)
            return _broken(environment)
        if method in _CHANGING:
            with self._turn:
                answer = list(self._application(environment, start))
        else:
            answer = list(self._application(environment, start))
        if kind == "lost":
            return _broken(environment)
        if kind == "cut":
            whole = b"".join(answer)
            return [whole[: len(whole) // 2]]
        return answer


def _broken(environment: Environment) -> Iterable[bytes]:
    environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"


def main(port: int, host: str = "127.0.0.1", bucket: str = "") -> None:
    """Serve until killed, with a bucket to begin with if it is named."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    backend = create_backend_app("s3")
    if bucket:
        backend.test_client().put(f"/{bucket}")
    make_server(host, port, Server(backend), threaded=True, request_handler=_Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
