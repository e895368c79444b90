"""What the protocol asks of gRPC beyond plain inference: classification, scheduling, streams, dialects' numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.server import SECOND_REPOSITORY
from tests.service.api.grpc.test_server import MAX_MESSAGE, Server, raw, status_of
from tests.service.core.served import WAIT_S, HeldModel, serve, spec


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is stopped at the end."""
    made = Server()
    await made.start()
    yield made
    await made.stop()


def classified(**value: Any) -> pb.ModelInferRequest:
    """A request for classes of `doubled`, and for `total` as it is."""
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor
    parameters = {"classification": pb.InferParameter(**value)}
    return raw(outputs=[wanted(name="doubled", parameters=parameters), wanted(name="total")])


@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
async def test_classification(server: Server, field: str) -> None:
    """BYTES with their lengths, the highest first; other outputs stay numbers."""
    response = await server.infer(classified(**{field: 2}))
    assert [(output.datatype, list(output.shape)) for output in response.outputs] == [("BYTES", [2, 2]), ("FP64", [2])]
    texts = [b"6.0:2", b"4.0:1", b"12.0:2", b"10.0:1"]
    assert response.raw_output_contents[0] == b"".join(len(text).to_bytes(4, "little") + text for text in texts)


@pytest.mark.parametrize("value", [{"int64_param": 0}, {"int64_param": -1}, {"string_param": "1"}, {}])
async def test_wrong_classification(server: Server, value: dict[str, Any]) -> None:
    """INVALID_ARGUMENT that names the output."""
    code, details = await status_of(server.infer(classified(**value)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "output 'doubled': expected classification" in details


@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
async def test_priority_and_timeout_in_either_field(server: Server, field: str) -> None:
    """While the model is busy, priority 1 is served before priority 3, and a short timeout ends."""
    server.model.gate.clear()
    first = asyncio.create_task(server.infer(raw()))
    assert await asyncio.to_thread(server.model.started.acquire, timeout=WAIT_S)
    answers: list[str] = []

    async def ask(priority: int, rows: int) -> None:
        x = np.full((rows, 3), priority, np.float32)
        parameters = {"priority": pb.InferParameter(**{field: priority})}
        answers.append((await server.infer(raw(x, id=str(priority), parameters=parameters))).id)

    waiting = [asyncio.create_task(ask(priority, 4)) for priority in (3, 1)]
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth < 2:
            await asyncio.sleep(0.001)
    late = raw(parameters={"timeout": pb.InferParameter(**{field: 1000})})
    assert (await status_of(server.infer(late)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    server.model.gate.set()
    await asyncio.gather(first, *waiting)
    assert answers == ["1", "3"]


@pytest.mark.parametrize(
    "sequence", [{"int64_param": 5}, {"uint64_param": 5}, {"string_param": "five"}, {"uint64_param": 0}]
)
async def test_sequence_ids_are_ignored(server: Server, sequence: dict[str, Any]) -> None:
    """No model has a state; start and end need an id all the same."""
    parameters = {"sequence_id": pb.InferParameter(**sequence)}
    assert (await server.infer(raw(parameters=parameters))).outputs
    parameters["sequence_end"] = pb.InferParameter(bool_param=True)
    if sequence == {"uint64_param": 0}:
        code, _ = await status_of(server.infer(raw(parameters=parameters)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    else:
        assert (await server.infer(raw(parameters=parameters))).outputs
    wrong = {"sequence_id": pb.InferParameter(double_param=1.0)}
    assert (await status_of(server.infer(raw(parameters=wrong))))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_every_answer_of_a_stream_is_final(server: Server) -> None:
    """Also that of a failed request; the one reserved key is allowed, and gives no empty answer."""
    asked = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield raw(id="a", parameters=asked)
        yield raw(id="b", model_name="none")

    responses = [response async for response in server.stub.ModelStreamInfer(requests())]
    assert [each.infer_response.id for each in responses] == ["a", "b"]
    assert [bool(each.error_message) for each in responses] == [False, True]
    for each in responses:
        assert each.infer_response.parameters["triton_final_response"].bool_param is True
    assert not (await server.infer(raw(parameters=asked))).parameters


async def test_metadata_leaves_the_disputed_number_empty(server: Server) -> None:
    """Number 6 is of different types in two dialects."""
    assert 6 not in pb.ModelMetadataResponse.DESCRIPTOR.fields_by_number
    response = await server.stub.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
    assert {field.number for field, _ in response.ListFields()} == {1, 2, 3, 4, 5}


async def test_full_queue_is_not_unavailable(server: Server) -> None:
    """Clients repeat UNAVAILABLE at once, which would make an overload worse; they are told when to."""
    server.served.append(serve(HeldModel(spec()), name="full", max_queue_requests=0))
    server.registry.add(server.served[-1])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await server.infer(raw(model_name="full"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the queue is full" in str(refused.value.details())
    trailing = dict(refused.value.trailing_metadata())
    assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("1", "1000")


async def test_message_that_cannot_be_read(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """INVALID_ARGUMENT, also from the second repository service, and no traceback in the log."""
    for method in ("ModelInfer", "ServerLive", "RepositoryIndex"):
        call = server.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        code, details = await status_of(call(b"\xff\xff\xff"))
        assert (code, details.startswith("message: ")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    call = server.channel.unary_unary(f"/{SECOND_REPOSITORY}/RepositoryIndex")
    assert (await status_of(call(b"\xff")))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(MAX_MESSAGE + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_stream_ends_with_a_message_that_cannot_be_read(
    server: Server, message: bytes, code: grpc.StatusCode
) -> None:
    """Though the client would send on, and after what came before was answered."""
    answers: list[bytes] = []
    answered = asyncio.Event()

    async def messages() -> AsyncIterator[bytes]:
        yield raw(id="1").SerializeToString()
        await answered.wait()
        yield message
        await asyncio.Event().wait()

    async def drain() -> None:
        async for answer in server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            messages()
        ):
            answers.append(answer)
            answered.set()

    assert (await status_of(drain()))[0] is code
    assert [pb.ModelStreamInferResponse.FromString(answer).infer_response.id for answer in answers] == ["1"]


@pytest.mark.parametrize("method", ["RepositoryIndex", "RepositoryModelLoad", "ModelInfer"])
async def test_long_message_of_tiny_fields_is_refused_by_every_method(server: Server, method: str) -> None:
    """Each would be an object forty times its size; unknown fields count like known ones."""
    call = server.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    code, details = await status_of(call(b"\x7a\x00" * 40_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 4096 fields" in details


async def test_cancelled_stream_frees_the_queue(server: Server) -> None:
    """All of its requests that wait."""
    server.model.gate.clear()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(5):
            yield raw(np.ones((4, 3), np.float32), id=str(number))
        await asyncio.Event().wait()

    stream = server.stub.ModelStreamInfer(requests())
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth < 4:
            await asyncio.sleep(0.001)
        stream.cancel()
        while server.served[0].queue_depth:
            await asyncio.sleep(0.001)
    server.model.gate.set()
    assert (await server.infer(raw())).outputs


async def test_streams_deadline_holds_for_its_requests(server: Server) -> None:
    """One that waits when it passes leaves the queue."""
    server.model.gate.clear()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for _ in range(2):
            yield raw(np.ones((4, 3), np.float32))
        await asyncio.Event().wait()

    async def drain() -> None:
        async for _ in server.stub.ModelStreamInfer(requests(), timeout=0.2):
            pass

    assert (await status_of(drain()))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(WAIT_S):
        while server.served[0].queue_depth:
            await asyncio.sleep(0.001)


async def test_names_are_given_once(server: Server) -> None:
    """Of inputs and of outputs."""
    twice = raw()
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="total")
    for request, text in ((twice, "each input once"), (raw(outputs=[wanted, wanted]), "each output once")):
        code, details = await status_of(server.infer(request))
        assert (code, text in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


async def test_shared_memory_of_an_output_is_not_offered(server: Server) -> None:
    """As that of an input."""
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="total")
    wanted.parameters["shared_memory_region"].string_param = "r"
    assert (await status_of(server.infer(raw(outputs=[wanted]))))[0] is grpc.StatusCode.UNIMPLEMENTED
