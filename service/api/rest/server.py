"""uvicorn as this service runs it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial

import uvicorn

from service.api.admission import Admission
from service.api.rest.asgi import App
from service.api.rest.fast_lane import FastLane
from service.api.rest.http_protocol import HttpProtocol

_TICKS_PER_LOOK = 5
_LOOK_S = 0.1 * _TICKS_PER_LOOK


class Server(uvicorn.Server):
    """Leaves the process's signals to the program, which ends several things in order.

    Clients that keep a connection waiting for `patience_s` in mid-request are given up.
    """

    def __init__(self, config: uvicorn.Config, patience_s: float) -> None:
        super().__init__(config)
        self._patience_looks = math.ceil(patience_s / _LOOK_S)
        self._keep_alive_looks = math.ceil(config.timeout_keep_alive / _LOOK_S)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % _TICKS_PER_LOOK == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.end_silence(self._patience_looks, self._keep_alive_looks)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def build_server(
    app: App,
    *,
    backlog: int,
    drain_s: float,
    patience_s: float = 60.0,
    keep_alive_s: float = 75.0,
    lane: FastLane | None = None,
    admission: Admission | None = None,
) -> Server:
    """A server without a socket: one process, no access log; a stop waits `drain_s` for what has been accepted.

    `lane` answers what it can in front of `app`, `admission` counts connections. `patience_s` is how long a client may
    be silent in mid-request, or not read its answer; `keep_alive_s` how long between two requests.

    Run it on uvloop, which sets TCP_NODELAY on every connection; asyncio leaves it off on accepted ones.
    """
    config = uvicorn.Config(
        app,
        http=partial(HttpProtocol, lane=lane, admission=admission),  # type: ignore[arg-type]  # uvicorn calls it, and that is all
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=backlog,
        timeout_keep_alive=max(1, round(keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    return Server(config, patience_s)
