"""`axon.v1`: models, data sets and jobs over gRPC. Convert, await a method of the core, convert back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, final

import orjson

from service.api.curve import drawn
from service.api.following import follow
from service.api.grpc import axon_v1_convert as convert
from service.api.grpc.generated import axon_v1_pb2 as pb
from service.api.grpc.generated import axon_v1_pb2_grpc as rpc
from service.api.grpc.server import Servicer
from service.api.grpc.transport.calls import Context
from service.core.bundle_files import member_chunks
from service.core.datasets import DatasetOptions, DatasetService
from service.core.errors import InvalidRequest, NotFound, shown
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.progress import MAX_POINTS, MAX_WAIT_S
from service.core.registry import Registry
from service.core.serving_spec import read_serving
from service.core.types import GraphForm, Job, JobState, Json, Replica, StoredVersion
from service.core.uploads import Upload, UploadService, check_size, link

_M = TypeVar("_M", pb.SubmitVersionRequest, pb.AddDatasetRequest, pb.AppendUploadRequest)
_CHUNK = 2**20
_MAX_SERVING_BYTES = 2**16
_FORMS: Mapping[str, GraphForm] = {"svg": "svg", "mermaid": "mermaid"}
_SILENCE_S = 3600.0  # HTTP/2 itself notices a dead connection
_CONTENTS = {pb.DownloadRequest.CONTENT_BUNDLE: None, pb.DownloadRequest.CONTENT_PARAMS: "params.safetensors"}


def servicers(
    registry: Registry,
    datasets: DatasetService,
    jobs: JobService,
    uploads: UploadService,
    limits: Limits,
    stopping: asyncio.Event,
) -> tuple[Servicer, ...]:
    """The four services for `build_server`; `stopping` ends streams that would otherwise last."""
    return (
        Servicer(rpc.add_ModelsServicer_to_server, ModelsServicer(registry, uploads, limits), "axon.v1.Models"),
        Servicer(rpc.add_DatasetsServicer_to_server, DatasetsServicer(datasets), "axon.v1.Datasets"),
        Servicer(rpc.add_UploadsServicer_to_server, UploadsServicer(uploads), "axon.v1.Uploads"),
        Servicer(rpc.add_JobsServicer_to_server, JobsServicer(jobs, limits, stopping), "axon.v1.Jobs"),
    )


@final
class ModelsServicer(rpc.ModelsServicer):
    """What is stored, what is loaded, where aliases point."""

    def __init__(self, registry: Registry, uploads: UploadService, limits: Limits) -> None:
        self._registry = registry
        self._uploads = uploads
        self._limits = limits

    async def ValidateGraph(self, request: pb.ValidateGraphRequest, context: Context) -> pb.GraphReport:
        """Check a graph without storing it."""
        check_size(len(request.graph), limit_bytes=self._limits.max_graph_bytes, what="graph")
        return convert.graph_report(await self._registry.check_graph(request.graph))

    async def GetGraphSchema(self, request: pb.GetGraphSchemaRequest, context: Context) -> pb.GraphSchema:
        """The JSON Schema of graphs."""
        return pb.GraphSchema(json=await self._registry.graph_schema())

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """All models."""
        models, replicas = [], await self._registry.replicas()
        for name in await self._registry.stored_names():
            with contextlib.suppress(NotFound):  # deleted since it was listed
                models.append(await self._model(name, replicas))
        return pb.ListModelsResponse(models=models)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        """One model."""
        return await self._model(request.name, await self._registry.replicas())

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Delete a model."""
        await self._registry.delete(request.name)
        return pb.DeleteModelResponse()

    async def SubmitVersion(
        self, request_iterator: AsyncIterator[pb.SubmitVersionRequest], context: Context
    ) -> pb.Version:
        """Store a version that comes in pieces."""
        header = (await _first(request_iterator)).header
        largest = self._limits.max_bundle_bytes
        if header.upload:
            return await self._submit_upload(header, largest)
        limits = {"bundle": largest, "graph": self._limits.max_graph_bytes, "params": largest}
        async with self._registry.scratch() as folder:
            parts = await _receive_parts(request_iterator, folder, limits)
            load, alias = not header.do_not_load, header.alias or None
            if "bundle" in parts:
                stored = await self._registry.submit(header.name, parts["bundle"], load=load, alias=alias)
            else:
                graph = await asyncio.to_thread(parts["graph"].read_bytes)
                params = await asyncio.to_thread(parts["params"].read_bytes) if "params" in parts else None
                stored = await self._registry.submit_graph(
                    header.name, graph, params, seed=header.seed, load=load, alias=alias
                )
        return self._version(stored)

    async def _submit_upload(self, header: pb.SubmitVersionHeader, largest: int) -> pb.Version:
        taking = self._uploads.taken(header.upload, limit_bytes=largest, what="bundle")
        async with taking as whole, self._registry.scratch() as folder:
            await asyncio.to_thread(link, whole, folder / "bundle")
            load, alias = not header.do_not_load, header.alias or None
            stored = await self._registry.submit(header.name, folder / "bundle", load=load, alias=alias)
        return self._version(stored)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.Version:
        """One version."""
        return self._version(await self._registry.stored_version(request.name, request.version))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        """Delete a version."""
        await self._registry.delete(request.name, request.version)
        return pb.DeleteVersionResponse()

    async def LoadVersion(self, request: pb.LoadVersionRequest, context: Context) -> pb.Version:
        """Load a version and wait for it."""
        pin = request.pin if request.HasField("pin") else None
        serving = _serving(request.serving_json) if request.HasField("serving_json") else None
        await self._registry.load(request.name, request.version, serving=serving, pin=pin)
        return self._version(await self._registry.stored_version(request.name, request.version))

    async def UnloadVersion(self, request: pb.UnloadVersionRequest, context: Context) -> pb.Version:
        """Unload a version and wait for its last request."""
        await self._registry.unload(request.name, request.version)
        return self._version(await self._registry.stored_version(request.name, request.version))

    async def DescribeVersion(self, request: pb.DescribeVersionRequest, context: Context) -> pb.VersionDescription:
        """A version's graph and summary."""
        graph, summary = await self._registry.describe(request.name, request.version)
        return pb.VersionDescription(graph=graph, summary=summary)

    async def DrawVersion(self, request: pb.DrawVersionRequest, context: Context) -> pb.Picture:
        """A version's graph as a picture."""
        form = _FORMS.get(request.format or "svg")
        if form is None:
            raise InvalidRequest(f"format: expected svg or mermaid, got {shown(request.format)}")
        return pb.Picture(text=await self._registry.picture(request.name, request.version, form))

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[pb.Chunk]:
        """A version's bundle or parameters in pieces."""
        if request.content not in _CONTENTS:
            raise InvalidRequest(f"content: expected 0 (bundle) or 1 (params), got {request.content}")
        bundle = await self._registry.bundle(request.name, request.version)
        member = _CONTENTS[request.content]
        chunks = _file_chunks(bundle) if member is None else member_chunks(bundle, member)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.Chunk(data=chunk)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """Move an alias."""
        target = convert.target_from(request.version, request.weights)
        await self._registry.set_alias(request.name, request.alias, target)
        return pb.SetAliasResponse()

    async def RollBackAlias(self, request: pb.RollBackAliasRequest, context: Context) -> pb.Target:
        """Move an alias back."""
        return convert.target(await self._registry.roll_back(request.name, request.alias))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        """Remove an alias."""
        await self._registry.delete_alias(request.name, request.alias)
        return pb.DeleteAliasResponse()

    async def _model(self, name: str, replicas: Sequence[Replica]) -> pb.Model:
        state, stored = await self._registry.stored(name)
        known = {status.version for status in self._registry.status(name)}
        versions = [self._version(each) for each in stored if each.version in known]
        return convert.model(state, versions, replicas, self._registry.degraded().get(name, ()))

    def _version(self, stored: StoredVersion) -> pb.Version:
        status = self._registry.version_status(stored.name, stored.version)
        return convert.version(stored, status, self._registry.aliases(stored.name))


