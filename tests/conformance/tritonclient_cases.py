"""tritonclient over HTTP and gRPC, synchronous and asyncio: the same cases, written once."""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator
from typing import Any

import ml_dtypes
import numpy as np
from harness import contains, same
from tritonclient.grpc import service_pb2
from tritonclient_management import cases
from tritonclient_wire import ALL, CONNECT, FORMS, GRPC, HTTP, INVALID, LATE, UNKNOWN, Wire
from values import (
    ALIASED,
    DTYPES,
    MLP,
    SENTENCES,
    SIMPLE,
    TEXTS,
    close,
    echo,
    equal,
    extremes,
    features,
    mlp,
    non_finite,
    read_text,
    texts_of,
)

case = cases.case


async def echoes(wire: Wire, datatype: str, x: np.ndarray, *, given_forms: tuple[bool, ...] | None = None) -> None:
    """Fail unless `x` comes back bit for bit, in every form in and out (or in `given_forms` in)."""
    for given in given_forms or wire.forms:
        for asked in wire.forms:
            outputs = [wire.output("y", binary=asked)]
            found = (await wire.infer(echo(datatype), {"x": x}, binary=given, outputs=outputs)).as_numpy("y")
            try:
                equal(found, x)
            except AssertionError as error:
                raise AssertionError(f"{datatype}, binary in {given}, binary out {asked}: {error}") from error


for _given, _in in FORMS.items():
    for _asked, _out in FORMS.items():

        @case(f"infer {_in} in, {_out} out", *HTTP)
        async def _(wire: Wire, given: bool = _given, asked: bool = _asked) -> None:
            x = features()
            outputs = [wire.output("probabilities", binary=asked)]
            result = await wire.infer(MLP, {"features": x}, binary=given, outputs=outputs, request_id="a 1")
            close(result.as_numpy("probabilities"), mlp(x))
            reply = result.get_response()
            same((reply["model_name"], reply["model_version"], reply["id"]), (MLP, "1", "a 1"), "whose answer")
            parameters = reply["outputs"][0].get("parameters")
            same(parameters, {"binary_data_size": 36} if asked else None, "parameters of the output")


@case("infer raw in, raw out", *GRPC)
async def _(wire: Wire) -> None:
    x = features()
    result = await wire.infer(MLP, {"features": x}, request_id="a 1")
    close(result.as_numpy("probabilities"), mlp(x))
    reply = result.get_response()
    same((reply.model_name, reply.model_version, reply.id), (MLP, "1", "a 1"), "whose answer")
    same(len(reply.raw_output_contents), 1, "raw outputs")


