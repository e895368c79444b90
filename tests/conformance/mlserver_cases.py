"""MLServer: its command `mlserver infer`, and its dialect of the protocol's messages."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from harness import Cases, NotRun, Server, contains, same
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc import dataplane_pb2_grpc as pb_grpc
from values import DTYPES, MLP, close, echo, equal, extremes, features, mlp, movable

INFER, GRPC = "mlserver infer", "mlserver grpc"
COMMAND = Path(sys.executable).with_name("mlserver")
RUN_S = 50
FORMS = {"JSON in, binary out": (), "binary in, binary out": ("--binary-data",)}
cases = Cases()
case = cases.case


@asynccontextmanager
async def connect_command(server: Server) -> AsyncIterator[Server]:
    """No connection: every case is a process."""
    yield server


@asynccontextmanager
async def connect_grpc(server: Server) -> AsyncIterator[pb_grpc.GRPCInferenceServiceStub]:
    """A stub of MLServer's generated code, on a synchronous channel."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def infer(server: Server, model: str, requests: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """Run the command on a file of `requests`, one per line; returns the answers, sorted as the requests."""
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder) / "requests.jsonl", Path(folder) / "answers.jsonl"
        given.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
        command = [str(COMMAND), "infer", "--url", server.http, "--model-name", model, "--retries", "1"]
        command += ["--input-data-path", str(given), "--output-data-path", str(answered), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
        if done.returncode != 0:
            raise AssertionError(f"expected mlserver infer to end with 0, got {done.returncode}: {done.stderr[-500:]}")
        answers = [json.loads(line) for line in answered.read_text().splitlines()]
    same(len(answers), len(requests), "answers")
    return sorted(answers, key=lambda answer: answer["parameters"]["batch_index"])


def tensor(name: str, array: np.ndarray, datatype: str) -> dict[str, Any]:
    """An input as JSON."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def array_of(answer: Mapping[str, Any], dtype: type) -> np.ndarray:
    """The only output of an answer; raises with the answer's error instead."""
    if "outputs" not in answer:
        raise AssertionError(f"expected outputs, got {answer}")
    (output,) = answer["outputs"]
    return np.array(output["data"], dtype).reshape(output["shape"])


for _form, _options in FORMS.items():

    @case(f"infer {_form}", INFER)
    def _(server: Server, options: tuple[str, ...] = _options) -> None:
        requests = [{"id": f"r{rows}", "inputs": [tensor("features", features(rows), "FP32")]} for rows in (1, 3, 2)]
        answers = infer(server, MLP, requests, *options)
        for rows, answer in zip((1, 3, 2), answers, strict=True):
            close(array_of(answer, np.float32), mlp(features(rows)))
            same((answer["model_name"], answer["id"]), (MLP, f"r{rows}"), "whose answer")


@case("several requests in one", INFER)
def _(server: Server) -> None:
    requests = [{"inputs": [tensor("features", features(rows), "FP32")]} for rows in (1, 3, 2, 1)]
    answers = infer(server, MLP, requests, "--batch-size", "3")
    for rows, answer in zip((1, 3, 2, 1), answers, strict=True):
        close(array_of(answer, np.float32), mlp(features(rows)))


for _datatype in ("BOOL", "INT32", "INT64", "UINT64", "FP64"):

    @case(f"datatype {_datatype}", INFER)
    def _(server: Server, datatype: str = _datatype) -> None:
        x = extremes(datatype)
        for options in FORMS.values():
            (answer,) = infer(server, echo(datatype), [{"inputs": [tensor("x", x, datatype)]}], *options)
            equal(array_of(answer, DTYPES[datatype]), x)


@case("errors tell what was expected", INFER)
def _(server: Server) -> None:
    for model, array, texts in ((MLP, features()[:, :5], ("features", "expected shape")), ("nowhere", features(), ())):
        (answer,) = infer(server, model, [{"inputs": [tensor("features", array, "FP32")]}])
        contains(answer["error"]["msg"], model, *texts)


@case("server is live and ready", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    same(stub.ServerLive(pb.ServerLiveRequest()).live, True, "live")
    same(stub.ServerReady(pb.ServerReadyRequest()).ready, True, "ready")


@case("model is ready, or not known", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    same(stub.ModelReady(pb.ModelReadyRequest(name=MLP)).ready, True, "ready")
    refused(grpc.StatusCode.NOT_FOUND, "nowhere", lambda: stub.ModelReady(pb.ModelReadyRequest(name="nowhere")))


@case("server metadata", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    metadata = stub.ServerMetadata(pb.ServerMetadataRequest())
    same(bool(metadata.name and metadata.version and metadata.extensions), True, "name, version, extensions")


@case("model metadata", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    """Field 6 is a map of another type in each dialect: it must be empty."""
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=MLP))
    given = [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs]
    same(given, [("features", "FP32", [-1, 8])], "inputs")
    same(dict(metadata.parameters), {}, "parameters")


def request_of(x: np.ndarray, *, raw: bool) -> pb.ModelInferRequest:
    """A request to the perceptron."""
    given = pb.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=x.shape)
    message = pb.ModelInferRequest(model_name=MLP, id="7")
    if raw:
        message.raw_input_contents.append(x.tobytes())
    else:
        given.contents.fp32_contents.extend(x.ravel().tolist())
    message.inputs.append(given)
    return message


for _raw, _form in ((True, "raw"), (False, "typed")):

    @case(f"infer {_form} in, raw out", GRPC)
    def _(stub: pb_grpc.GRPCInferenceServiceStub, raw: bool = _raw) -> None:
        x = features()
        answer = stub.ModelInfer(request_of(x, raw=raw))
        same((answer.model_name, answer.model_version, answer.id), (MLP, "1", "7"), "whose answer")
        (content,) = answer.raw_output_contents
        close(np.frombuffer(content, np.float32).reshape(answer.outputs[0].shape), mlp(x))


@case("stream", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    raise NotRun("its answers are of another message than Triton's, which this server speaks")


@case("repository index", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    for ready in (False, True):
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready))
        states = {(each.name, each.version): each.state for each in index.models}
        same(states.get((MLP, "1")), "READY", "state")


@case("unload, load", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    model = movable(GRPC)
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model))
    same(stub.ModelReady(pb.ModelReadyRequest(name=model)).ready, False, "ready when unloaded")
    ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    same([each.name for each in ready if each.name == model], [], "unloaded among the ready ones")
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))
    same(stub.ModelReady(pb.ModelReadyRequest(name=model)).ready, True, "ready when loaded")
    unknown = pb.RepositoryModelLoadRequest(model_name="nowhere")
    refused(grpc.StatusCode.NOT_FOUND, "nowhere", lambda: stub.RepositoryModelLoad(unknown))


@case("errors tell what was expected", GRPC)
def _(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    for raw in (True, False):
        wrong = request_of(features()[:, :5].copy(), raw=raw)
        refused(grpc.StatusCode.INVALID_ARGUMENT, "expected shape", lambda wrong=wrong: stub.ModelInfer(wrong))


def refused(code: grpc.StatusCode, text: str, call: Any) -> None:
    """Fail unless `call` ends with `code` and `text`."""
    try:
        call()
    except grpc.RpcError as error:
        same(error.code(), code, f"status of {error.details()}")
        return contains(error.details(), text)
    raise AssertionError(f"expected {code}, got an answer")


if __name__ == "__main__":
    cases.main({INFER: connect_command, GRPC: connect_grpc})