@final
class DatasetsServicer(rpc.DatasetsServicer):
    """Uploads that became columns."""

    def __init__(self, datasets: DatasetService) -> None:
        self._datasets = datasets

    async def AddDataset(self, request_iterator: AsyncIterator[pb.AddDatasetRequest], context: Context) -> pb.Dataset:
        """Store a file that comes in pieces."""
        header = (await _first(request_iterator)).header
        chunks, options = _data(request_iterator), _dataset_options(header)
        if header.upload:
            kind, name = header.format or None, header.name or None
            found = await self._datasets.add_upload(header.upload, kind, name=name, options=options)
            return convert.dataset(found, detail=True)
        found = await self._datasets.add(chunks, header.format or None, name=header.name or None, options=options)
        return convert.dataset(found, detail=True)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        """All data sets."""
        found = await self._datasets.all()
        return pb.ListDatasetsResponse(datasets=[convert.dataset(dataset, detail=False) for dataset in found])

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.Dataset:
        """One data set."""
        return convert.dataset(await self._datasets.get(request.id), detail=True)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Context) -> pb.DeleteDatasetResponse:
        """Delete a data set."""
        await self._datasets.delete(request.id)
        return pb.DeleteDatasetResponse()


@final
class UploadsServicer(rpc.UploadsServicer):
    """Large files in pieces."""

    def __init__(self, uploads: UploadService) -> None:
        self._uploads = uploads

    async def CreateUpload(self, request: pb.CreateUploadRequest, context: Context) -> pb.Upload:
        """Announce a file."""
        return self._converted(await self._uploads.create(request.length, sha256=request.sha256 or None))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.Upload:
        """How much of it is here."""
        return self._converted(await self._uploads.get(request.id))

    async def AppendUpload(
        self, request_iterator: AsyncIterator[pb.AppendUploadRequest], context: Context
    ) -> pb.Upload:
        """Append pieces."""
        header = (await _first(request_iterator)).header
        return self._converted(await self._uploads.append(header.id, header.offset, _data(request_iterator)))

    async def DeleteUpload(self, request: pb.DeleteUploadRequest, context: Context) -> pb.DeleteUploadResponse:
        """End it."""
        await self._uploads.delete(request.id)
        return pb.DeleteUploadResponse()

    def _converted(self, upload: Upload) -> pb.Upload:
        return convert.upload(upload, self._uploads.expires_at(upload))


