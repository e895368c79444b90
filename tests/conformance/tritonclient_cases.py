"""tritonclient over HTTP and gRPC, synchronous and asyncio: the same cases, written once."""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator
from typing import Any

import ml_dtypes
import numpy as np
from harness import Cases, NotRun, contains, same
from tritonclient.grpc import service_pb2
from tritonclient_wire import ALL, CONNECT, FORBIDDEN, GRPC, HTTP, INVALID, LATE, NOT_OFFERED, NOT_READY, UNKNOWN, Wire
from values import ALIASED, DTYPES, ECHO, MLP, SIMPLE, close, echo, equal, extremes, features, mlp, movable, non_finite

EXTENSIONS = {
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
}
FLAGS = (False, True)
cases = Cases()
case = cases.case


@case("server is live and ready", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_server_live"), True, "live")
    same(await wire.call("is_server_ready"), True, "ready")


@case("model is ready, or not known", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_model_ready", MLP), True, "ready")
    same(await wire.call("is_model_ready", MLP, "1"), True, "version 1 ready")
    same(await wire.call("is_model_ready", MLP, "prod"), True, "alias ready")
    if wire.is_http:
        same(await wire.call("is_model_ready", "nowhere"), False, "unknown model ready")
    else:
        await wire.refused("nowhere", status=UNKNOWN, call=wire.call("is_model_ready", "nowhere"))


@case("server metadata", *ALL)
async def _(wire: Wire) -> None:
    metadata = await wire.call("get_server_metadata")
    same(bool(metadata["name"] and metadata["version"]), True, "name and version")
    missing = EXTENSIONS - set(metadata["extensions"])
    same(missing, set(), "extensions that are not listed")
    same("generate" in metadata["extensions"], False, "generate is listed")


@case("model metadata", *ALL)
async def _(wire: Wire) -> None:
    for version in ("", "1"):
        metadata = await wire.call("get_model_metadata", SIMPLE, version)
        same(metadata["name"], SIMPLE, "name")
        same(metadata["versions"], ["1"], "versions")
        for side, names in (("inputs", ("INPUT0", "INPUT1")), ("outputs", ("OUTPUT0", "OUTPUT1"))):
            found = [(t["name"], t["datatype"], [int(size) for size in t["shape"]]) for t in metadata[side]]
            same(found, [(name, "INT32", [-1, 16]) for name in names], side)
    for datatype in ECHO:
        metadata = await wire.call("get_model_metadata", echo(datatype))
        same([t["datatype"] for t in (*metadata["inputs"], *metadata["outputs"])], [datatype] * 2, "datatypes")
    await wire.refused("nowhere", status=UNKNOWN, call=wire.call("get_model_metadata", "nowhere"))


@case("model configuration", *ALL)
async def _(wire: Wire) -> None:
    config = await wire.call("get_model_config", MLP)
    config = config if wire.is_http else config["config"]
    same(config["name"], MLP, "name")
    same(config["max_batch_size"], 8, "max_batch_size")
    (given,), (asked,) = config["input"], config["output"]
    same((given["name"], given["data_type"], [int(s) for s in given["dims"]]), ("features", "TYPE_FP32", [8]), "input")
    asked = (asked["name"], asked["data_type"], [int(size) for size in asked["dims"]])
    same(asked, ("probabilities", "TYPE_FP32", [3]), "output")
    same("dynamic_batching" in config, True, "batched")


@case("statistics rise by one per request", *ALL)
async def _(wire: Wire) -> None:
    async def counts() -> dict[str, int]:
        (stats,) = (await wire.call("get_inference_statistics", MLP, "1"))["model_stats"]
        same((stats["name"], stats["version"]), (MLP, "1"), "whose statistics")
        spans = stats["inference_stats"]
        keys = [
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        ]
        same([key for key in keys if key not in spans], [], "missing inference_stats")
        if wire.is_http:
            numbers = [spans[key][part] for key in keys for part in ("count", "ns")]
            same({type(number) for number in numbers}, {int}, "types of durations")
        counted = {key: int(spans[key].get("count", 0)) for key in ("success", "queue", "compute_infer")}
        return counted | {"samples": int(stats["inference_count"]), "batches": int(stats["execution_count"])}

    await wire.infer(MLP, {"features": features(3)})
    before = await counts()
    await wire.infer(MLP, {"features": features(3)})
    after = await counts()
    rise = {key: after[key] - before[key] for key in after}
    same(rise, {"success": 1, "queue": 1, "compute_infer": 1, "samples": 3, "batches": 1}, "rise")
    everything = (await wire.call("get_inference_statistics"))["model_stats"]
    same({MLP, SIMPLE} <= {each["name"] for each in everything}, True, "all models' statistics")


@case("repository index", *ALL)
async def _(wire: Wire) -> None:
    index = await wire.call("get_model_repository_index")
    index = index if wire.is_http else index["models"]
    found = {(each["name"], each.get("version"), each["state"]) for each in index}
    expected = {(MLP, "1", "READY"), (ALIASED, "1", "READY"), (ALIASED, "2", "READY")}
    same(expected - found, set(), "entries that are missing")


@case("unload, load", *ALL)
async def _(wire: Wire) -> None:
    model, x = movable(wire.name), np.ones((1, 4), np.float32)
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    await wire.call("unload_model", model)
    same(await wire.call("is_model_ready", model), False, "ready when unloaded")
    await wire.refused(model, status=NOT_READY, call=wire.infer(model, {"x": x}))
    index = await wire.call("get_model_repository_index")
    states = [each["state"] for each in (index if wire.is_http else index["models"]) if each["name"] == model]
    same(states, ["UNAVAILABLE"], "states in the index when unloaded")
    await wire.call("load_model", model)
    same(await wire.call("is_model_ready", model), True, "ready when loaded")
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    await wire.refused("nowhere", status=UNKNOWN, call=wire.call("load_model", "nowhere"))


for _in in FLAGS:
    for _out in FLAGS:

        @case(f"infer {('JSON', 'binary')[_in]} in, {('JSON', 'binary')[_out]} out", *HTTP)
        async def _(wire: Wire, given: bool = _in, asked: bool = _out) -> None:
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


async def typed(wire: Wire, model: str, datatype: str, field: str, values: list[Any]) -> np.ndarray:
    """`values` in the typed field, which tritonclient itself never fills, through the client's own stub."""
    request = service_pb2.ModelInferRequest(model_name=model)
    given = request.inputs.add(name="x", datatype=datatype, shape=[len(values) // 4, 4])
    getattr(given.contents, field).extend(values)
    answer = wire.client._client_stub.ModelInfer(request)
    answer = await answer if wire.is_aio else answer
    result = wire.module.InferResult(answer).as_numpy("y")
    if result is None:
        raise AssertionError("expected an output y")
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
        for given in FLAGS if wire.is_http else (True,):
            for asked in FLAGS if wire.is_http else (True,):
                outputs = [wire.output("y", binary=asked)]
                equal((await wire.infer(echo(datatype), {"x": x}, binary=given, outputs=outputs)).as_numpy("y"), x)


@case("datatype BF16", *ALL)
async def _(wire: Wire) -> None:
    x = np.array([[0.1, -1 / 3, 3e38, 1e-38]]).astype(ml_dtypes.bfloat16)
    for asked in FLAGS if wire.is_http else (True,):
        answer = await wire.infer(echo("BF16"), {"x": x}, outputs=[wire.output("y", binary=asked)])
        equal(answer.as_numpy("y"), x)


@case("datatype BYTES", *ALL)
async def _(wire: Wire) -> None:
    raise NotRun("models of this server compute with numbers; BYTES leave it as classification only")


@case("INT64 2**63 - 1, UINT64 2**64 - 1", *ALL)
async def _(wire: Wire) -> None:
    for datatype, limit in (("INT64", 2**63 - 1), ("INT64", -(2**63)), ("UINT64", 2**64 - 1)):
        x = np.array([[limit] * 4], DTYPES[datatype])
        for given in FLAGS if wire.is_http else (True,):
            for asked in FLAGS if wire.is_http else (True,):
                outputs = [wire.output("y", binary=asked)]
                answer = (await wire.infer(echo(datatype), {"x": x}, binary=given, outputs=outputs)).as_numpy("y")
                same([int(value) for value in answer.ravel()], [limit] * 4, f"{datatype} in {given}, out {asked}")
        if not wire.is_http:
            equal(await typed(wire, echo(datatype), datatype, TYPED[datatype], [limit] * 4), x)


@case("NaN and infinities", *ALL)
async def _(wire: Wire) -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        x = non_finite(DTYPES[datatype])
        for given in FLAGS if wire.is_http else (True,):
            for asked in FLAGS if wire.is_http else (True,):
                outputs = [wire.output("y", binary=asked)]
                equal((await wire.infer(echo(datatype), {"x": x}, binary=given, outputs=outputs)).as_numpy("y"), x)


@case("tensors without elements", *ALL)
async def _(wire: Wire) -> None:
    for datatype in ("FP32", "INT64", "BOOL"):
        x = np.empty((0, 4), DTYPES[datatype])
        for given in FLAGS if wire.is_http else (True,):
            for asked in FLAGS if wire.is_http else (True,):
                outputs = [wire.output("y", binary=asked)]
                equal((await wire.infer(echo(datatype), {"x": x}, binary=given, outputs=outputs)).as_numpy("y"), x)


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
            for binary in FLAGS:
                outputs = [wire.output("probabilities", binary=binary)]
                result = await wire.infer(MLP, {"features": x}, binary=binary, outputs=outputs, **options)
                close(result.as_numpy("probabilities"), mlp(x))
        refused = wire.infer("nowhere", {"features": x}, **one, **other)
        return await wire.refused("nowhere", status=UNKNOWN, call=refused)


@case("classification", *ALL)
async def _(wire: Wire) -> None:
    x = np.array([[0.25, 4.0, -1.0, 2.5], [3.0, 0.5, 1.0, 0.0]], np.float32)
    for asked in FLAGS if wire.is_http else (True,):
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


@case("logging is read, and written by no one", *ALL)
async def _(wire: Wire) -> None:
    settings = await wire.call("get_log_settings")
    settings = settings if wire.is_http else settings["settings"]
    keys = {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    same(keys - set(settings), set(), "settings that are missing")
    await wire.refused(status=FORBIDDEN, call=wire.call("update_log_settings", {"log_verbose_level": 1}))


@case("shared memory is off", *ALL)
async def _(wire: Wire) -> None:
    for kind in ("system", "cuda"):
        status = await wire.call(f"get_{kind}_shared_memory_status")
        same(status if wire.is_http else status.get("regions", {}), [] if wire.is_http else {}, f"{kind} regions")
        await wire.call(f"unregister_{kind}_shared_memory")
    register = wire.call("register_system_shared_memory", "region", "/region", 64)
    await wire.refused("shared memory", status=NOT_OFFERED, call=register)
    register = wire.call("register_cuda_shared_memory", "region", b"aGFuZGxl", 0, 64)
    await wire.refused("shared memory", status=NOT_OFFERED, call=register)


if __name__ == "__main__":
    cases.main(CONNECT)
