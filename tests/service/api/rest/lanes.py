"""One connection without a socket: `HttpProtocol` over a transport that remembers, with the fast lane or without."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from service.api.admission import Admission
from service.api.observation import Observer
from service.api.rest.asgi import App
from service.api.rest.dispatch import Dispatcher
from service.api.rest.fast_lane import FastLane
from service.api.rest.http_protocol import HttpProtocol
from service.core.inference import InferenceService
from service.core.serving import ServedModel
from service.core.types import ModelSpec, TensorSpec
from tests.hostile.server import FLOATS, MODEL, WIDTH
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve
from tests.service.waiting import wait_until

MAX_BODY = 2**20


class Remembered(asyncio.Transport):
    """What was written, and what the server did to the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.closed = self.paused = False
        self.unread = 0

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data
        self.writes += 1

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def model(name: str, datatype: str, *, held: bool = False, **config: int) -> tuple[HeldModel, ServedModel]:
    """`total` = x + x over rows of `WIDTH`, as the models of the hostile tests."""
    shape = (-1, WIDTH)
    spec = ModelSpec((TensorSpec("x", datatype, shape),), (TensorSpec("total", datatype, shape),), 4, (1, 2, 4))

    def total(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            return {"total": inputs["x"] + inputs["x"]}

    made = HeldModel(spec, total, held=held)
    return made, serve(made, name=name, **config)


class Service:
    """The models and what stands in front of them; `long_way` counts the requests that came to ASGI."""

    def __init__(self, *, fast: bool, held: bool = False, observer: Observer | None = None, **config: int) -> None:
        self.model, served = model(MODEL, "INT64", held=held, **config)
        self.served = [served, model(FLOATS, "FP32")[1]]
        inference = InferenceService(FakeRegistry(*self.served, loading=("slow",)), "axon", "1", RealClock())
        self.admission = Admission(max_connections=10, max_bodies_bytes=4 * MAX_BODY)
        self.lane = None
        if fast:
            self.lane = FastLane(
                inference, RealClock(), max_body_bytes=MAX_BODY, observer=observer, admission=self.admission
            )
        dispatcher = Dispatcher(
            _nowhere, inference, max_body_bytes=MAX_BODY, observer=observer, admission=self.admission
        )
        self.long_way = 0

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            self.long_way += 1
            await dispatcher(scope, receive, send)

        self.app: App = counted
        self.state = ServerState()

    def connect(self) -> Connection:
        """A client's connection."""
        return Connection(self)

    async def close(self) -> None:
        """End the threads."""
        self.model.gate.set()
        for served in self.served:
            assert await served.close(WAIT_S)


class Connection:
    """The server's side of a connection."""

    def __init__(self, service: Service) -> None:
        self._service = service
        config = uvicorn.Config(service.app, ws="none", lifespan="off", log_config=None, access_log=False)
        self.transport = Remembered()
        self.protocol = HttpProtocol(
            config, service.state, {}, asyncio.get_running_loop(), lane=service.lane, admission=service.admission
        )
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        """What the client sends, unless the connection is closed."""
        if not self.transport.closed:
            self.protocol.data_received(data)

    def leave(self) -> None:
        """The client goes away."""
        self.protocol.connection_lost(None)

    async def settle(self) -> None:
        """Return when nothing goes on that would write."""
        async with asyncio.timeout(WAIT_S):
            quiet, before = 0, -1
            while quiet < 20:
                await asyncio.sleep(0)
                still = not self._goes_on() and len(self.transport.written) == before
                quiet, before = (quiet + 1 if still else 0), len(self.transport.written)
                if self._goes_on():
                    await asyncio.sleep(0.001)

    def _goes_on(self) -> bool:
        if any(served.in_flight for served in self._service.served):
            return True
        cycle = self.protocol.cycle
        waits = cycle is not None and cycle.more_body and not cycle.response_complete
        return bool(self._service.state.tasks) and not waits

    async def answers(self) -> bytes:
        """All that was written, once it settles."""
        await self.settle()
        return bytes(self.transport.written)

    async def answered(self) -> bytes:
        """What was written by the time that anything was."""
        return bytes(await wait_until(lambda: self.transport.written))


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