@final
class JobsServicer(rpc.JobsServicer):
    """Training through the queue."""

    def __init__(self, jobs: JobService, limits: Limits, stopping: asyncio.Event) -> None:
        self._jobs = jobs
        self._limits = limits
        self._stopping = stopping

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.Job:
        """Queue a job."""
        check_size(len(request.spec_json), limit_bytes=self._limits.max_job_spec_bytes, what="job")
        try:
            spec = orjson.loads(request.spec_json)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"job: expected JSON, got {error}") from None
        submission = await self._jobs.submit(spec, idempotency_key=request.idempotency_key or None)
        return await self._detail(submission.job)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """Jobs, newest first."""
        found = await self._jobs.find(
            state=request.state or None,
            dead=request.dead,
            parent=request.parent or None,
            limit=request.limit or 100,
        )
        return pb.ListJobsResponse(jobs=[convert.job(job, with_spec=False) for job in found])

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        """One job, or as soon as its state changes."""
        job, state = await self._jobs.get(request.id), request.state or None
        if not 0 <= request.wait_s <= MAX_WAIT_S:
            raise InvalidRequest(f"wait_s: expected 0 to {MAX_WAIT_S:g} seconds, got {request.wait_s}")
        if state not in {None, *JobState}:
            raise InvalidRequest(f"state: expected one of {', '.join(JobState)}, got {shown(state)}")
        if request.wait_s:
            known = None if state is None else JobState(state)
            job = await self._jobs.progress.changed(job, self._stopping, known=known, wait_s=request.wait_s)
        return await self._detail(job)

    async def GetJobMetrics(self, request: pb.GetJobMetricsRequest, context: Context) -> pb.JobMetrics:
        """A job's series."""
        most = request.max_points or 1000
        if not 2 <= most <= MAX_POINTS:
            raise InvalidRequest(f"max_points: expected 2 to {MAX_POINTS}, got {most}")
        job = await self._jobs.get(request.id)
        return convert.metrics(job, await self._jobs.progress.series(job.id), most)

    async def DrawJobMetrics(self, request: pb.DrawJobMetricsRequest, context: Context) -> pb.Picture:
        """A job's series as a picture."""
        job = await self._jobs.get(request.id)
        return pb.Picture(text=drawn(job, await self._jobs.progress.series(job.id)))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        """Cancel a job."""
        return await self._detail(await self._jobs.cancel(request.id))

    async def RequeueJob(self, request: pb.RequeueJobRequest, context: Context) -> pb.Job:
        """Queue a failed job's request again."""
        return await self._detail((await self._jobs.requeue(request.id)).job)

    async def CompareJobs(self, request: pb.CompareJobsRequest, context: Context) -> pb.JobComparison:
        """Jobs side by side."""
        found = await self._jobs.compare(
            request.ids, parent=request.parent or None, metric=request.metric or None, mode=request.mode or None
        )
        return convert.comparison(found)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.JobEvent]:
        """A job's events until it has ended."""
        events = self._jobs.events(request.id, after=request.after or "0")
        async with contextlib.aclosing(follow(events, self._stopping, silence_s=_SILENCE_S)) as following:
            async for event in following:
                if event is not None:
                    yield convert.event(event)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """The workers that are alive."""
        return pb.ListWorkersResponse(workers=map(convert.worker, await self._jobs.workers()))

    async def _detail(self, job: Job) -> pb.Job:
        return convert.job(job, with_spec=True, sweep=await self._jobs.sweep(job))


