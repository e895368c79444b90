"""KServe's SDK: its REST and gRPC clients, and its dialect of the protocol's messages."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import numpy as np
from harness import Cases, NotRun, Server, contains, same
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.logging import trace_logger
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.infer_type import RequestedOutput
from values import (
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
    movable,
    non_finite,
    read_text,
    texts_of,
)

REST, GRPC = "kserve rest", "kserve grpc"
ALL = (REST, GRPC)
FORMS = {False: "JSON", True: "binary"}
_NAMES = {scalar: name for name, scalar in DTYPES.items()} | {np.object_: "BYTES"}
cases = Cases()
case = cases.case


class Wire:
    """Either client; `address` is the REST client's base URL."""

    def __init__(self, name: str, server: Server) -> None:
        self.name, self.server = name, server
        self.is_rest = name == REST
        self.url = f"http://{server.http}"
        rest = RESTConfig(protocol="v2", timeout=30)
        self.client = InferenceRESTClient(rest) if self.is_rest else InferenceGRPCClient(server.grpc, timeout=30)

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method of the client."""
        before = (self.url,) if self.is_rest else ()
        return await getattr(self.client, method)(*before, *arguments)

    async def infer(
        self,
        model: str,
        inputs: dict[str, np.ndarray],
        *,
        binary: bool = True,
        parameters: dict[str, Any] | None = None,
        outputs: list[RequestedOutput] | None = None,
        request_id: str = "a 1",
    ) -> InferResponse:
        """A prediction; `binary`: raw tensors, else JSON or typed contents."""
        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, list(array.shape), _NAMES[array.dtype.type])
            tensor.set_data_from_numpy(array, binary_data=binary)
            if not self.is_rest:
                tensor.parameters = None  # a size of binary data is HTTP's
            tensors.append(tensor)
        request = InferRequest(
            model_name=model,
            infer_inputs=tensors,
            request_id=request_id,
            parameters=parameters,
            request_outputs=outputs,
        )
        if self.is_rest:
            return await self.client.infer(self.url, request, model_name=model)
        return await self.client.infer(request)

    async def echoed(self, x: np.ndarray, given: bool, asked: bool) -> np.ndarray:
        """`x`, having been to the server in this form and back in that."""
        model = echo(_NAMES[x.dtype.type])
        parameters = {"binary_data_output": asked} if self.is_rest else None
        (output,) = (await self.infer(model, {"x": x}, binary=given, parameters=parameters)).outputs
        return output.as_numpy()

    def forms(self) -> list[tuple[bool, bool]]:
        """Whether tensors travel as bytes, in and out; gRPC's answers are always raw."""
        return [(given, asked) for given in FORMS for asked in (FORMS if self.is_rest else (True,))]

    async def refused(self, *texts: str, status: tuple[int, str], call: Any) -> None:
        """Fail unless awaiting `call` raises with HTTP's or gRPC's status and all `texts`."""
        try:
            await call
        except httpx.HTTPStatusError as error:
            same(error.response.status_code, status[0], f"status of {error}")
            contains(error, *texts)
        except grpc.RpcError as error:
            same(error.code().name, status[1], f"status of {error.details()}")
            contains(error.details(), *texts)
        else:
            raise AssertionError(f"expected {status}, got an answer")


INVALID = (400, "INVALID_ARGUMENT")
UNKNOWN = (404, "NOT_FOUND")


@asynccontextmanager
async def connect(name: str, server: Server) -> AsyncIterator[Wire]:
    """A client that is closed at the end."""
    wire = Wire(name, server)
    async with wire.client:
        yield wire


