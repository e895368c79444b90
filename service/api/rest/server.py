"""uvicorn as this service runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn

from service.api.rest.dispatch import App
from service.api.rest.http_protocol import HttpProtocol


class Server(uvicorn.Server):
    """Leaves the process's signals to the program, which ends several things in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def build_server(app: App, *, backlog: int, drain_s: float) -> Server:
    """A server without a socket: one process, no access log; a stop waits `drain_s` for what has been accepted.

    Run it on uvloop, which sets TCP_NODELAY on every connection; asyncio leaves it off on accepted ones.
    """
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=backlog,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    return Server(config)