def _serving(text: str) -> dict[str, Json]:
    check_size(len(text), limit_bytes=_MAX_SERVING_BYTES, what="serving_json")
    try:
        return read_serving(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"serving_json: expected JSON, got {error}") from None


def _dataset_options(header: pb.AddDatasetHeader) -> DatasetOptions:
    height, width = header.size or (0, 0) if len(header.size) in (0, 2) else (-1, -1)
    if header.size and min(height, width) < 1:
        raise InvalidRequest(f"size: expected height and width of 1 or more, got {str(list(header.size))[:80]}")
    return DatasetOptions(
        features=tuple(header.features),
        features_name=header.features_name or "features",
        target=tuple(header.target),
        categories=tuple(header.categories),
        columns=tuple(header.columns),
        size=(height, width) if header.size else None,
        mode=header.mode or "RGB",
        unit=header.unit or "characters",
    )


async def _first(messages: AsyncIterator[_M]) -> _M:
    """The first message of an upload, which must be its header."""
    message = await anext(messages, None)
    if message is None or message.WhichOneof("part") != "header":
        raise InvalidRequest("upload: expected a header as the first message, got another or none")
    return message


async def _data(
    messages: AsyncIterator[pb.AddDatasetRequest] | AsyncIterator[pb.AppendUploadRequest],
) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("part") != "data":
            raise InvalidRequest("upload: expected data behind the header, got another header")
        yield message.data


async def _receive_parts(
    messages: AsyncIterator[pb.SubmitVersionRequest], folder: Path, limits: Mapping[str, int]
) -> dict[str, Path]:
    """Write the pieces of each part to a file as they come; raises `InvalidRequest`, `TooLarge`."""
    sizes = dict.fromkeys(limits, 0)
    files: dict[str, BinaryIO] = {}
    try:
        async for message in messages:
            part = message.WhichOneof("part")
            if part is None or part == "header":
                raise InvalidRequest("upload: expected bundle, graph or params behind the header, got something else")
            data: bytes = getattr(message, part)
            sizes[part] += len(data)
            check_size(sizes[part], limit_bytes=limits[part], what=part)
            if part not in files:
                files[part] = await asyncio.to_thread((folder / part).open, "wb")
            await asyncio.to_thread(files[part].write, data)
    finally:
        for file in files.values():
            await asyncio.to_thread(file.close)
    if set(files) not in ({"bundle"}, {"graph"}, {"graph", "params"}):
        raise InvalidRequest(
            f"upload: expected bundle, or graph and perhaps params; got {', '.join(files) or 'nothing'}"
        )
    return {part: folder / part for part in files}


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
