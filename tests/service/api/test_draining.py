"""A server that stops: what it has begun is answered on both wires and in both lanes, within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.server import build_server as build_grpc
from service.api.repository import ModelRepository
from service.api.rest.dispatch import Dispatcher
from service.api.rest.fast_lane import FastLane
from service.api.rest.server import build_server as build_http
from service.core.inference import InferenceService
from service.core.limits import Limits
from tests.service.api.grpc.listening import started
from tests.service.api.rest.test_live_server import answered, content, nowhere, post, reply
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec
from tests.service.waiting import wait_until


class Wires:
    """Both wires over one model that is held."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s
        self.model = HeldModel(spec(max_batch_size=8), held=True)
        self.served = serve(self.model)
        inference = InferenceService(FakeRegistry(self.served), "axon", "1", RealClock())
        lane = FastLane(inference, RealClock(), max_body_bytes=10_000)
        dispatcher = Dispatcher(nowhere, inference, max_body_bytes=10_000)
        self.http = build_http(dispatcher, backlog=16, drain_s=drain_s, lane=lane)
        repository: Any = ModelRepository(None, Limits())  # type: ignore[arg-type]  # not asked
        self.grpc = build_grpc(inference, repository, max_message_bytes=2**20)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.http_port = self.listener.getsockname()[1]
        self.serving = asyncio.create_task(self.http.serve(sockets=[self.listener]))

    async def ask(self, number: float, *, chunked: bool) -> tuple[int, float | None]:
        """Over HTTP by the fast lane or, `chunked`, the long way: the status and the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        body = content(number)
        try:
            if chunked:
                writer.write(post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked"))
            else:
                writer.write(post(body))
            status, text = await reply(reader)
            assert await reader.read() == b"", "the connection is closed behind the answer"
            return status, answered(text) if status == 200 else None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """As the API does."""
        self.http.should_exit = True
        await self.grpc.stop(self.drain_s)
        await self.serving


@asynccontextmanager
async def wires(drain_s: float) -> AsyncIterator[tuple[Wires, pb_grpc.GRPCInferenceServiceStub]]:
    """Both, with a client's gRPC stub."""
    made = Wires(drain_s)
    port = await started(made.grpc)
    await wait_until(lambda: made.http.started)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield made, pb_grpc.GRPCInferenceServiceStub(channel)
    made.model.gate.set()
    assert await made.served.close(WAIT_S)


def message(number: float) -> pb.ModelInferRequest:
    """A request over gRPC."""
    request = pb.ModelInferRequest(model_name="fake")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    request.raw_input_contents.append(np.full((1, 3), number, np.float32).tobytes())
    return request


async def test_what_has_begun_is_answered_and_nothing_new_is_taken():
    """On both wires and in both lanes; then the connections are closed, and nobody listens."""
    async with wires(WAIT_S) as (made, stub):
        asked = [asyncio.create_task(made.ask(number, chunked=chunked)) for number, chunked in ((1, False), (2, True))]
        call = stub.ModelInfer(message(3))
        await wait_until(lambda: made.served.in_flight == 3)
        stopping = asyncio.create_task(made.stop())
        await wait_until(lambda: not made.http.servers or not made.http.servers[0].is_serving())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(message(4), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        made.model.gate.set()
        assert await asyncio.gather(*asked) == [(200, 2.0), (200, 4.0)]
        answer = await call
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [6, 6, 6]
        await asyncio.wait_for(stopping, WAIT_S)


async def test_what_does_not_end_in_time_is_given_up():
    """A model that hangs does not keep the server; its callers are told or cut off."""
    async with wires(1) as (made, stub):
        asked = [asyncio.create_task(made.ask(number, chunked=chunked)) for number, chunked in ((1, False), (2, True))]
        call = stub.ModelInfer(message(3))
        await wait_until(lambda: made.served.in_flight == 3)
        await asyncio.wait_for(made.stop(), WAIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call
        assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await wait_until(lambda: made.served.queue_depth == 0)
