"""The Open Inference Protocol over gRPC, all but inference itself: convert, await, convert."""

from __future__ import annotations

from typing import final

from google.protobuf.json_format import ParseDict

from service.api.descriptions import model_config, model_statistics
from service.api.grpc import convert
from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.api.grpc.transport.calls import Context
from service.api.operation import no_log_changes, no_shared_memory, no_tracing
from service.api.repository import ModelRepository
from service.core.inference import InferenceService


@final
class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """All methods but the two that infer (`InferenceCalls` has those); the transport makes statuses of errors."""

    def __init__(self, inference: InferenceService, repository: ModelRepository) -> None:
        self._inference = inference
        self._repository = repository

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