async def typed(
    wire: Wire,
    model: str,
    datatype: str,
    field: str,
    values: list[Any],
    *,
    shape: list[int] | None = None,
    output: str = "y",
) -> np.ndarray:
    """`values` in the typed field, which tritonclient itself never fills, through the client's own stub."""
    request = service_pb2.ModelInferRequest(model_name=model)
    given = request.inputs.add(name="x", datatype=datatype, shape=shape or [len(values) // 4, 4])
    getattr(given.contents, field).extend(values)
    answer = wire.client._client_stub.ModelInfer(request)
    answer = await answer if wire.is_aio else answer
    result = wire.module.InferResult(answer).as_numpy(output)
    if result is None:
        raise AssertionError(f"expected an output {output}")
    return result


TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@case("infer typed in, raw out", *GRPC)
async def _(wire: Wire) -> None:
    for datatype, field in TYPED.items():
        x = extremes(datatype)
        equal(await typed(wire, echo(datatype), datatype, field, x.ravel().tolist()), x)


for _datatype in DTYPES:

    @case(f"datatype {_datatype}", *ALL)
    async def _(wire: Wire, datatype: str = _datatype) -> None:
        x = extremes(datatype)
        await echoes(wire, datatype, x)


@case("datatype BF16", *ALL)
async def _(wire: Wire) -> None:
    x = np.array([[0.1, -1 / 3, 3e38, 1e-38]]).astype(ml_dtypes.bfloat16)
    await echoes(wire, "BF16", x, given_forms=(True,))  # the client sends it as bytes only


@case("datatype BYTES", *ALL)
async def _(wire: Wire) -> None:
    x = texts_of(*(text.encode() for text in SENTENCES))
    expected = [[read_text(text)] for text in SENTENCES]
    for given in wire.forms:
        for form in wire.forms:
            outputs = [wire.output("y_labels", binary=form)]
            found = (await wire.infer(TEXTS, {"x": x}, binary=given, outputs=outputs)).as_numpy("y_labels")
            found = [[each.encode() if isinstance(each, str) else bytes(each) for each in row] for row in found]
            same(found, expected, f"labels, binary in {given}, binary out {form}")
    refused = wire.infer(TEXTS, {"x": texts_of(b"a", b"a\xff\0")})
    await wire.refused("expected UTF-8 in row 1", "byte 1", status=INVALID, call=refused)
    if not wire.is_http:
        found = await typed(wire, TEXTS, "BYTES", "bytes_contents", x.tolist(), shape=[len(x)], output="y_labels")
        same(found.tolist(), expected, "labels, typed in")


@case("INT64 2**63 - 1, UINT64 2**64 - 1", *ALL)
async def _(wire: Wire) -> None:
    for datatype, limit in (("INT64", 2**63 - 1), ("INT64", -(2**63)), ("UINT64", 2**64 - 1)):
        x = np.array([[limit] * 4], DTYPES[datatype])
        await echoes(wire, datatype, x)
        if not wire.is_http:
            equal(await typed(wire, echo(datatype), datatype, TYPED[datatype], [limit] * 4), x)


@case("NaN and infinities", *ALL)
async def _(wire: Wire) -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        x = non_finite(DTYPES[datatype])
        await echoes(wire, datatype, x)


@case("tensors without elements", *ALL)
async def _(wire: Wire) -> None:
    for datatype in ("FP32", "INT64", "BOOL"):
        x = np.empty((0, 4), DTYPES[datatype])
        await echoes(wire, datatype, x)


@case("several inputs, outputs in the order asked for", *ALL)
async def _(wire: Wire) -> None:
    a = np.arange(16, dtype=np.int32).reshape(1, 16)
    b = np.full((1, 16), 1, np.int32)
    given = {"INPUT1": b, "INPUT0": a}
    result = await wire.infer(SIMPLE, given)
    equal(result.as_numpy("OUTPUT0"), a + b)
    equal(result.as_numpy("OUTPUT1"), a - b)
    for names in (["OUTPUT1", "OUTPUT0"], ["OUTPUT1"]):
        result = await wire.infer(SIMPLE, given, outputs=[wire.output(name) for name in names])
        reply = result.get_response()
        outputs = [o["name"] for o in reply["outputs"]] if wire.is_http else [o.name for o in reply.outputs]
        same(outputs, names, "outputs")
        equal(result.as_numpy("OUTPUT1"), a - b)
    same(result.as_numpy("OUTPUT0"), None, "an output that was not asked for")


for _codec in ("gzip", "deflate"):

    @case(f"{_codec} both ways", *ALL)
    async def _(wire: Wire, codec: str = _codec) -> None:
        x = features(8)
        if not wire.is_http:
            result = await wire.infer(MLP, {"features": x}, compression_algorithm=codec)
            return close(result.as_numpy("probabilities"), mlp(x))
        one, other = {"request_compression_algorithm": codec}, {"response_compression_algorithm": codec}
        for options in (one, other, one | other):
            for binary in FORMS:
                outputs = [wire.output("probabilities", binary=binary)]
                result = await wire.infer(MLP, {"features": x}, binary=binary, outputs=outputs, **options)
                close(result.as_numpy("probabilities"), mlp(x))
        refused = wire.infer("nowhere", {"features": x}, **one, **other)
        return await wire.refused("nowhere", status=UNKNOWN, call=refused)


@case("classification", *ALL)
async def _(wire: Wire) -> None:
    x = np.array([[0.25, 4.0, -1.0, 2.5], [3.0, 0.5, 1.0, 0.0]], np.float32)
    for asked in wire.forms:
        outputs = [wire.output("y", binary=asked, class_count=2)]
        found = (await wire.infer(echo("FP32"), {"x": x}, outputs=outputs)).as_numpy("y")
        same(found.shape, (2, 2), "shape")
        words = [each.decode() if isinstance(each, bytes) else each for each in found.ravel()]
        pairs = [(float(word.split(":")[0]), int(word.split(":")[1])) for word in words]
        same(pairs, [(4.0, 1), (2.5, 3), (3.0, 0), (1.0, 2)], "classes")
        outputs = [wire.output("y", binary=asked, class_count=9)]
        same((await wire.infer(echo("FP32"), {"x": x}, outputs=outputs)).as_numpy("y").shape, (2, 4), "all classes")


@case("errors tell what was expected", *ALL)
async def _(wire: Wire) -> None:
    x = features()
    await wire.refused("nowhere", status=UNKNOWN, call=wire.infer("nowhere", {"x": x}))
    await wire.refused(MLP, "7", status=UNKNOWN, call=wire.infer(MLP, {"features": x}, model_version="7"))
    wrong = {"a shape": x[:, :5], "a rank": x[0], "rows": features(9), "a datatype": x.astype(np.int32)}
    for what, array in wrong.items():
        try:
            await wire.refused(MLP, "expected", status=INVALID, call=wire.infer(MLP, {"features": array}))
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error
    await wire.refused("features", "colour", status=INVALID, call=wire.infer(MLP, {"colour": x}))
    outputs = [wire.output("colour")]
    await wire.refused("colour", status=INVALID, call=wire.infer(MLP, {"features": x}, outputs=outputs))
    await wire.refused("INPUT1", status=INVALID, call=wire.infer(SIMPLE, {"INPUT0": np.ones((1, 16), np.int32)}))


@case("no version: prod; the answer has the number", *ALL)
async def _(wire: Wire) -> None:
    x = np.ones((1, 4), np.float32)
    for version, expected in (("", "1"), ("prod", "1"), ("2", "2")):
        reply = (await wire.infer(ALIASED, {"x": x}, model_version=version)).get_response()
        same(reply["model_version"] if wire.is_http else reply.model_version, expected, f"version for {version!r}")


@case("priority, timeout, own parameters, sequence", *ALL)
async def _(wire: Wire) -> None:
    x = features()
    parameters = {"team": "search", "weight": 3, "dry": True}
    for options in (
        {"priority": 1, "timeout": 20_000_000},
        {"priority": 2},
        {"parameters": parameters},
        {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
    ):
        result = await wire.infer(MLP, {"features": x}, **options)
        close(result.as_numpy("probabilities"), mlp(x))


@case("a timeout that has passed", *ALL)
async def _(wire: Wire) -> None:
    await wire.refused(status=LATE, call=wire.infer(MLP, {"features": features()}, timeout=1))


@case("the call's own deadline", *GRPC)
async def _(wire: Wire) -> None:
    result = await wire.infer(MLP, {"features": features()}, client_timeout=20.0)
    close(result.as_numpy("probabilities"), mlp(features()))


@case("calls at the same time", *ALL)
async def _(wire: Wire) -> None:
    arrays = [np.full((1, 4), number, np.float32) for number in range(32)]
    if wire.is_aio:
        results = await asyncio.gather(*(wire.infer(echo("FP32"), {"x": x}) for x in arrays))
    elif wire.is_http:
        waiting = [wire.client.async_infer(echo("FP32"), [wire.tensor("x", x)]) for x in arrays]
        results = [each.get_result() for each in waiting]
    else:
        done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        for number, x in enumerate(arrays):
            told = functools.partial(lambda number, result, error: done.put((number, result, error)), number)
            wire.client.async_infer(echo("FP32"), [wire.tensor("x", x)], told)
        answers = sorted((done.get(timeout=30) for _ in arrays), key=lambda each: each[0])
        same([error for _, _, error in answers if error is not None], [], "errors")
        results = [result for _, result, _ in answers]
    for x, result in zip(arrays, results, strict=True):
        equal(result.as_numpy("y"), x)


async def stream(wire: Wire, requests: list[dict[str, Any]], headers: dict[str, str] | None = None) -> list[Any]:
    """Send `requests` over one stream; returns a `(result, error)` per answer, in their order."""
    if wire.is_aio:

        async def each() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield dict(request)

        return [answer async for answer in wire.client.stream_infer(each(), headers=headers)]
    answers: queue.Queue[Any] = queue.Queue()
    wire.client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    try:
        for request in requests:
            wire.client.async_stream_infer(**request)
        return [answers.get(timeout=30) for _ in requests]
    finally:
        wire.client.stop_stream()


def asked(wire: Wire, number: int, width: int = 4, **options: Any) -> dict[str, Any]:
    """A request of a stream whose answer, and id, is `number`."""
    tensor = wire.tensor("x", np.full((1, width), number, np.float32))
    return {"model_name": echo("FP32"), "inputs": [tensor], "request_id": str(number), **options}


@case("stream", *GRPC)
async def _(wire: Wire) -> None:
    answers = await stream(wire, [asked(wire, number) for number in range(20)])
    same([error for _, error in answers if error is not None], [], "errors")
    same(sorted(int(result.get_response().id) for result, _ in answers), list(range(20)), "ids")
    for result, _ in answers:
        equal(result.as_numpy("y"), np.full((1, 4), int(result.get_response().id), np.float32))


@case("stream goes on after a failed request", *GRPC)
async def _(wire: Wire) -> None:
    answers = await stream(wire, [asked(wire, 0), asked(wire, 1, width=5), asked(wire, 2)])
    texts = [error.message() for _, error in answers if error is not None]
    same(len(texts), 1, "errors")
    contains(texts[0], "expected shape")
    same(sorted(result.get_response().id for result, error in answers if error is None), ["0", "2"], "answered")


@case("stream ends with a status when asked to", *GRPC)
async def _(wire: Wire) -> None:
    requests = [asked(wire, 1, width=5)]
    if wire.is_aio:
        try:
            await stream(wire, requests, {"triton_grpc_error": "true"})
        except Exception as error:
            return contains(f"{error!r}", "INVALID_ARGUMENT", "expected shape")
        raise AssertionError("expected the stream to end with an error")
    ((_, error),) = await stream(wire, requests, {"triton_grpc_error": "true"})
    same(error.status(), "StatusCode.INVALID_ARGUMENT", "status")
    return contains(error.message(), "expected shape")


@case("stream with empty final responses allowed", "tritonclient grpc")
async def _(wire: Wire) -> None:
    ((result, error),) = await stream(wire, [asked(wire, 3, enable_empty_final_response=True)])
    same(error, None, "error")
    equal(result.as_numpy("y"), np.full((1, 4), 3, np.float32))
    same(result.get_response().parameters["triton_final_response"].bool_param, True, "triton_final_response")


if __name__ == "__main__":
    cases.main(CONNECT)