@case("server is live and ready", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_server_live"), True, "live")
    same(await wire.call("is_server_ready"), True, "ready")


@case("model is ready, or not known", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_model_ready", MLP), True, "ready")
    if wire.is_rest:
        same(await wire.call("is_model_ready", "nowhere"), False, "unknown model ready")
    else:
        await wire.refused("nowhere", status=UNKNOWN, call=wire.call("is_model_ready", "nowhere"))


async def _mlp(wire: Wire, given: bool, asked: bool) -> None:
    x = features()
    parameters = {"binary_data_output": asked} if wire.is_rest else None
    answer = await wire.infer(MLP, {"features": x}, binary=given, parameters=parameters)
    same((answer.model_name, answer.id), (MLP, "a 1"), "whose answer")
    (output,) = answer.outputs
    same((output.name, output.datatype, list(output.shape)), ("probabilities", "FP32", [3, 3]), "output")
    close(output.as_numpy(), mlp(x))


for _given, _in in FORMS.items():
    for _asked, _out in FORMS.items():
        case(f"infer {_in} in, {_out} out", REST)(functools.partial(_mlp, given=_given, asked=_asked))
case("infer raw in, raw out", GRPC)(functools.partial(_mlp, given=True, asked=True))
case("infer typed in, raw out", GRPC)(functools.partial(_mlp, given=False, asked=True))


async def _datatype(wire: Wire, datatype: str) -> None:
    x = extremes(datatype)
    for given, asked in wire.forms():
        if given or datatype != "FP16":  # which this client sends as bytes only
            equal(await wire.echoed(x, given, asked), x)


for _name in DTYPES:
    case(f"datatype {_name}", *ALL)(functools.partial(_datatype, datatype=_name))


@case("datatype BYTES", *ALL)
async def _(wire: Wire) -> None:
    x = texts_of(*(text.encode() for text in SENTENCES))
    for given, asked in wire.forms():
        parameters = {"binary_data_output": asked} if wire.is_rest else None
        answer = await wire.infer(TEXTS, {"x": x}, binary=given, parameters=parameters)
        (found,) = (output.as_numpy() for output in answer.outputs if output.name == "y_labels")
        found = [[each.encode() if isinstance(each, str) else bytes(each) for each in row] for row in found]
        same(found, [[read_text(text)] for text in SENTENCES], f"labels, {given} in, {asked} out")
    refused = wire.infer(TEXTS, {"x": texts_of(b"a", b"a\xff\0")})
    await wire.refused("expected UTF-8 in row 1", status=INVALID, call=refused)


@case("datatype BF16", *ALL)
async def _(wire: Wire) -> None:
    raise NotRun("this client has no BF16")


@case("INT64 2**63 - 1, UINT64 2**64 - 1", *ALL)
async def _(wire: Wire) -> None:
    for datatype, limit in (("INT64", 2**63 - 1), ("INT64", -(2**63)), ("UINT64", 2**64 - 1)):
        x = np.array([[limit] * 4], DTYPES[datatype])
        for given, asked in wire.forms():
            answer = await wire.echoed(x, given, asked)
            same([int(value) for value in answer.ravel()], [limit] * 4, f"{datatype} in {given}, out {asked}")


@case("NaN and infinities", *ALL)
async def _(wire: Wire) -> None:
    for datatype in ("FP32", "FP64"):
        x = non_finite(DTYPES[datatype])
        for given, asked in wire.forms():
            # In JSON this client writes every number that is not finite as null, which means NaN.
            lossy = wire.is_rest and not given
            equal(await wire.echoed(x, given, asked), np.where(np.isfinite(x), x, x.dtype.type(np.nan)) if lossy else x)


@case("tensors without elements", *ALL)
async def _(wire: Wire) -> None:
    x = np.empty((0, 4), np.float32)
    for given, asked in wire.forms():
        equal(await wire.echoed(x, given, asked), x)


@case("several inputs, outputs in the order asked for", *ALL)
async def _(wire: Wire) -> None:
    a, b = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 1, np.int32)
    for given, asked in wire.forms():
        parameters = {"binary_data": asked} if wire.is_rest else None
        outputs = [RequestedOutput(name, parameters) for name in ("OUTPUT1", "OUTPUT0")]
        answer = await wire.infer(SIMPLE, {"INPUT1": b, "INPUT0": a}, binary=given, outputs=outputs)
        same([output.name for output in answer.outputs], ["OUTPUT1", "OUTPUT0"], "outputs")
        equal(answer.outputs[0].as_numpy(), a - b)
        equal(answer.outputs[1].as_numpy(), a + b)


@case("errors tell what was expected", *ALL)
async def _(wire: Wire) -> None:
    x = features()
    for given in FORMS:
        await wire.refused("nowhere", status=UNKNOWN, call=wire.infer("nowhere", {"x": x}, binary=given))
        for wrong in (x[:, :5], x.astype(np.int32)):
            refused = wire.infer(MLP, {"features": wrong}, binary=given)
            await wire.refused(MLP, "features", "expected", status=INVALID, call=refused)
        refused = wire.infer(MLP, {"colour": x}, binary=given)
        await wire.refused("colour", "features", status=INVALID, call=refused)


@case("priority, timeout, own parameters, sequence", *ALL)
async def _(wire: Wire) -> None:
    x = features()
    for parameters in ({"priority": 1, "timeout": 20_000_000}, {"team": "search", "dry": True}, {"sequence_id": 7}):
        (output,) = (await wire.infer(MLP, {"features": x}, parameters=parameters)).outputs
        close(output.as_numpy(), mlp(x))


@case("unload, load", REST)
async def _(wire: Wire) -> None:
    raise NotRun("this client has no method for it")


@case("unload, load", GRPC)
async def _(wire: Wire) -> None:
    """The client has no method for it either, but its generated code has: the model's name is in field 1."""
    model, x = movable(wire.name), np.ones((1, 4), np.float32)
    async with grpc.aio.insecure_channel(wire.server.grpc) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        unloaded = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=model))
        same(await wire.call("is_model_ready", model), False, "ready when unloaded")
        loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=model))
        same(await wire.call("is_model_ready", model), True, "ready when loaded")
        equal((await wire.infer(model, {"x": x})).outputs[0].as_numpy(), x)
        same((unloaded.model_name, unloaded.isUnloaded), (model, True), "answer to unload")
        same((loaded.model_name, loaded.isLoaded), (model, True), "answer to load")
        request = pb.RepositoryModelLoadRequest(model_name="nowhere")
        await wire.refused("nowhere", status=UNKNOWN, call=stub.RepositoryModelLoad(request))


@case("server metadata", GRPC)
async def _(wire: Wire) -> None:
    async with grpc.aio.insecure_channel(wire.server.grpc) as channel:
        metadata = await pb_grpc.GRPCInferenceServiceStub(channel).ServerMetadata(pb.ServerMetadataRequest())
    same(bool(metadata.name and metadata.version and metadata.extensions), True, "name, version, extensions")


@case("model metadata", GRPC)
async def _(wire: Wire) -> None:
    async with grpc.aio.insecure_channel(wire.server.grpc) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MLP))
    given = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
    same(given, [("features", "FP32", [-1, 8])], "inputs")


if __name__ == "__main__":
    trace_logger.setLevel(logging.CRITICAL)
    logging.getLogger("kserve").setLevel(logging.CRITICAL)
    cases.main({name: functools.partial(connect, name) for name in ALL})
