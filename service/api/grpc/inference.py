"""The Open Inference Protocol over gRPC: convert, await, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import final

from google.protobuf.json_format import ParseDict

from service.api.descriptions import model_config, model_statistics
from service.api.grpc import convert
from service.api.grpc.errors import Context, details
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.observing import CANCELLED, OK, begin
from service.api.observation import Exchange, Observer, current
from service.api.operation import no_log_changes, no_shared_memory, no_tracing
from service.api.repository import ModelRepository
from service.api.status import failure_of, status_of
from service.core.inference import InferenceService

SERVICE_NAME = "inference.GRPCInferenceService"

STREAM_WINDOW = 64
"""Requests of one stream that are computed at the same time; more wait on the wire."""

_Answer = asyncio.Task[pb.ModelInferResponse]


@final
class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Serves `inference` and `repository`; errors become statuses by `guarded`. `observer` is told of predictions."""

    def __init__(
        self, inference: InferenceService, repository: ModelRepository, observer: Observer | None = None
    ) -> None:
        self._inference = inference
        self._repository = repository
        self._observer = observer

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the process answers."""
        return pb.ServerLiveResponse(live=self._inference.live())

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether the server takes traffic."""
        return pb.ServerReadyResponse(ready=self._inference.ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether a version answers."""
        return pb.ModelReadyResponse(ready=self._inference.model_ready(request.name, request.version or None))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Who serves."""
        return convert.server_metadata_to_proto(self._inference.server_metadata())

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        return convert.model_metadata_to_proto(self._inference.model_metadata(request.name, request.version or None))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """How a model is served."""
        served = self._inference.model(request.name, request.version or None)
        return ParseDict({"config": model_config(served)}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """What one version, all versions of a model, or all models have done."""
        if request.version:
            served = [self._inference.model(request.name, request.version)]
        else:
            served = self._inference.served(request.name or None)
        return ParseDict(model_statistics(served), pb.ModelStatisticsResponse())

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One request, one answer, before the call's deadline."""
        return await self._infer(request, context.time_remaining(), None if self._observer is None else current())

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answers in the order of the requests.

        A failed one is answered with its message and id, and the stream goes on, unless the call's metadata says
        `triton_grpc_error: true`: then the stream ends with the status of the first failure. It also ends with a
        message that cannot be read. Every answer is the final one of its request and says so; there are no empty ones.
        """
        metadata = dict(context.invocation_metadata() or ())
        strict = metadata.get("triton_grpc_error") == "true"
        waiting: asyncio.Queue[tuple[str, _Answer] | None] = asyncio.Queue(STREAM_WINDOW)
        started: set[_Answer] = set()
        broken: Exception | None = None

        async def read() -> None:
            nonlocal broken
            try:
                async for request in request_iterator:
                    task = asyncio.create_task(self._of_stream(request, context))
                    started.add(task)
                    await waiting.put((request.id, task))
            except Exception as error:
                broken = error
            await waiting.put(None)

        reader = asyncio.create_task(read())
        try:
            while (each := await waiting.get()) is not None:
                yield await _streamed(*each, strict=strict)
                started.discard(each[1])
            if broken is not None:
                raise broken
        finally:
            reader.cancel()
            for task in started:
                task.cancel()

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """What is stored, and what each version is doing."""
        return convert.index_to_proto(self._repository.index(ready_only=request.ready))

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model and wait for it."""
        name = request.model_name or request.repository_name
        await self._repository.load(name, convert.parameters_from_proto(request.parameters))
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model and wait for its last request."""
        name = request.model_name or request.repository_name
        await self._repository.unload(name, convert.parameters_from_proto(request.parameters))
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """None."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Not offered."""
        raise no_shared_memory()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Nothing to do."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """None."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Not offered."""
        raise no_shared_memory()

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Nothing to do."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        """Tracing is off."""
        if request.model_name:
            self._inference.check_model(request.model_name)
        if request.settings:
            raise no_tracing()
        return convert.trace_settings_to_proto()

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        """How this process logs."""
        if request.settings:
            raise no_log_changes()
        return convert.log_settings_to_proto()

    async def _of_stream(self, message: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One request of a stream, observed like a call of its own: streams last for hours."""
        if self._observer is None:
            return await self._infer(message, context.time_remaining(), None)
        exchange = begin(self._observer, SERVICE_NAME, "ModelStreamInfer", context, message.ByteSize())
        try:
            with exchange:
                response = await self._infer(message, context.time_remaining(), exchange)
        except asyncio.CancelledError:
            exchange.end(CANCELLED)
            raise
        except Exception as error:
            exchange.end(status_of(error).grpc.value[0], error=error)
            raise
        exchange.end(OK, bytes_out=response.ByteSize())
        return response

    async def _infer(
        self, message: pb.ModelInferRequest, remaining_s: float | None, exchange: Exchange | None
    ) -> pb.ModelInferResponse:
        request, wanted = convert.request_from_proto(message)
        if exchange is not None:
            exchange.asked(request.model, request.version, request.id)
            request.started = exchange.started
        if wanted.timeout_us is not None:
            timeout_s = wanted.timeout_us * 1e-6
            remaining_s = timeout_s if remaining_s is None else min(timeout_s, remaining_s)
        if remaining_s is not None:
            request.deadline = self._inference.deadline(remaining_s)
        result = await self._inference.infer(request)
        if exchange is not None:
            exchange.version = str(result.version)
        return convert.result_to_proto(result)


async def _streamed(request_id: str, answer: _Answer, *, strict: bool) -> pb.ModelStreamInferResponse:
    """The only answer to a request, marked so; a failure is raised where the stream is `strict`."""
    try:
        response = pb.ModelStreamInferResponse(infer_response=await answer)
    except Exception as error:
        if strict:
            raise
        failed = pb.ModelInferResponse(id=request_id)
        response = pb.ModelStreamInferResponse(error_message=details(failure_of(error)), infer_response=failed)
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response
